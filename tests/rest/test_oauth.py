"""Tokens: the OAuth token endpoint, what a token says, and how it ends."""

from __future__ import annotations

import base64
import hashlib
import time
import uuid
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
from django.contrib.sessions.models import Session
from django.http import HttpResponse
from django.test import Client, RequestFactory
from django.utils import timezone
from joserfc import jwt
from joserfc.jwk import KeySet
from pytest_django import Settings

from console.tasks import sweep
from fhirstore import models
from fhirstore.api import client_create
from fhirstore.auth import cleaning, keys, oauth
from fhirstore.auth.identities import memberships_of_user
from fhirstore.errors import FhirError
from tests.rest.conftest import FORM, Caller

ISSUER = "http://127.0.0.1:8000/"


def ask(caller: Caller, fields: dict[str, str], **headers: str) -> HttpResponse:
    """POST a form to the token endpoint, without further credentials."""
    headers.setdefault("authorization", "")
    return caller.send("POST", "/oauth2/token", urlencode(fields), content_type=FORM, **headers)


def credentials(caller: Caller) -> dict[str, str]:
    """A client credentials request."""
    return {"grant_type": "client_credentials", "client_id": caller.client_id, "client_secret": caller.secret}


def token(caller: Caller) -> str:
    """A fresh access token."""
    return ask(caller, credentials(caller)).json()["access_token"]


def test_client_credentials_give_a_token_that_says_who_and_how_long(home: Caller) -> None:
    answer = ask(home, {**credentials(home), "scope": "openid profile"})
    body = answer.json()
    assert answer.status_code == 200
    assert answer["cache-control"].startswith("no-store")
    assert (body["token_type"], body["expires_in"], body["scope"]) == ("Bearer", 3600, "openid profile")
    assert body["project"] == {"reference": f"Project/{home.project}", "display": "Home"}
    assert body["profile"]["reference"] == f"ClientApplication/{home.client_id}"
    assert "refresh_token" not in body
    key_set = KeySet.import_key_set(home.send("GET", "/.well-known/jwks.json", authorization="").json())
    decoded = jwt.decode(body["access_token"], key_set, algorithms=["ES256"])
    claims = decoded.claims
    assert decoded.header["kid"]
    assert claims["client_id"] == claims["username"] == claims["sub"] == home.client_id
    assert claims["profile"] == f"ClientApplication/{home.client_id}"
    assert claims["iss"] == claims["aud"] == ISSUER
    assert claims["exp"] - claims["iat"] == 3600
    assert uuid.UUID(claims["login_id"])
    assert uuid.UUID(claims["jti"])
    assert "d" not in home.send("GET", "/.well-known/jwks.json").json()["keys"][0]


def test_the_client_may_come_by_basic_by_form_or_both(home: Caller) -> None:
    fields = credentials(home)
    by_basic = {"grant_type": "client_credentials"}
    assert ask(home, by_basic, authorization=home.basic).status_code == 200
    assert ask(home, fields, authorization=home.basic).status_code == 200
    assert ask(home, {**fields, "client_secret": "x"}, authorization=home.basic).status_code == 200


def test_a_token_opens_the_api(home: Caller) -> None:
    bearer = f"Bearer {token(home)}"
    assert home.send("GET", "Patient", authorization=bearer).status_code == 200
    me = home.send("GET", "/auth/me", authorization=bearer).json()
    assert me["profile"]["id"] == home.client_id


@pytest.mark.parametrize(
    ("change", "error", "description"),
    [
        ({"grant_type": ""}, "invalid_request", "Missing grant_type"),
        ({"grant_type": "password"}, "invalid_request", "Unsupported grant_type"),
        ({"client_id": ""}, "invalid_request", "Missing client_id"),
        ({"client_id": "unheard"}, "invalid_request", "Invalid client"),
        ({"client_id": "00000000-0000-4000-8000-000000000000"}, "invalid_request", "Invalid client"),
        ({"client_secret": ""}, "invalid_request", "Missing client_secret"),
        ({"client_secret": "wrong"}, "invalid_request", "Invalid secret"),
        ({"client_id": "medplum-cli", "client_secret": ""}, "invalid_request", "Missing client_secret"),
    ],
)
def test_what_is_wrong_with_a_token_request_is_said(
    home: Caller, change: dict[str, str], error: str, description: str
) -> None:
    answer = ask(home, credentials(home) | change)
    assert answer.status_code == 400
    assert answer.json() == {"error": error, "error_description": description}


