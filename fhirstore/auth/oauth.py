"""The OAuth 2 token endpoint, on authlib's authorization server.

authlib decides what a grant needs and in which order it is checked; here stand the clients, what a login is, and the
tokens. Errors say what Medplum's say: ``invalid_request`` with status 400 and a short description.
"""

from __future__ import annotations

import base64
import binascii
import functools
import re
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any, Final

from authlib.oauth2 import AuthorizationServer, OAuth2Request
from authlib.oauth2.rfc6749 import (
    ClientMixin,
    InvalidClientError,
    InvalidGrantError,
    InvalidRequestError,
    OAuth2Error,
    TokenEndpoint,
    UnsupportedGrantTypeError,
    grants,
)
from authlib.oauth2.rfc6749.requests import BasicOAuth2Payload
from authlib.oauth2.rfc7009 import RevocationEndpoint
from authlib.oauth2.rfc7636 import CodeChallenge
from authlib.oauth2.rfc7662 import IntrospectionEndpoint
from django.conf import settings
from django.db.models import DateTimeField, Q, Value
from django.db.models.functions import Greatest
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.utils import timezone

from fhirstore import models
from fhirstore.auth import identities, keys, throttle
from fhirstore.errors import FhirError
from fhirstore.identity import Identity, system_identity
from fhirstore.repository import Repository

LIFETIME: Final = 3600
"""Seconds an access token lives, unless the ClientApplication says otherwise."""
SHORTEST_LIFETIME: Final = 360
"""Medplum's client takes a token that lives five minutes or less as expired already."""
REFRESH_LIFETIME: Final = 14 * 86400
"""Seconds a refresh token works, unless the ClientApplication says otherwise."""
LONGEST_LIFETIME: Final = 100 * 365 * 86400
"""Seconds of any token, however many weeks the ClientApplication says: what comes after has to be a date still."""
REFRESH_OVERLAP: Final = timedelta(minutes=1)
"""How long the former refresh token is still taken after a rotation: answers get lost."""
CODE_LIFETIME: Final = timedelta(minutes=5)
MAX_SCOPE: Final = 1000
"""Characters of a login's scopes."""

APP: Final = ""
"""The client of a login by ``POST /auth/login`` that names none: whoever has the password."""

BUILT_IN_CLIENTS: Final[dict[str, tuple[str, ...]]] = {"medplum-cli": ("http://localhost:9615",), APP: ()}
"""Public clients of every project, with their redirect URIs: Medplum's command line, and nobody in particular."""

_DURATION = re.compile(r"(\d{1,6})([smhdw])")
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_METHOD: Final = "fhirbots"


@dataclass(frozen=True)
class Client(ClientMixin):
    """A client of the token endpoint: a ClientApplication or a built-in public client (`project` None)."""

    id: str
    project: str | None = None

    @cached_property
    def resource(self) -> dict[str, Any]:
        """The ClientApplication; for a built-in client what it would say."""
        if self.project is None:
            return {"redirectUris": list(BUILT_IN_CLIENTS[self.id]), "pkceOptional": True}
        return Repository(system_identity(self.project)).read("ClientApplication", self.id).resource

    @property
    def redirect_uris(self) -> list[str]:
        """The addresses a code may be sent to."""
        single = self.resource.get("redirectUri")
        return [*self.resource.get("redirectUris", ()), *([single] if single else [])]

    @property
    def lifetime(self) -> int:
        """Seconds an access token of this client lives."""
        return max(SHORTEST_LIFETIME, _seconds(self.resource.get("accessTokenLifetime"), LIFETIME))

    @property
    def refresh_lifetime(self) -> timedelta:
        """How long a refresh token of this client works."""
        return timedelta(seconds=_seconds(self.resource.get("refreshTokenLifetime"), REFRESH_LIFETIME))

    def get_client_id(self) -> str:
        return self.id

    def get_default_redirect_uri(self) -> str:
        return self.redirect_uris[0] if self.redirect_uris else ""

    def get_allowed_scope(self, scope: str) -> str:
        return scope or "openid"

    def check_redirect_uri(self, redirect_uri: str) -> bool:
        return redirect_uri in self.redirect_uris

    def check_client_secret(self, client_secret: str) -> bool:
        return (
            self.project is not None and identities.project_of_client(self.id, client_secret) == self.project
        )

    def check_endpoint_auth_method(self, method: str, endpoint: str) -> bool:
        return True

    def check_response_type(self, response_type: str) -> bool:
        return response_type == "code" and self.id != APP

    def check_grant_type(self, grant_type: str) -> bool:
        allowed = self.resource.get("grantType") or (
            "authorization_code",
            "refresh_token",
            *(["client_credentials"] if self.project else ()),
        )
        return grant_type in allowed


