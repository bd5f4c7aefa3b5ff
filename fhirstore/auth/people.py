"""People signing in by API (``/auth/…``, shared/medplum/deploy-and-cli.md §9), on Django REST framework like the admin API.

``/auth/login`` answers with a code, which the client redeems at the token endpoint; a person with several projects first
chooses one by ``/auth/profile``.
"""

from __future__ import annotations

import re
import uuid
from typing import Any, Final

from django.core import signing
from django.core.exceptions import ValidationError
from django.http import HttpRequest
from django.utils.crypto import constant_time_compare, salted_hmac
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from fhirstore import models
from fhirstore.admin_api import ApiView
from fhirstore.auth import identities, keys, oauth
from fhirstore.auth.passwords import password_check, password_forgotten, password_link_user, password_set
from fhirstore.errors import all_ok, bad_request, not_found, unauthorized
from fhirstore.identity import Identity

CHOICE_SECONDS: Final = 600
"""Time to choose a project after the password was right."""

_CHALLENGE: Final = re.compile(r"[A-Za-z0-9\-._~]{43,128}")


# --- endpoints --------------------------------------------------------------------------------------------------------


class PublicView(ApiView):
    """An endpoint for people who are not signed in yet."""

    authentication_classes = []
    permission_classes = []


class LoginSerializer(serializers.Serializer[Any]):
    """``POST /auth/login``."""

    email = serializers.EmailField()
    password = serializers.CharField(trim_whitespace=False)
    scope = serializers.CharField(required=False, default="openid", max_length=900)
    nonce = serializers.CharField(required=False, default="", allow_blank=True, max_length=1000)
    projectId = serializers.CharField(required=False, allow_null=True, allow_blank=True)
    clientId = serializers.CharField(required=False, default="", allow_blank=True, allow_null=True)
    codeChallenge = serializers.RegexField(_CHALLENGE, required=False, default="", allow_blank=True)
    codeChallengeMethod = serializers.ChoiceField(["plain", "S256"], required=False, default="plain")
    remember = serializers.BooleanField(required=False, default=False)


class LoginView(PublicView):
    """``POST /auth/login``: ``{login, code}``, or ``{login, memberships}`` for a person of several projects."""

    body = LoginSerializer

    def post(self, request: Request) -> Response:
        given = self.given()
        user = password_check(request._request, given["email"], given.pop("password"))
        if user is None:
            raise bad_request("Email or password is invalid")
        client = oauth.server().query_client(given["clientId"] or oauth.APP)
        if client is None:
            raise bad_request("Invalid client", "clientId")
        wanted = given.pop("projectId", None) or client.project
        found = [each for each in identities.memberships_of_user(user) if wanted in (None, each.project)]
        if not found:
            raise bad_request("User is not a member of " + ("the project" if wanted else "any project"))
        if len(found) == 1:
            return Response(_start(request._request, user, found[0].id, given))
        choice = signing.dumps({"user": str(user.id), "proof": _proof(user), **given}, salt=__name__)
        return Response({"login": choice, "memberships": [_membership(each) for each in found]})


class ProfileView(PublicView):
    """``POST /auth/profile``: choose the project of a login."""

    def post(self, request: Request) -> Response:
        try:
            given = signing.loads(_field(request, "login"), salt=__name__, max_age=CHOICE_SECONDS)
        except signing.BadSignature:
            raise bad_request("Login is invalid or too old", "login") from None
        user = models.User.objects.filter(id=given.pop("user"), is_active=True).first()
        if user is None or not constant_time_compare(given.pop("proof"), _proof(user)):
            raise bad_request("Login is invalid or too old", "login")
        chosen = _field(request, "profile").removeprefix("ProjectMembership/")
        if chosen not in {each.id for each in identities.memberships_of_user(user)}:
            raise bad_request("Profile not found", "profile")
        return Response(_start(request._request, user, chosen, given))


def _proof(user: models.User) -> str:
    """Ties a login to the password it was begun with: with a new password it is over."""
    return salted_hmac(__name__, user.password).hexdigest()


def _start(request: HttpRequest, user: models.User, membership: str, given: dict[str, Any]) -> dict[str, str]:
    scope = given["scope"]
    if given["remember"] and "offline_access" not in scope.split():
        scope += " offline_access"
    login = oauth.login_start(
        request,
        membership=membership,
        client=given["clientId"] or oauth.APP,
        auth_method="password",
        scope=scope,
        user=user,
        nonce=given["nonce"],
    )
    code = keys.new_secret()
    method = given["codeChallengeMethod"] if given["codeChallenge"] else ""
    oauth.login_set_code(login, code, given["codeChallenge"], method)
    return {"login": str(login.id), "code": code}