def test_only_forms_are_taken(home: Caller) -> None:
    answer = home.send("POST", "/oauth2/token", credentials(home), authorization="")
    assert (answer.status_code, answer.content) == (400, b"Unsupported content type")
    assert home.send("GET", "/oauth2/token").status_code == 405


def test_logout_ends_the_token(home: Caller) -> None:
    kept, ended = f"Bearer {token(home)}", f"Bearer {token(home)}"
    assert home.send("GET", "Patient", authorization=ended).status_code == 200
    assert home.send("POST", "/oauth2/logout", {}, authorization=ended).json()["id"] == "ok"
    assert home.send("GET", "Patient", authorization=ended).status_code == 401
    assert home.send("GET", "Patient", authorization=kept).status_code == 200


@pytest.mark.parametrize(
    "change",
    [
        {"exp": int(time.time()) - 1},
        {"iss": "https://elsewhere.example/"},
        {"aud": "https://elsewhere.example/"},
        {"login_id": str(uuid.uuid4())},
        {"login_id": "x"},
    ],
)
def test_a_token_with_other_claims_is_refused(home: Caller, change: dict[str, Any]) -> None:
    claims = keys.verify(token(home))
    assert claims is not None
    assert home.send("GET", "Patient", authorization=f"Bearer {keys.sign(claims)}").status_code == 200
    assert (
        home.send("GET", "Patient", authorization=f"Bearer {keys.sign(claims | change)}").status_code == 401
    )


def test_a_forged_token_is_refused(home: Caller) -> None:
    head, claims, signature = token(home).split(".")
    unsigned = base64.urlsafe_b64encode(b'{"alg":"none"}').rstrip(b"=").decode()
    for forged in (
        f"{unsigned}.{claims}.",
        f"{head}.{claims}.{signature[::-1]}",
        f"{head}.{signature}.{claims}",
    ):
        assert home.send("GET", "Patient", authorization=f"Bearer {forged}").status_code == 401


def test_the_private_part_of_a_signing_key_is_encrypted_and_survives_a_change_of_the_secret_key(
    home: Caller, settings: Settings
) -> None:
    before = token(home)
    stored = models.SigningKey.objects.latest("created")
    assert b'"d"' not in bytes(stored.private_encrypted)
    settings.SECRET_KEY_FALLBACKS = [settings.SECRET_KEY]
    settings.SECRET_KEY = uuid.uuid4().hex
    keys.key_ring.forget()
    assert keys.key_ring.signing_key().kid == stored.kid
    assert ask(home, credentials(home)).status_code == 200
    settings.SECRET_KEY_FALLBACKS = []
    keys.key_ring.forget()
    assert keys.key_ring.signing_key().kid != stored.kid
    assert keys.verify(before), "tokens of the old key are still verified"
    models.SigningKey.objects.exclude(kid=stored.kid).delete()
    keys.key_ring.forget()


def test_the_lifetime_of_a_token_follows_the_client_but_never_falls_below_what_clients_take(
    home: Caller,
) -> None:
    client = home.repository.read("ClientApplication", home.client_id).resource
    for given, expected in (("2h", 7200), ("1m", 360)):
        home.repository.update({**client, "accessTokenLifetime": given})
        assert ask(home, credentials(home)).json()["expires_in"] == expected
    with pytest.raises(FhirError, match="clapp-1"):
        home.repository.update({**client, "accessTokenLifetime": "nonsense"})
    home.repository.update(client)


