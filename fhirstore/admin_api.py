"""The project administration API (``/admin/projects/…``), on Django REST framework: its serializers read the bodies."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from django.core.exceptions import RequestDataTooBig
from rest_framework import serializers
from rest_framework.authentication import BaseAuthentication
from rest_framework.exceptions import APIException, MethodNotAllowed, ParseError, ValidationError
from rest_framework.parsers import JSONParser
from rest_framework.permissions import BasePermission
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from fhirstore.auth import accounts
from fhirstore.errors import (
    FhirError,
    all_ok,
    bad_request,
    forbidden,
    invalid_structure,
    issue,
    method_not_allowed,
    not_acceptable,
    not_found,
    server_error,
    unsupported_media_type,
)
from fhirstore.repository import Repository
from fhirstore.rest.http import form_too_large, read_headers, repository_of, trace_id
from fhirstore.rest.response import traced
from fhirstore.rest.router import log_failure


class PlainJsonParser(JSONParser):
    """JSON, of which too many levels are no server error."""

    def parse(self, *args: Any, **options: Any) -> Any:
        try:
            return super().parse(*args, **options)
        except RecursionError:
            raise ParseError from None


class FhirJsonParser(PlainJsonParser):
    """Medplum's client sends its JSON as FHIR JSON."""

    media_type = "application/fhir+json"


class ProjectAuthentication(BaseAuthentication):
    """The caller as a Repository: ``request.user``. Raises FhirError as the FHIR API does."""

    def authenticate(self, request: Request) -> tuple[Any, None]:
        headers = read_headers(request.META)
        return repository_of(request._request, headers, trace_id(headers)), None


class IsAdminOfProject(BasePermission):
    """The caller administers the project of the path; any other project looks like none."""

    def has_permission(self, request: Request, view: Any) -> bool:
        repository: Any = request.user
        accounts.require_admin(repository)
        if view.kwargs["project"] != repository.identity.project:
            raise not_found()
        return True


class ApiView(APIView):
    """An endpoint beside FHIR for whoever has a login. Bodies are JSON objects; every failure is an OperationOutcome."""

    body: type[serializers.Serializer[Any]] | None = None
    """What reads the body of a POST, where that is an object of known fields."""
    authentication_classes: Sequence[type[BaseAuthentication]] = [ProjectAuthentication]
    permission_classes: Sequence[type[BasePermission]] = []
    parser_classes = [PlainJsonParser, FhirJsonParser]
    renderer_classes = [JSONRenderer]

    @property
    def repository(self) -> Repository:
        """The caller's."""
        repository: Any = self.request.user
        return repository  # type: ignore[no-any-return]  # what ProjectAuthentication made

    def given(self) -> dict[str, Any]:
        """What :attr:`body` has read; raises ValidationError, which becomes an OperationOutcome."""
        if self.body is None:
            raise TypeError(f"{type(self).__name__} reads no body")
        serializer = self.body(data=self.request.data)
        serializer.is_valid(raise_exception=True)
        return dict(serializer.validated_data)

    def get_exception_handler(self) -> Callable[..., Response | None]:
        return _refuse


class AdminView(ApiView):
    """An endpoint for admins of the project in its path."""

    permission_classes = [IsAdminOfProject]


def _refuse(error: Exception, context: dict[str, Any]) -> Response:
    """Answer a failure with its outcome."""
    request_id = str(uuid.uuid4())
    refusal = _as_fhir_error(error, context)
    if refusal is None:
        log_failure(request_id, error)
        refusal = server_error(request_id)
    outcome = traced(refusal.outcome, request_id, trace_id(read_headers(context["request"].META)))
    return Response(outcome, status=refusal.status, headers=refusal.headers)


def _as_fhir_error(error: Exception, context: dict[str, Any]) -> FhirError | None:
    match error:
        case FhirError():
            return error
        case ValidationError():
            return invalid_structure(_issues(error.detail))
        case RequestDataTooBig():
            return form_too_large()
        case MethodNotAllowed():
            return method_not_allowed(
                method for method in context["view"].allowed_methods if method != "OPTIONS"
            )
        case APIException(status_code=415):
            return unsupported_media_type("Unsupported content type. Send application/json")
        case APIException(status_code=406):
            return not_acceptable("None of the formats in Accept is supported. Answers are application/json")
        case APIException(status_code=400):
            return bad_request("The request body is not valid JSON")
    return None


def _issues(detail: Any, where: str = "") -> list[dict[str, Any]]:
    """The messages of a serializer as issues, each with the field it is about."""
    if isinstance(detail, Mapping):
        found = []
        for name, inner in detail.items():
            path = where if name == "non_field_errors" else f"{where}.{name}" if where else str(name)
            found += _issues(inner, path)
        return found
    return [issue(str(message), expression=where or None) for message in detail]


def _required(message: str) -> dict[str, Any]:
    return {"error_messages": dict.fromkeys(("required", "blank", "null"), message)}