def _seconds(duration: str | None, default: int) -> int:
    """``1h`` and the like in seconds; the default for anything else."""
    found = _DURATION.fullmatch(duration or "")
    return min(int(found[1]) * _UNITS[found[2]], LONGEST_LIFETIME) if found else default


class LoginRequiredError(OAuth2Error):
    """``prompt=none``, but nobody is signed in (OpenID Connect Core §3.1.2.6)."""

    error = "login_required"


class Request(OAuth2Request):
    """Django's request in authlib's words. That the way to the server is secure is BASE_URL's and the proxy's matter."""

    def __init__(self, request: HttpRequest) -> None:
        super().__init__(
            request.method or "", f"https://localhost{request.path}", headers=dict(request.headers)
        )
        given = {**request.GET.dict(), **request.POST.dict()}
        if any("\0" in value for value in given.values()):
            raise InvalidRequestError("Null characters are not allowed")
        self.payload = BasicOAuth2Payload(given)
        self.django = request

    @property
    def form(self) -> dict[str, str]:
        return self.django.POST.dict()

    @property
    def args(self) -> dict[str, str]:
        return self.django.GET.dict()


class Server(AuthorizationServer):
    """authlib's server on Django, with Medplum's words for errors."""

    def __init__(self) -> None:
        super().__init__()
        self.register_client_auth_method(_METHOD, _authenticate_client)
        self.register_token_generator("default", _tokens)
        self.register_grant(ClientCredentials)
        self.register_grant(AuthorizationCode, [CodeChallenge(required=False)])
        self.register_grant(RefreshToken)
        self.register_endpoint(Introspection)
        self.register_endpoint(Revocation)

    def query_client(self, client_id: str) -> Client | None:
        if client_id in BUILT_IN_CLIENTS:
            return Client(client_id)
        if not identities.is_uuid(client_id):
            return None
        row = models.ClientCredential.objects.filter(client=client_id).first()
        client = Client(client_id, str(row.project)) if row else None
        return client if client and client.resource.get("status", "active") == "active" else None

    def get_token_grant(self, request: OAuth2Request) -> Any:
        if not request.payload.grant_type:
            raise InvalidRequestError("Missing grant_type")
        try:
            return super().get_token_grant(request)
        except UnsupportedGrantTypeError:
            raise InvalidRequestError("Unsupported grant_type") from None

    def create_token_response(self, request: HttpRequest | None = None) -> HttpResponse:
        try:
            answer: HttpResponse = super().create_token_response(request)
        except OAuth2Error as error:
            answer = self.handle_error_response(request, error)
        except FhirError as error:
            if error.status == 401:  # the membership behind a code or refresh token has ended
                answer = self.handle_error_response(request, InvalidGrantError("Login ended"))
            else:  # too many failures
                body = {"error": "slow_down", "error_description": str(error)}
                answer = self.handle_response(error.status, body, list(error.headers.items()))
        return answer

    def answer(self, endpoint: type[TokenEndpoint], request: HttpRequest) -> HttpResponse:
        """Answer a request to one of the endpoints beside the token endpoint."""
        try:
            answer: HttpResponse = self.create_endpoint_response(endpoint.ENDPOINT_NAME, request)
        except OAuth2Error as error:
            answer = self.handle_error_response(request, error)
        return answer

    def save_token(self, token: dict[str, Any], request: OAuth2Request) -> None:
        """Nothing to do: the Login behind a token was saved before the token was made."""

    def send_signal(self, name: str, *args: Any, **kwargs: Any) -> None:
        """Nobody listens."""

    def create_oauth2_request(self, request: HttpRequest | OAuth2Request) -> OAuth2Request:
        return request if isinstance(request, OAuth2Request) else Request(request)

    def handle_response(self, status: int, body: Any, headers: list[tuple[str, str]]) -> HttpResponse:
        answer = (
            JsonResponse(body, status=status) if isinstance(body, dict) else HttpResponse(body, status=status)
        )
        for name, value in headers:
            answer[name] = value
        return answer