def test_an_inactive_client_cannot_log_in_and_its_tokens_end(home: Caller) -> None:
    bearer = f"Bearer {token(home)}"
    assert home.send("GET", "Patient", authorization=bearer).status_code == 200
    client = home.repository.read("ClientApplication", home.client_id).resource
    home.repository.update({**client, "status": "off"})
    assert ask(home, credentials(home)).json()["error_description"] == "Invalid client"
    assert home.send("GET", "Patient", authorization=bearer).status_code == 401
    assert home.send("GET", "Patient").status_code == 401
    home.repository.update(client)
    assert home.send("GET", "Patient").status_code == 200


# --- codes and refresh tokens -----------------------------------------------------------------------------------------


def login_with_code(caller: Caller, **fields: Any) -> str:
    """Record a person's login with a code to redeem; returns the code."""
    user = models.User.objects.get(email=caller.email)
    login = oauth.login_start(
        RequestFactory().get("/"),
        membership=memberships_of_user(user)[0].id,
        client="medplum-cli",
        auth_method="password",
        scope=fields.pop("scope", "openid"),
        user=user,
    )
    code = uuid.uuid4().hex
    values = {
        "code_expires": timezone.now() + oauth.CODE_LIFETIME,
        "redirect_uri": "http://localhost:9615",
        **fields,
    }
    models.Login.objects.filter(id=login.id).update(code_digest=keys.digest(code), **values)
    return code


def redeem(caller: Caller, code: str, **fields: str) -> HttpResponse:
    """Redeem a code as Medplum's command line does."""
    return ask(
        caller,
        {
            "grant_type": "authorization_code",
            "client_id": "medplum-cli",
            "redirect_uri": "http://localhost:9615",
            "code": code,
            **fields,
        },
    )


def test_a_code_works_once_and_its_second_use_ends_the_login(home: Caller) -> None:
    code = login_with_code(home)
    first = redeem(home, code)
    bearer = f"Bearer {first.json()['access_token']}"
    me = home.send("GET", "/auth/me", authorization=bearer).json()
    assert me["user"]["email"] == home.email
    assert me["membership"]["admin"] is True
    assert me["profile"]["resourceType"] == "Practitioner"
    assert me["security"]["memberships"][0]["project"]["reference"] == f"Project/{home.project}"
    second = redeem(home, code)
    assert second.json() == {"error": "invalid_grant", "error_description": "Token already granted"}
    assert home.send("GET", "Patient", authorization=bearer).status_code == 401


@pytest.mark.parametrize(
    "change", [{"code": "wrong"}, {"redirect_uri": "http://localhost:1"}, {"client_id": "unheard"}]
)
def test_a_code_needs_its_client_and_redirect_uri(home: Caller, change: dict[str, str]) -> None:
    assert redeem(home, **{"code": login_with_code(home), **change}).status_code == 400


def test_an_old_code_is_refused(home: Caller) -> None:
    late = redeem(home, login_with_code(home, code_expires=timezone.now()))
    assert late.status_code == 400
    assert late.json() == {"error": "invalid_grant", "error_description": "Invalid code"}


def test_pkce_asks_for_the_verifier(home: Caller) -> None:
    verifier = uuid.uuid4().hex * 2
    challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
    asked = {"code_challenge": challenge, "code_challenge_method": "S256"}
    assert redeem(home, login_with_code(home, **asked)).status_code == 400
    assert redeem(home, login_with_code(home, **asked), code_verifier="x" * 64).status_code == 400
    assert redeem(home, login_with_code(home, **asked), code_verifier=verifier).status_code == 200


