"""The endpoints of login: OAuth 2 and OpenID Connect, discovery, and ``auth/me``."""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import urlencode

import orjson
from authlib.oauth2 import OAuth2Error
from django.conf import settings
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.http.response import HttpResponseBase
from django.utils.html import format_html

from fhirstore import models
from fhirstore.auth import identities, keys, oauth
from fhirstore.binaries import presign_urls
from fhirstore.errors import FhirError, all_ok
from fhirstore.identity import system_identity
from fhirstore.repository import Repository
from fhirstore.rest.http import endpoint, json_response
from fhirstore.rest.messages import FHIR_JSON

FAVORITES: Final = (
    "Patient",
    "Practitioner",
    "Organization",
    "ServiceRequest",
    "DiagnosticReport",
    "Questionnaire",
)
SESSION_MEMBERSHIP: Final = "membership"
"""Session key under which the console keeps the ProjectMembership chosen at sign-in."""
SIGNED_IN: Final = "signed_in"
"""Query parameter of ``authorize`` that says: this comes from the console's sign-in form."""

ADMINISTRATION: Final = {
    "Project": "/admin/project",
    "AccessPolicy": "/AccessPolicy",
    "Subscriptions": "/Subscription",
    "Bots": "/Bot",
}


@endpoint("POST", public=True)
def token(request: HttpRequest) -> HttpResponseBase:
    """``POST /oauth2/token`` (RFC 6749 §3.2)."""
    if request.content_type != "application/x-www-form-urlencoded":
        return HttpResponse("Unsupported content type", status=400, content_type="text/plain; charset=utf-8")
    return oauth.server().create_token_response(request)


@endpoint("POST", public=True)
def introspect(request: HttpRequest) -> HttpResponseBase:
    """``POST /oauth2/introspect`` (RFC 7662)."""
    return oauth.server().answer(oauth.Introspection, request)


@endpoint("POST", public=True)
def revoke(request: HttpRequest) -> HttpResponseBase:
    """``POST /oauth2/revoke`` (RFC 7009)."""
    return oauth.server().answer(oauth.Revocation, request)


@endpoint("GET", public=True)
def authorize(request: HttpRequest) -> HttpResponse:
    """``GET /oauth2/authorize`` (RFC 6749 §3.1): send whoever is signed in to the console back to a client with a code.

    Not signed in, or asked to sign in again (``prompt=login``): the console's sign-in comes first, where the project is
    chosen too. A client or redirect URI that is not known gets a plain 400, never a redirect.
    """
    server = oauth.server()
    try:
        grant = server.get_consent_grant(request)
        prompts = request.GET.get("prompt", "").split()
        membership = None if "login" in prompts else _membership_of_session(request, grant.request.client)
        if membership is None:
            if "none" in prompts:
                raise oauth.LoginRequiredError(
                    redirect_uri=grant.redirect_uri, state=grant.request.payload.state
                )
            return _to_sign_in(request)
        login = oauth.login_start(
            request,
            membership=membership,
            client=grant.request.client.id,
            auth_method="password",
            scope=grant.request.scope or "openid",
            user=request.user if isinstance(request.user, models.User) else None,
            nonce=request.GET.get("nonce", "")[:1000],
        )
        answer: HttpResponse = server.create_authorization_response(
            grant.request, grant_user=login, grant=grant
        )
    except OAuth2Error as error:
        answer = server.handle_error_response(None, error)
        if not error.redirect_uri:
            text = error.get_error_description() or error.error
            answer = HttpResponse(text, status=400, content_type="text/plain; charset=utf-8")
    return _after_form(answer) if SIGNED_IN in request.GET else answer


def _membership_of_session(request: HttpRequest, client: oauth.Client) -> str | None:
    """The membership chosen at the console's sign-in, if it is the person's own and in the client's project."""
    chosen = request.session.get(SESSION_MEMBERSHIP)
    if not isinstance(request.user, models.User) or not chosen:
        return None
    for membership in identities.memberships_of_user(request.user):
        if membership.id == chosen and client.project in (None, membership.project):
            return membership.id
    return None