def _credentials(request: Request) -> tuple[str | None, str | None]:
    """Id and secret of the client of a request: by Basic, which comes first, or by the form; raises InvalidRequestError."""
    scheme, _, encoded = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "basic":
        return request.form.get("client_id"), request.form.get("client_secret")
    try:
        client_id, _, secret = base64.b64decode(encoded, validate=True).decode().partition(":")
    except (binascii.Error, ValueError):
        raise InvalidRequestError("Invalid authorization header") from None
    return client_id, secret


def _authenticate_client(query_client: Any, request: Request) -> Client:
    """Return the client of a token request.

    Raises:
        InvalidRequestError: in Medplum's words.
    """
    client_id, secret = _credentials(request)
    grant_type = request.payload.grant_type
    if not client_id and grant_type not in ("authorization_code", "refresh_token"):
        raise InvalidRequestError("Missing client_id")
    client: Client | None = query_client(client_id or APP)
    if client is None:
        raise InvalidRequestError("Invalid client")
    if secret:
        address = request.django.META.get("REMOTE_ADDR", "")
        throttle.check(client.id, address)
        if not client.check_client_secret(secret):
            throttle.failed(client.id, address)
            raise InvalidRequestError("Invalid secret")
    elif grant_type == "client_credentials":
        raise InvalidRequestError("Missing client_secret")
    elif grant_type == "authorization_code" and not (
        request.form.get("code_verifier") or client.resource.get("pkceOptional")
    ):
        # a code alone proves nothing: it may have been read on its way
        raise InvalidRequestError("Missing code_verifier or client_secret")
    return client


class ClientCredentials(grants.ClientCredentialsGrant):
    """``client_credentials``: the client acts as its own ProjectMembership."""

    TOKEN_ENDPOINT_AUTH_METHODS = [_METHOD]

    def create_token_response(self) -> tuple[int, dict[str, Any], list[tuple[str, str]]]:
        client: Client = self.request.client
        profile = f"ClientApplication/{client.id}"
        membership = client.project and identities.membership_of_profile(client.project, profile)
        if not membership:
            raise InvalidRequestError("Invalid client")
        login = login_start(
            self.request.django,
            membership=membership,
            client=client.id,
            auth_method="client",
            scope=self.request.payload.scope or "openid",
        )
        return 200, self.generate_token(user=login, include_refresh_token=False), self.TOKEN_RESPONSE_HEADER


@dataclass(frozen=True)
class Grant:
    """A login as a code or refresh token refers to it, in authlib's words."""

    login: models.Login

    @property
    def code_challenge(self) -> str:
        return self.login.code_challenge

    @property
    def code_challenge_method(self) -> str | None:
        return self.login.code_challenge_method or None

    def get_redirect_uri(self) -> str:
        return self.login.redirect_uri

    def get_scope(self) -> str:
        return self.login.scope

    def check_client(self, client: Client) -> bool:
        return self.login.client == client.id


class AuthorizationCode(grants.AuthorizationCodeGrant):
    """``authorization_code``, with PKCE where the authorization asked for it. A code works once."""

    TOKEN_ENDPOINT_AUTH_METHODS = [_METHOD]

    def save_authorization_code(self, code: str, request: OAuth2Request) -> None:
        """Keep the digest of the code in the login that `request.user` is."""
        login: models.Login = request.user
        login.redirect_uri = request.payload.redirect_uri or ""
        login_set_code(
            login,
            code,
            request.payload.data.get("code_challenge", ""),
            request.payload.data.get("code_challenge_method", ""),
        )

    def query_authorization_code(self, code: str, client: Client) -> Grant:
        """Redeem a code. A second use means it was stolen: the login it belongs to is revoked."""
        logins = models.Login.objects.filter(
            code_digest__in=keys.digests(code), client=client.id, revoked=None
        )
        login = logins.first()
        if login is None or login.code_expires is None or login.code_expires < timezone.now():
            raise InvalidGrantError("Invalid code")
        if not models.Login.objects.filter(id=login.id, granted=None).update(granted=timezone.now()):
            login_revoke(login)
            raise InvalidGrantError("Token already granted")
        return Grant(login)

    def authenticate_user(self, authorization_code: Grant) -> models.Login:
        return authorization_code.login

    def delete_authorization_code(self, authorization_code: Grant) -> None:
        """Nothing to do: it was marked when it was read, so that two requests cannot both have it."""