def test_a_refresh_token_rotates_and_the_former_one_works_for_a_short_while(home: Caller) -> None:
    first = redeem(home, login_with_code(home, scope="openid offline_access")).json()
    fields = {"grant_type": "refresh_token", "client_id": "medplum-cli"}
    second = ask(home, {**fields, "refresh_token": first["refresh_token"]})
    assert second.status_code == 200
    assert second.json()["refresh_token"] != first["refresh_token"]
    assert ask(home, {**fields, "refresh_token": first["refresh_token"]}).status_code == 200, (
        "within the overlap"
    )
    third = ask(home, {**fields, "refresh_token": second.json()["refresh_token"]})
    login_id = keys.verify(first["access_token"])["login_id"]  # type: ignore[index]
    models.Login.objects.filter(id=login_id).update(
        refresh_rotated=timezone.now() - 2 * oauth.REFRESH_OVERLAP
    )
    late = ask(home, {**fields, "refresh_token": first["refresh_token"]})
    assert late.status_code == 400
    assert late.json() == {"error": "invalid_grant", "error_description": "Invalid token"}
    assert third.status_code == 200
    assert "refresh_token" not in redeem(home, login_with_code(home)).json()


def test_secrets_codes_and_refresh_tokens_are_stored_as_digests_only(home: Caller) -> None:
    code = login_with_code(home, scope="openid offline_access")
    refresh = redeem(home, code).json()["refresh_token"]
    for model, secret in (
        (models.ClientCredential, home.secret),
        (models.Login, code),
        (models.Login, refresh),
    ):
        for row in model.objects.values_list():
            values = [bytes(value) if isinstance(value, memoryview) else str(value).encode() for value in row]
            assert all(secret.encode() not in value for value in values)


def test_a_person_who_is_not_active_any_more_is_refused(home: Caller) -> None:
    bearer = f"Bearer {redeem(home, login_with_code(home)).json()['access_token']}"
    people = models.User.objects.filter(email=home.email)
    people.update(is_active=False)
    assert home.send("GET", "Patient", authorization=bearer).status_code == 401
    people.update(is_active=True)
    assert home.send("GET", "Patient", authorization=bearer).status_code == 200


# --- discovery --------------------------------------------------------------------------------------------------------


def test_discovery_names_endpoints_that_are_there(home: Caller) -> None:
    for path in ("openid-configuration", "oauth-authorization-server", "smart-configuration"):
        found = home.send("GET", f"/.well-known/{path}", authorization="").json()
        assert found["issuer"] == ISSUER
        for name, url in found.items():
            if name.endswith(("_endpoint", "_uri")):
                answer = home.send("GET", url.removeprefix("http://127.0.0.1:8000"), authorization="")
                assert answer.status_code in (200, 302, 400, 401, 405), url
    assert home.send("GET", "/fhir/R4/.well-known/smart-configuration", authorization="").status_code == 200
    protected = home.send("GET", "/.well-known/oauth-protected-resource", authorization="").json()
    assert protected["authorization_servers"] == [ISSUER]
    assert protected["introspection_endpoint"] == found["introspection_endpoint"]


def test_userinfo_tells_what_the_scopes_allow(home: Caller) -> None:
    bearer = f"Bearer {redeem(home, login_with_code(home, scope='openid')).json()['access_token']}"
    user = models.User.objects.get(email=home.email)
    assert home.send("GET", "/oauth2/userinfo", authorization=bearer).json() == {"sub": str(user.id)}
    token = redeem(home, login_with_code(home, scope="openid profile email")).json()["access_token"]
    answer = home.send("GET", "/oauth2/userinfo", authorization=f"Bearer {token}").json()
    assert answer["email"] == home.email
    assert answer["name"] == "Project Admin"
    assert answer["profile"].startswith("Practitioner/")


# --- authorize --------------------------------------------------------------------------------------------------------

CLI = {
    "client_id": "medplum-cli",
    "redirect_uri": "http://localhost:9615",
    "response_type": "code",
    "scope": "openid",
    "state": "s t",
}


def browser(caller: Caller | None) -> Client:
    """A browser, signed in to the console as the caller's admin."""
    client = Client(SERVER_NAME="127.0.0.1")
    if caller is not None:
        user = models.User.objects.get(email=caller.email)
        client.force_login(user)
        session = client.session
        session["membership"] = memberships_of_user(user)[0].id
        session.save()
    return client