def _membership(membership: identities.UserMembership) -> dict[str, Any]:
    """A membership as the chooser of a client shows it."""
    return {
        "id": membership.id,
        "project": {"reference": f"Project/{membership.project}", "display": membership.project_name},
        "profile": {"reference": membership.profile, "display": membership.profile_display},
    }


class MethodView(PublicView):
    """``POST /auth/method``: by which means an email address signs in. Always by password, known or not."""

    def post(self, request: Request) -> Response:
        return Response({"authorizeUrl": None, "domain": None})


class ChangePasswordSerializer(serializers.Serializer[Any]):
    """``POST /auth/changepassword``."""

    oldPassword = serializers.CharField(trim_whitespace=False)
    newPassword = serializers.CharField(trim_whitespace=False)


class ChangePasswordView(ApiView):
    """``POST /auth/changepassword``, by the person himself."""

    body = ChangePasswordSerializer

    def post(self, request: Request) -> Response:
        given = self.given()
        user = _person(self.repository.identity)
        if password_check(request._request, user.email, given["oldPassword"]) is None:
            raise bad_request("Incorrect password", "oldPassword")
        # who knows the old password need not be whom the address belongs to
        _set_password(user, given["newPassword"], "newPassword", project=user.password_project)
        return Response(all_ok())


class ResetPasswordSerializer(serializers.Serializer[Any]):
    """``POST /auth/resetpassword``."""

    email = serializers.EmailField()


class ResetPasswordView(PublicView):
    """``POST /auth/resetpassword``: mail a link to set a new password. The answer does not tell who has an account."""

    body = ResetPasswordSerializer

    def post(self, request: Request) -> Response:
        password_forgotten(request._request, self.given()["email"])
        return Response(all_ok())


class SetPasswordSerializer(serializers.Serializer[Any]):
    """``POST /auth/setpassword``."""

    id = serializers.CharField()
    secret = serializers.CharField()
    password = serializers.CharField(trim_whitespace=False)


class SetPasswordView(PublicView):
    """``POST /auth/setpassword``: with what stands in the link, ``/setpassword/{id}/{secret}``."""

    body = SetPasswordSerializer

    def post(self, request: Request) -> Response:
        given = self.given()
        user = password_link_user(given["id"], given["secret"])
        if user is None:
            raise bad_request("The link is used up or too old. Ask for a new one", "secret")
        _set_password(user, given["password"], "password")
        return Response(all_ok())


class RevokeView(ApiView):
    """``POST /auth/revoke`` with ``{loginId}``: end one of one's own sessions, as ``auth/me`` lists them."""

    def post(self, request: Request) -> Response:
        user, login_id = _person(self.repository.identity), _field(request, "loginId")
        login = (
            models.Login.objects.filter(id=login_id, user=user).first()
            if identities.is_uuid(login_id)
            else None
        )
        if login is None:
            raise not_found("Login not found")
        oauth.login_revoke(login)
        return Response(all_ok())


class ClientInfoView(PublicView):
    """``GET /auth/clientinfo/{id}``: what a sign-in page shows of a client."""

    def get(self, request: Request, client: str) -> Response:
        found = oauth.server().query_client(client) if client else None
        if found is None:
            raise not_found()
        names = ("resourceType", "id", "name", "signInForm")
        return Response({name: found.resource[name] for name in names if name in found.resource})


def _field(request: Request, name: str) -> str:
    """A text of the body; empty if there is none."""
    value = request.data.get(name) if isinstance(request.data, dict) else None
    return value if isinstance(value, str) else ""


def _person(identity: Identity) -> models.User:
    """The person behind a login; raises FhirError (401) for anybody else."""
    login = (
        models.Login.objects.select_related("user").filter(id=identity.login).first()
        if identity.login
        else None
    )
    if login is None or login.user is None:
        raise unauthorized(diagnostics="Only a person who has signed in can do this")
    return login.user


def _set_password(user: models.User, password: str, field: str, *, project: uuid.UUID | None = None) -> None:
    try:
        password_set(user, password, project=project)
    except ValidationError as error:
        raise bad_request(" ".join(error.messages), field) from None
