"""Endpoints of Bots beside FHIR."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase

from bots.cds_hooks import cds_service_call, cds_services
from bots.models import Wheel
from bots.operations import bot_init
from bots.request import ExecutionResult
from bots.results import unrepeated
from bots.secrets import secrets_set, secrets_shown
from bots.webhook import webhook_run
from bots.wheels import wheel_add, wheel_remove, wheels
from fhirstore.api import (
    FhirError,
    Repository,
    all_ok,
    bad_request,
    endpoint,
    forbidden,
    issue,
    json_response,
    not_found,
    outcome,
    parse_json,
    read_body,
    read_headers,
    refusing,
)


@endpoint("POST")
def create_bot(request: HttpRequest, repository: Repository, project: str) -> HttpResponse:
    """``POST /admin/projects/{id}/bot`` (shared/medplum/deploy-and-cli.md §2): 201 with the Bot."""
    if project != repository.identity.project:
        raise forbidden()
    values = parse_json(request.body)
    if not isinstance(values, dict):
        raise bad_request("The request body must be a JSON object")
    return json_response(bot_init(repository, values).resource, 201)


@endpoint("GET", "POST")
def bot_secrets(request: HttpRequest, repository: Repository, project: str, bot: str) -> HttpResponse:
    """``admin/projects/{id}/bot/{bot}/secrets``: what only this Bot is given, in the form of ``Project.secret``.

    GET shows names, POST replaces the list; a value that is :data:`~fhirstore.api.MASK` stays.
    """
    if project != repository.identity.project:
        raise not_found()
    if request.method == "POST":
        secrets_set(repository, bot, "secret", parse_json(request.body))
    return json_response(secrets_shown(repository, bot, "secret"))


@endpoint("GET", "POST")
def bot_environment(request: HttpRequest, repository: Repository, project: str, bot: str) -> HttpResponse:
    """``admin/projects/{id}/bot/{bot}/env``: the Bot's environment variables, shown in clear; POST replaces the list."""
    if project != repository.identity.project:
        raise not_found()
    if request.method == "POST":
        secrets_set(repository, bot, "env", parse_json(request.body))
    return json_response(secrets_shown(repository, bot, "env"))


@endpoint("GET", "POST")
def project_wheels(request: HttpRequest, repository: Repository, project: str) -> HttpResponse:
    """``admin/projects/{id}/wheels``: packages that Python Bots can import. The body of a POST is a wheel."""
    if project != repository.identity.project:
        raise not_found()
    if request.method == "POST":
        added = wheel_add(repository, read_body(request, read_headers(request.META)))
        return json_response({"name": added.name, "filename": added.filename}, 201)
    return json_response([_wheel(wheel) for wheel in wheels(repository)])


@endpoint("DELETE")
def project_wheel(request: HttpRequest, repository: Repository, project: str, name: str) -> HttpResponse:
    """``DELETE admin/projects/{id}/wheels/{name}``: take a package off the list."""
    if project != repository.identity.project:
        raise not_found()
    wheel_remove(repository, name)
    return json_response(all_ok())


def _wheel(wheel: Wheel) -> dict[str, Any]:
    return {
        "name": wheel.name,
        "filename": wheel.filename,
        "sha256": wheel.digest,
        "added": wheel.created.isoformat(),
        "author": {"reference": wheel.author, "display": wheel.author_display},
    }


@refusing
def webhook(
    request: HttpRequest, membership: str, *, headers: Mapping[str, str], request_id: str, trace: str
) -> HttpResponse:
    """``/webhook/{ProjectMembership.id}``: run a public Bot without a login."""
    if request.method not in ("GET", "POST", "HEAD"):
        return HttpResponse(
            "Method Not Allowed", status=405, content_type="text/plain", headers={"Allow": "GET, POST"}
        )
    try:
        result = webhook_run(
            membership,
            content_type=headers.get("content-type"),
            body=read_body(request, headers),
            method="POST" if request.method == "POST" else "GET",
            query=request.META.get("QUERY_STRING", ""),
            headers=headers,
            trace_id=trace,
        )
    except FhirError as error:
        if error.status != 403:
            raise
        return HttpResponse(str(error), status=403, content_type="text/plain")
    return _respond(result)


@refusing
def websocket(request: HttpRequest, **_: object) -> HttpResponse:
    """``/ws/subscriptions-r4`` when no WebSocket comes of it: the server speaks only HTTP, or the client did."""
    raise FhirError(
        outcome(
            "upgrade-required",
            [
                issue(
                    "This is an address for WebSockets, and this process answers HTTP only (FHIRBOTS_WEBSOCKETS)"
                )
            ],
        ),
        {"Upgrade": "websocket", "Connection": "Upgrade"},
    )


@endpoint("GET")
def discover_services(request: HttpRequest, repository: Repository) -> HttpResponse:
    """``GET /cds-services``."""
    return json_response(cds_services(repository))


@endpoint("POST")
def call_service(request: HttpRequest, repository: Repository, bot: str) -> HttpResponseBase:
    """``POST /cds-services/{id}``."""
    headers = read_headers(request.META)
    return _respond(cds_service_call(repository, bot, read_body(request, headers), headers))


def _respond(result: ExecutionResult) -> HttpResponse:
    return HttpResponse(
        result.body,
        status=result.status,
        headers={"content-type": result.content_type, **unrepeated(result.status, result.headers)},
    )