def test_whoever_is_signed_in_is_sent_back_with_a_code_that_gives_a_token(home: Caller) -> None:
    answer = browser(home).get("/oauth2/authorize", CLI)
    target = urlsplit(answer["location"])
    query = parse_qs(target.query)
    assert (answer.status_code, target.netloc, query["state"]) == (302, "localhost:9615", ["s t"])
    bearer = f"Bearer {redeem(home, query['code'][0]).json()['access_token']}"
    assert home.send("GET", "/auth/me", authorization=bearer).json()["user"]["email"] == home.email


def test_the_challenge_of_the_authorization_counts_at_the_token_endpoint(home: Caller) -> None:
    verifier = uuid.uuid4().hex * 2
    challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
    pkce = {"code_challenge": challenge, "code_challenge_method": "S256"}
    for given, status in (({}, 400), ({"code_verifier": verifier}, 200)):
        answer = browser(home).get("/oauth2/authorize", CLI | pkce)
        code = parse_qs(urlsplit(answer["location"]).query)["code"][0]
        assert redeem(home, code, **given).status_code == status


@pytest.mark.parametrize("signed_in", [True, False])
def test_signing_in_comes_first_where_needed_and_leads_back_by_a_page(
    home: Caller, *, signed_in: bool
) -> None:
    visitor = browser(home if signed_in else None)
    answer = visitor.get("/oauth2/authorize", CLI | {"prompt": "login"})
    sign_in = urlsplit(answer["location"])
    query = parse_qs(sign_in.query)
    assert (answer.status_code, sign_in.path, "switch" in query) == (302, "/signin", signed_in)
    back = browser(home).get(query["next"][0])
    assert back.status_code == 200
    assert back["refresh"].startswith("0; url=http://localhost:9615?code=")


@pytest.mark.parametrize(
    "change",
    [
        {"client_id": "unheard"},
        {"client_id": ""},
        {"redirect_uri": "https://evil.example"},
        {"redirect_uri": "http://localhost:9615/other"},
    ],
)
def test_an_unknown_client_or_redirect_uri_is_never_redirected_to(
    home: Caller, change: dict[str, str]
) -> None:
    answer = browser(home).get("/oauth2/authorize", CLI | change)
    assert (answer.status_code, answer["content-type"]) == (400, "text/plain; charset=utf-8")
    assert answer.content


def test_other_faults_go_back_to_the_client(home: Caller) -> None:
    for visitor, change, error in (
        (browser(None), {"prompt": "none"}, "login_required"),
        (browser(home), {"response_type": "token"}, "unsupported_response_type"),
    ):
        answer = visitor.get("/oauth2/authorize", CLI | change)
        query = parse_qs(urlsplit(answer["location"]).query)
        assert (answer.status_code, query["error"], query["state"]) == (302, [error], ["s t"])


def test_a_client_of_a_project_signs_in_its_own_members_only(home: Caller, foreign: Caller) -> None:
    made = client_create(foreign.repository, name="App", redirectUris=["https://app.example/cb"])
    asked = CLI | {"client_id": made["id"], "redirect_uri": "https://app.example/cb"}
    assert browser(home).get("/oauth2/authorize", asked)["location"].startswith("/signin")
    assert (
        browser(foreign)
        .get("/oauth2/authorize", asked)["location"]
        .startswith("https://app.example/cb?code=")
    )


def test_tokens_are_introspected_by_clients_of_their_project(home: Caller, foreign: Caller) -> None:
    access = token(home)

    def introspect(caller: Caller, text: str, **headers: str) -> dict[str, Any]:
        body = urlencode({"token": text})
        return caller.send("POST", "/oauth2/introspect", body, content_type=FORM, **headers).json()

    found = introspect(home, access)
    assert found["active"] is True
    assert (found["client_id"], found["token_type"], found["scope"]) == (home.client_id, "Bearer", "openid")
    assert found["exp"] > time.time()
    assert introspect(foreign, access) == {"active": False}
    assert introspect(home, "nonsense") == {"active": False}
    assert "error" in introspect(home, access, authorization="")
    unsecret = {"token": access, "client_id": home.client_id}
    answer = home.send("POST", "/oauth2/introspect", urlencode(unsecret), content_type=FORM, authorization="")
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_client")


