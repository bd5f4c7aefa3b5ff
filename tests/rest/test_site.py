"""The API for clients inside the process: the same routes, without HTTP and without a login."""

from __future__ import annotations

import uuid

import orjson
import pytest

from fhirstore.api import FhirResponse, Identity, Repository, handle_site_request
from fhirstore.auth.identities import identity_of_membership, membership_of_profile
from tests.rest.conftest import Caller, smith


@pytest.fixture
def identity(home: Caller) -> Identity:
    """Who asks."""
    membership = membership_of_profile(home.project, f"ClientApplication/{home.client_id}")
    assert membership is not None
    return identity_of_membership(membership)


def ask(identity: Identity, method: str, url: str, body: bytes = b"", **headers: str) -> FhirResponse:
    """Send a request as a Bot's client does."""
    return handle_site_request(
        method, url, headers, body, Repository(identity, trace_id=str(uuid.UUID(int=7)), depth=3)
    )


def test_fhir_requests_reach_the_router(identity: Identity) -> None:
    made = ask(identity, "POST", "http://127.0.0.1:8000/fhir/R4/Patient", orjson.dumps(smith()), Accept="*/*")
    assert made.status == 201
    id = orjson.loads(made.body)["id"]
    for url in (
        f"fhir/R4/Patient/{id}",
        f"/fhir/R4/Patient/{id}?_pretty=true",
        f"/api/fhir/R4/Patient?_id={id}",
    ):
        assert ask(identity, "GET", url).status == 200


def test_other_endpoints_answer_as_the_same_member(identity: Identity, home: Caller) -> None:
    me = orjson.loads(ask(identity, "GET", "auth/me", Authorization="Bearer nonsense").body)
    assert me["profile"]["id"] == home.client_id
    invite = ask(
        identity,
        "POST",
        f"admin/projects/{home.project}/client",
        b'{"name":"Made by a bot"}',
        **{"Content-Type": "application/fhir+json"},
    )
    assert invite.status == 201
    assert invite.headers["content-type"].startswith("application/json")
    assert orjson.loads(invite.body)["secret"]


def test_trace_and_depth_of_the_caller_are_kept(identity: Identity) -> None:
    outcome = orjson.loads(ask(identity, "GET", "fhir/R4/Patient/x").body)
    assert outcome["extension"][0]["extension"][1]["valueId"] == str(uuid.UUID(int=7))


@pytest.mark.parametrize(
    "url", ["", "signin", "oauth2/token", "admin/project", "healthcheck", "https://example.com/x"]
)
def test_all_else_is_not_there(identity: Identity, url: str) -> None:
    answer = ask(identity, "GET", url)
    assert (answer.status, orjson.loads(answer.body)["id"]) == (404, "not-found")