def _to_sign_in(request: HttpRequest) -> HttpResponse:
    """Redirect to the console's sign-in, which comes back here; who is signed in already chooses a project there."""
    query = request.GET.copy()
    query.pop("prompt", None)
    query[SIGNED_IN] = "1"
    following = {"next": f"{request.path}?{query.urlencode()}"}
    if request.user.is_authenticated:
        following["switch"] = "1"
    return HttpResponseRedirect(f"{settings.LOGIN_URL}?{urlencode(following)}")


def _after_form(answer: HttpResponse) -> HttpResponse:
    """The same redirect as a page of its own: a browser does not let a form (the sign-in) lead to another site."""
    target = answer.headers.get("Location")
    if target is None:
        return answer
    page = format_html('<!doctype html><title>Signed in</title><p><a href="{}">Continue</a></p>', target)
    return HttpResponse(page, headers={"Refresh": f"0; url={target}"})


@endpoint("POST")
def logout(request: HttpRequest, repository: Repository) -> HttpResponse:
    """``POST /oauth2/logout``: end the login the token belongs to."""
    if login_id := repository.identity.login:
        oauth.login_revoke(models.Login.objects.get(id=login_id))
    return HttpResponse(orjson.dumps(all_ok()), content_type=FHIR_JSON)


@endpoint("GET", "POST")
def userinfo(request: HttpRequest, repository: Repository) -> HttpResponse:
    """``GET /oauth2/userinfo`` (OpenID Connect): what the scopes of the login allow to tell."""
    identity = repository.identity
    login = models.Login.objects.select_related("user").get(id=identity.login) if identity.login else None
    scopes = set(login.scope.split()) if login else {"openid"}
    user = login.user if login else None
    answer: dict[str, Any] = {"sub": str(user.id) if user else identity.client}
    if "profile" in scopes or "fhirUser" in scopes:
        answer["profile"] = answer["fhirUser"] = identity.profile
    if user and "profile" in scopes:
        answer |= {
            "name": user.get_full_name(),
            "given_name": user.first_name,
            "family_name": user.last_name,
        }
    if user and "email" in scopes:
        answer["email"] = user.email
    return json_response(answer)


@endpoint("GET")
def me(request: HttpRequest, repository: Repository) -> HttpResponse:
    """``GET /auth/me``: who the caller is."""
    return json_response(describe(repository))


def describe(repository: Repository) -> dict[str, Any]:
    """Return what ``GET /auth/me`` answers: user, project, membership, profile, config and accessPolicy."""
    identity = repository.identity
    server = Repository(system_identity(identity.project))
    project = server.read("Project", identity.project).resource
    membership = server.read("ProjectMembership", identity.membership or "").resource
    profile: dict[str, Any] = orjson.loads(
        presign_urls(server.read_reference(identity.on_behalf_of or identity.profile).content, repository)
    )
    answer: dict[str, Any] = {
        "project": _pick(
            project, "resourceType", "id", "name", "features", "description", "strictMode", "superAdmin"
        ),
        "membership": _pick(membership, "resourceType", "id", "identifier", "user", "profile", "admin"),
        "profile": profile,
        "config": _config(server, membership, is_admin=identity.is_admin),
    }
    if (policy := _access_policy(server, membership)) is not None:
        answer["accessPolicy"] = policy
    kind, _, user_id = membership["user"]["reference"].partition("/")
    if kind == "User" and (user := models.User.objects.filter(id=user_id).first()):
        answer["user"] = {"resourceType": "User", "id": str(user.id), "email": user.email}
        answer["security"] = _security(user)
    return answer