def test_a_revoked_token_is_over(home: Caller, foreign: Caller) -> None:
    access = token(home)
    body = urlencode({"token": access})
    assert foreign.send("POST", "/oauth2/revoke", body, content_type=FORM).status_code == 400
    assert home.send("GET", "Patient", authorization=f"Bearer {access}").status_code == 200
    assert home.send("POST", "/oauth2/revoke", body, content_type=FORM).status_code == 200
    assert home.send("GET", "Patient", authorization=f"Bearer {access}").status_code == 401
    unknown = urlencode({"token": "nonsense"})
    assert home.send("POST", "/oauth2/revoke", unknown, content_type=FORM).status_code == 200


def test_a_client_says_how_long_its_tokens_live_and_which_grants_it_uses(home: Caller) -> None:
    made = client_create(
        home.repository,
        name="App",
        redirectUris=["http://localhost:9615"],
        accessTokenLifetime="2h",
        refreshTokenLifetime="1d",
        grantType=["authorization_code", "refresh_token"],
    )
    client = Caller(home.project, made["id"], made["secret"], "", "")
    assert ask(client, credentials(client)).json()["error"] == "unauthorized_client"
    secret = {"client_id": made["id"], "client_secret": made["secret"]}
    asked = {"client": made["id"], "scope": "openid offline"}
    tokens = redeem(home, login_with_code(home, **asked), **secret).json()
    assert tokens["expires_in"] == 7200
    login = models.Login.objects.get(id=keys.verify(tokens["access_token"])["login_id"])  # type: ignore[index]
    assert login.refresh_expires is not None
    assert abs((login.refresh_expires - timezone.now()).total_seconds() - 86400) < 3600


def test_a_login_is_forgotten_only_when_none_of_its_tokens_can_be_used(home: Caller) -> None:
    long, short = timezone.now() - timedelta(days=30), timezone.now() - timedelta(hours=1)

    def aged(scope: str = "openid", **values: Any) -> tuple[str, dict[str, Any]]:
        """A login of a month ago, all of it over but for `values`."""
        tokens = redeem(home, login_with_code(home, scope=scope)).json()
        login_id = keys.verify(tokens["access_token"])["login_id"]  # type: ignore[index]
        over = {"auth_time": long, "code_expires": long, "access_expires": long}
        models.Login.objects.filter(id=login_id).update(**over | values)
        return login_id, tokens

    made = client_create(home.repository, name="App", accessTokenLifetime="999999w")
    app = Caller(home.project, made["id"], made["secret"], "", "")
    lasting = ask(app, credentials(app)).json()["access_token"]
    living = keys.verify(lasting)["login_id"]  # type: ignore[index]
    models.Login.objects.filter(id=living).update(auth_time=long)
    refreshable, tokens = aged("openid offline")
    kept = {living, refreshable, aged(access_expires=None)[0], aged(code_expires=timezone.now())[0]}
    kept |= {aged(revoked=short, access_expires=None)[0], aged(auth_time=short, access_expires=short)[0]}
    gone = {
        aged()[0],
        aged("offline", refresh_expires=long)[0],
        aged(revoked=long, access_expires=None)[0],
    }

    cleaning.forget_old_logins()
    left = {str(id) for id in models.Login.objects.filter(id__in=kept | gone).values_list("id", flat=True)}
    assert left == kept
    assert home.send("GET", "Patient", authorization=f"Bearer {lasting}").status_code == 200
    refresh = {"grant_type": "refresh_token", "client_id": "medplum-cli"}
    assert ask(home, {**refresh, "refresh_token": tokens["refresh_token"]}).status_code == 200
    login = models.Login.objects.get(id=refreshable)
    assert login.access_expires is not None
    assert login.access_expires > timezone.now(), "of the new access token"