class ClientSerializer(serializers.Serializer[Any]):
    """``POST …/client``."""

    name = serializers.CharField(**_required("Client name is required"))
    description = serializers.CharField(required=False, allow_blank=True, allow_null=True)
    redirectUri = serializers.CharField(required=False, allow_blank=True, allow_null=True)
    redirectUris = serializers.ListField(child=serializers.CharField(), required=False)
    accessPolicy = serializers.DictField(required=False, allow_null=True)
    admin = serializers.BooleanField(required=False)


class InviteSerializer(serializers.Serializer[Any]):
    """``POST …/invite``; accessPolicy, access and admin beside ``membership`` are what Medplum's CLI sends."""

    resourceType = serializers.ChoiceField(accounts.PROFILE_TYPES)
    firstName = serializers.CharField(**_required("First name is required"))
    lastName = serializers.CharField(**_required("Last name is required"))
    email = serializers.EmailField(required=False, allow_blank=True, allow_null=True)
    externalId = serializers.CharField(required=False, allow_null=True, max_length=200)
    sendEmail = serializers.BooleanField(required=False, default=False)
    password = serializers.CharField(required=False, trim_whitespace=False)
    patient = serializers.DictField(required=False)
    membership = serializers.DictField(required=False)
    accessPolicy = serializers.DictField(required=False, allow_null=True)
    access = serializers.ListField(child=serializers.DictField(), required=False)
    admin = serializers.BooleanField(required=False)
    upsert = serializers.BooleanField(required=False, default=False)
    forceNewMembership = serializers.BooleanField(required=False, default=False)


class ProjectView(AdminView):
    """``GET projects/{id}``."""

    def get(self, request: Request, project: str) -> Response:
        resource = self.repository.read("Project", project).resource
        names = ("id", "name", "setting", "secret", "site")
        return Response({"project": {name: resource[name] for name in names if name in resource}})


class ClientView(AdminView):
    """``POST projects/{id}/client``: the answer is the only one that ever shows the secret."""

    body = ClientSerializer

    def post(self, request: Request, project: str) -> Response:
        given = self.given()
        membership: dict[str, Any] = {
            name: given.pop(name) for name in ("accessPolicy", "admin") if name in given
        }
        single = given.pop("redirectUri", None)
        if single:
            given.setdefault("redirectUris", [single])
        client = accounts.client_create(
            self.repository, membership=membership, **{name: value for name, value in given.items() if value}
        )
        return Response(client, status=201)


class InviteView(AdminView):
    """``POST projects/{id}/invite``."""

    body = InviteSerializer

    def post(self, request: Request, project: str) -> Response:
        given = self.given()
        beside: dict[str, Any] = {
            name: given[name] for name in ("accessPolicy", "access", "admin") if name in given
        }
        membership = accounts.member_invite(
            self.repository,
            accounts.Invitation(
                profile_type=given["resourceType"],
                first_name=given["firstName"],
                last_name=given["lastName"],
                email=given.get("email") or None,
                external_id=given.get("externalId"),
                password=given.get("password"),
                patient=given.get("patient"),
                membership={**beside, **given.get("membership", {})},
                upsert=given["upsert"],
                force_new_membership=given["forceNewMembership"],
                send_email=given["sendEmail"],
            ),
        )
        return Response(membership.resource)


class ListView(AdminView):
    """``POST projects/{id}/settings``, ``secrets`` and ``sites``: an array replaces that list of the Project."""

    element = ""

    def post(self, request: Request, project: str) -> Response:
        given: object = request.data
        if not isinstance(given, list):
            raise bad_request(f"Expected an array of {self.element} entries")
        resource = self.repository.read("Project", project).resource
        resource[self.element] = given
        if not given:
            del resource[self.element]
        return Response(self.repository.update(resource)[0].resource)


class MemberView(AdminView):
    """``GET``, ``POST`` and ``DELETE projects/{id}/members/{membership}``."""

    def get(self, request: Request, project: str, membership: str) -> Response:
        return Response(self.repository.read("ProjectMembership", membership).resource)

    def post(self, request: Request, project: str, membership: str) -> Response:
        given = request.data
        if (
            not isinstance(given, dict)
            or given.get("resourceType") != "ProjectMembership"
            or given.get("id") != membership
        ):
            raise forbidden()
        return Response(self.repository.update(given)[0].resource)

    def delete(self, request: Request, project: str, membership: str) -> Response:
        accounts.member_remove(self.repository, membership)
        return Response(all_ok())


class MemberPasswordView(AdminView):
    """``POST projects/{id}/members/{membership}/resetpassword``: mail the person a link to set a new password."""

    def post(self, request: Request, project: str, membership: str) -> Response:
        accounts.member_reset_password(self.repository, membership)
        return Response(all_ok())


class SetPasswordSerializer(serializers.Serializer[Any]):
    """``POST projects/setpassword``."""

    email = serializers.EmailField()
    password = serializers.CharField(trim_whitespace=False)


class SetPasswordView(ApiView):
    """``POST projects/setpassword``: an admin gives somebody, who is a member of this project only, a password."""

    body = SetPasswordSerializer

    def post(self, request: Request) -> Response:
        given = self.given()
        accounts.member_set_password(self.repository, given["email"], given["password"])
        return Response(all_ok())