class RefreshToken(grants.RefreshTokenGrant):
    """``refresh_token``: every use gives a new one; the former one works for another minute."""

    TOKEN_ENDPOINT_AUTH_METHODS = [_METHOD]
    INCLUDE_NEW_REFRESH_TOKEN = True

    def authenticate_refresh_token(self, refresh_token: str) -> Grant:
        now, digests = timezone.now(), keys.digests(refresh_token)
        login = (
            models.Login.objects.filter(revoked=None, refresh_expires__gt=now)
            .filter(
                Q(refresh_digest__in=digests)
                | Q(refresh_previous_digest__in=digests, refresh_rotated__gt=now - REFRESH_OVERLAP)
            )
            .first()
        )
        if login is None:
            raise InvalidGrantError("Invalid token")
        return Grant(login)

    def authenticate_user(self, refresh_token: Grant) -> models.Login:
        return refresh_token.login

    def revoke_old_credential(self, refresh_token: Grant) -> None:
        """Nothing to do: making the new token has retired the old one."""


# --- tokens that are shown to us ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Issued:
    """A token this server has issued, in authlib's words.

    Attributes:
        login: it stands for.
        claims: of an access token; empty for a refresh token.
    """

    login: models.Login
    claims: Mapping[str, Any]

    def check_client(self, client: Client) -> bool:
        return self.login.client == client.id

    def is_expired(self) -> bool:
        expires = self.claims.get("exp") or (self.login.refresh_expires or timezone.now()).timestamp()
        return bool(expires <= time.time())

    def is_revoked(self) -> bool:
        return self.login.revoked is not None


def _issued(token: str) -> Issued | None:
    """The login behind an access or refresh token; None for any other text, an id token too: it opens nothing."""
    claims = keys.verify(token)
    if claims and claims.get("aud") != settings.BASE_URL:
        return None
    login_id = str(claims.get("login_id")) if claims else token.partition(".")[0]
    login = models.Login.objects.filter(id=login_id).first() if identities.is_uuid(login_id) else None
    if login is None or not (claims or keys.is_digest_of(login.refresh_digest, token)):
        return None
    return Issued(login, claims or {})


def _authenticate_confidential(request: Request, server: Server) -> Client:
    """The client of a request that only somebody with a secret may send; raises InvalidClientError."""
    client = _authenticate_client(server.query_client, request)
    if not _credentials(request)[1]:
        raise InvalidClientError("Missing client_secret")
    return client


class Introspection(IntrospectionEndpoint):
    """``POST /oauth2/introspect`` (RFC 7662): clients learn about the tokens of their own project, of no others."""

    def authenticate_endpoint_client(self, request: Request) -> Client:
        return _authenticate_confidential(request, self.server)

    def query_token(self, token_string: str, token_type_hint: str | None) -> Issued | None:
        return _issued(token_string)

    def check_permission(self, token: Issued, client: Client, request: OAuth2Request) -> bool:
        return str(token.login.project) == client.project

    def introspect_token(self, token: Issued) -> dict[str, Any]:
        expires = token.login.refresh_expires
        about = dict(token.claims) or {"exp": int(expires.timestamp()) if expires else None}
        return {
            "active": True,
            "token_type": "Bearer",
            "client_id": token.login.client,
            "scope": token.login.scope,
            **about,
        }


class Revocation(RevocationEndpoint):
    """``POST /oauth2/revoke`` (RFC 7009): ends the login, and so every token of it. Public clients may end their own."""

    def authenticate_endpoint_client(self, request: Request) -> Client:
        return _authenticate_client(self.server.query_client, request)

    def query_token(self, token_string: str, token_type_hint: str | None) -> Issued | None:
        return _issued(token_string)

    def revoke_token(self, token: Issued, request: OAuth2Request) -> None:
        login_revoke(token.login)


# --- logins and tokens ------------------------------------------------------------------------------------------------