def test_the_sweep_forgets_logins_and_sessions_that_are_over(home: Caller) -> None:
    long = timezone.now() - timedelta(days=30)
    access = token(home)
    logins = models.Login.objects.filter(id=keys.verify(access)["login_id"])  # type: ignore[index]
    logins.update(auth_time=long, access_expires=long)
    Session.objects.create(session_key="over", session_data="", expire_date=long)
    Session.objects.create(
        session_key="going", session_data="", expire_date=timezone.now() + timedelta(days=1)
    )
    sweep()
    assert not logins.exists()
    assert home.send("POST", "/oauth2/logout", {}, authorization=f"Bearer {access}").status_code == 401
    assert list(Session.objects.filter(session_key__in=("over", "going")).values_list("pk", flat=True)) == [
        "going"
    ]


def test_a_code_alone_opens_nothing(home: Caller) -> None:
    made = client_create(home.repository, name="App", redirectUris=["http://localhost:9615"])
    answer = redeem(home, login_with_code(home, client=made["id"]), client_id=made["id"])
    assert answer.json()["error_description"] == "Missing code_verifier or client_secret"
    optional = client_create(
        home.repository, name="App", redirectUris=["http://localhost:9615"], pkceOptional=True
    )
    answer = redeem(home, login_with_code(home, client=optional["id"]), client_id=optional["id"])
    assert answer.status_code == 200


def test_only_a_secret_introspects(home: Caller) -> None:
    access, nobody = token(home), base64.b64encode(f"{home.client_id}:".encode()).decode()
    for authorization in (f"Basic {nobody}", "Bearer x"):
        body = urlencode({"token": access, "client_id": home.client_id})
        answer = home.send("POST", "/oauth2/introspect", body, content_type=FORM, authorization=authorization)
        assert (answer.status_code, answer.json()["error"]) == (400, "invalid_client")


def test_an_id_token_is_no_token_of_ours(home: Caller) -> None:
    about = ask(home, credentials(home)).json()["id_token"]
    assert home.send("GET", "Patient", authorization=f"Bearer {about}").status_code == 401
    answer = home.send("POST", "/oauth2/introspect", urlencode({"token": about}), content_type=FORM)
    assert answer.json() == {"active": False}


def test_a_code_ends_with_its_login(home: Caller) -> None:
    code = login_with_code(home, revoked=timezone.now())
    assert redeem(home, code).json()["error"] == "invalid_grant"


def test_a_refresh_token_ends_with_the_membership(home: Caller) -> None:
    made = home.send(
        "POST",
        f"/admin/projects/{home.project}/invite",
        {
            "resourceType": "Practitioner",
            "firstName": "Eve",
            "lastName": "Jones",
            "email": f"{uuid.uuid4()}@example.com",
        },
    ).json()
    code = login_with_code(home, scope="openid offline", membership=made["id"])
    fields = {"grant_type": "refresh_token", "client_id": "medplum-cli"}
    fields["refresh_token"] = redeem(home, code).json()["refresh_token"]
    home.send("DELETE", f"/admin/projects/{home.project}/members/{made['id']}")
    answer = ask(home, fields)
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_grant")


@pytest.mark.parametrize("scope", ["openid\0", "openid " * 400])
def test_scopes_that_nothing_can_hold_are_refused(home: Caller, scope: str) -> None:
    answer = ask(home, credentials(home) | {"scope": scope})
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_request")
    answer = browser(home).get("/oauth2/authorize", CLI | {"scope": scope})
    assert answer.status_code in (302, 400)


@pytest.mark.parametrize("body", ["a=" + "x" * 11_000_000, "&".join(f"a{n}=" for n in range(2000))])
def test_a_form_may_be_too_large(home: Caller, body: str) -> None:
    answer = home.send("POST", "/oauth2/token", body, content_type=FORM, authorization="")
    assert (answer.status_code, answer.json()["id"]) == (413, "content-too-large")