def _config(server: Repository, membership: dict[str, Any], *, is_admin: bool) -> dict[str, Any]:
    """The membership's UserConfiguration, else the default menu."""
    if reference := (membership.get("userConfiguration") or {}).get("reference"):
        try:
            return server.read_reference(reference).resource
        except FhirError:
            pass  # it was deleted: the default will do
    menu = [{"title": "Favorites", "link": [{"name": name, "target": f"/{name}"} for name in FAVORITES]}]
    if is_admin:
        links = [{"name": name, "target": target} for name, target in ADMINISTRATION.items()]
        menu.append({"title": "Admin", "link": links})
    return {"resourceType": "UserConfiguration", "menu": menu}


def _access_policy(server: Repository, membership: dict[str, Any]) -> dict[str, Any] | None:
    """The policies of a membership as one AccessPolicy; None if it has none."""
    entries = identities.access_entries(membership)
    if not entries:
        return None
    resources: list[dict[str, Any]] = []
    for entry in entries:
        try:
            policy = server.read_reference(entry["policy"]["reference"]).resource
        except FhirError:
            continue  # it was deleted and grants nothing
        resources += policy.get("resource", ())
    based_on = [entry["policy"] for entry in entries]
    return {"resourceType": "AccessPolicy", "basedOn": based_on, "resource": resources}


def _security(user: models.User) -> dict[str, Any]:
    logins = models.Login.objects.filter(user=user, revoked=None).order_by("-auth_time")[:20]
    return {
        "mfaEnrolled": False,
        "mfaRequired": False,
        "sessions": [
            {
                "id": str(login.id),
                "lastUpdated": login.auth_time.isoformat(),
                "authMethod": login.auth_method,
                "remoteAddress": login.remote_address,
            }
            for login in logins
        ],
        "memberships": [
            {
                "id": each.id,
                "project": {"reference": f"Project/{each.project}", "display": each.project_name},
                "profile": {"reference": each.profile, "display": each.profile_display},
            }
            for each in identities.memberships_of_user(user)
        ],
    }


def _pick(resource: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: resource[name] for name in names if name in resource}


# --- discovery --------------------------------------------------------------------------------------------------------


@endpoint("GET", public=True)
def openid_configuration(request: HttpRequest) -> HttpResponse:
    """What this authorization server can do (OpenID Connect Discovery, RFC 8414, SMART App Launch)."""
    base = settings.BASE_URL
    return json_response(
        {
            "issuer": base,
            "authorization_endpoint": f"{base}oauth2/authorize",
            "token_endpoint": f"{base}oauth2/token",
            "userinfo_endpoint": f"{base}oauth2/userinfo",
            "introspection_endpoint": f"{base}oauth2/introspect",
            "revocation_endpoint": f"{base}oauth2/revoke",
            "jwks_uri": f"{base}.well-known/jwks.json",
            "grant_types_supported": ["client_credentials", "authorization_code", "refresh_token"],
            "response_types_supported": ["code"],
            "subject_types_supported": ["public"],
            "scopes_supported": ["openid", "profile", "email", "offline_access", "fhirUser"],
            "id_token_signing_alg_values_supported": [keys.ALGORITHM],
            "token_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post"],
            "code_challenge_methods_supported": ["S256", "plain"],
            "capabilities": ["client-confidential-symmetric", "permission-v1"],
        }
    )


@endpoint("GET", public=True)
def protected_resource(request: HttpRequest) -> HttpResponse:
    """Who issues tokens for this server (RFC 9728)."""
    base = settings.BASE_URL
    return json_response(
        {
            "resource": base,
            "issuer": base,
            "authorization_servers": [base],
            "scopes_supported": ["openid", "profile", "email", "offline_access", "fhirUser"],
            "bearer_methods_supported": ["header"],
            "introspection_endpoint": f"{base}oauth2/introspect",
        }
    )


@endpoint("GET", public=True)
def jwks(request: HttpRequest) -> HttpResponse:
    """The public keys of the tokens (RFC 7517)."""
    return json_response(keys.jwks())