def login_start(
    request: HttpRequest,
    *,
    membership: str,
    client: str,
    auth_method: str,
    scope: str = "openid",
    user: models.User | None = None,
    nonce: str = "",
) -> models.Login:
    """Record a sign-in.

    Args:
        request: from where.
        membership: id of the ProjectMembership that acts.
        client: id of the client.
        auth_method: how: ``client``, ``password`` and so on.
        scope: OAuth scopes, separated by spaces.
        user: the person, None for a client itself.
        nonce: of OpenID Connect, repeated in the id token.

    Raises:
        InvalidRequestError: membership, project or client are not active, or there are too many scopes.
    """
    if len(scope) > MAX_SCOPE:
        raise InvalidRequestError(f"scope is too long: at most {MAX_SCOPE} characters")
    try:
        identity = identities.identity_of_membership(membership)
    except FhirError:
        raise InvalidRequestError("Invalid client") from None
    return models.Login.objects.create(
        project=identity.project,
        membership=membership,
        user=user,
        client=client,
        auth_method=auth_method,
        scope=scope,
        nonce=nonce,
        remote_address=request.META.get("REMOTE_ADDR") or None,
        user_agent=request.headers.get("User-Agent", "")[:500],
        access_expires=timezone.now(),
    )


def login_set_code(login: models.Login, code: str, challenge: str = "", challenge_method: str = "") -> None:
    """Make a login redeemable by `code`, once and for :data:`CODE_LIFETIME`, with the verifier of `challenge` (PKCE)."""
    login.code_digest, login.code_expires = keys.digest(code), timezone.now() + CODE_LIFETIME
    login.code_challenge, login.code_challenge_method = challenge, challenge_method
    login.save()


def login_revoke(login: models.Login) -> None:
    """End a login: its tokens are refused from now on, by every process."""
    models.Login.objects.filter(id=login.id, revoked=None).update(revoked=timezone.now())
    identities.invalidate(str(login.project))


def _tokens(
    grant_type: str,
    client: Client,
    user: models.Login,
    scope: str | None = None,
    expires_in: int | None = None,
    include_refresh_token: bool = True,
) -> dict[str, Any]:
    """Make the answer of the token endpoint for a login (authlib's `user` is our login)."""
    login, now, lifetime = user, int(time.time()), client.lifetime
    identity = identities.identity_of_membership(str(login.membership))
    subject = str(login.user_id) if login.user_id else login.client
    common = {
        "login_id": str(login.id),
        "sub": subject,
        "iss": settings.BASE_URL,
        "iat": now,
        "nbf": now,
        "exp": now + lifetime,
    }
    access = {
        "client_id": client.id,
        "username": login.user.email if login.user else subject,
        "scope": login.scope,
        "profile": identity.profile,
        "aud": settings.BASE_URL,
        "jti": str(uuid.uuid4()),
    }
    # before the token is given away; a former one may last longer
    expires = datetime.fromtimestamp(now + lifetime, UTC)
    models.Login.objects.filter(id=login.id).update(
        access_expires=Greatest("access_expires", Value(expires, output_field=DateTimeField()))
    )
    about = {"aud": client.id, "fhirUser": identity.profile, "auth_time": int(login.auth_time.timestamp())}
    if login.nonce:
        about["nonce"] = login.nonce
    answer = {
        "token_type": "Bearer",
        "expires_in": lifetime,
        "scope": login.scope,
        "access_token": keys.sign({**common, **access}),
        "id_token": keys.sign({**common, **about}),
        "project": project_reference(identity),
        "profile": {"reference": identity.profile, "display": identity.profile_display},
    }
    if include_refresh_token and (login.refresh_digest or _wants_refresh(login.scope)):
        answer["refresh_token"] = _rotate_refresh_token(login, client.refresh_lifetime)
    return answer


def _wants_refresh(scope: str) -> bool:
    return not {"offline_access", "offline"}.isdisjoint(scope.split())


def _rotate_refresh_token(login: models.Login, lifetime: timedelta) -> str:
    """Give a login a new refresh token; the former one keeps working for a short while."""
    token, now = f"{login.id}.{keys.new_secret()}", timezone.now()
    login.refresh_previous_digest, login.refresh_rotated = login.refresh_digest, now
    login.refresh_digest, login.refresh_expires = keys.digest(token), now + lifetime
    login.save(
        update_fields=["refresh_previous_digest", "refresh_rotated", "refresh_digest", "refresh_expires"]
    )
    return token


def project_reference(identity: Identity) -> dict[str, Any]:
    """Reference of an identity's project, with its name."""
    project = Repository(system_identity(identity.project)).read("Project", identity.project).resource
    return {"reference": f"Project/{identity.project}", "display": project.get("name")}


@functools.cache
def server() -> Server:
    """The authorization server of this process."""
    return Server()
