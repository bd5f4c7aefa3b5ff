"""Subscriptions over WebSocket: who may listen, what is heard, and what stays (conformance has the unmodified client)."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from websockets.sync.client import ClientConnection, connect

from bots import websockets
from fhirstore.api import client_create, connection
from tests.bots.conftest import Project, wait_until
from tests.conftest import Server

Json = dict[str, Any]


@pytest.fixture
def tag() -> str:
    """A code that keeps the resources of one test from the Subscriptions of others."""
    return uuid.uuid4().hex


class Listener:
    """Somebody who subscribes: with credentials of its own, and one open WebSocket."""

    def __init__(self, http: httpx.Client, socket: ClientConnection) -> None:
        self.http, self.socket = http, socket

    def subscribe(self, criteria: str) -> str:
        """Make a Subscription; returns its id."""
        made = self.http.post(
            "/fhir/R4/Subscription",
            json={
                "resourceType": "Subscription",
                "status": "active",
                "reason": "test",
                "criteria": criteria,
                "channel": {"type": "websocket"},
            },
        )
        assert made.status_code == 201, made.text
        return str(made.json()["id"])

    def token(self, subscription: str, status: int = 200) -> Json:
        """Ask for a token; returns its Parameters as an object, or the outcome that refuses it."""
        answer = self.http.get(f"/fhir/R4/Subscription/{subscription}/$get-ws-binding-token")
        assert answer.status_code == status, answer.text
        body = answer.json()
        return {
            each["name"]: next(v for k, v in each.items() if k != "name")
            for each in body.get("parameter", [])
        } or body

    def bind(self, subscription: str) -> Json:
        """Bind a Subscription; returns the status that says so."""
        return self.say("bind-with-token", self.token(subscription)["token"])["entry"][0]["resource"]  # type: ignore[no-any-return]

    def say(self, type_: str, token: str | None = None) -> Json:
        """Send a message; returns the next one that comes."""
        self.socket.send(json.dumps({"type": type_} | ({"payload": {"token": token}} if token else {})))
        return self.hear()

    def hear(self) -> Json:
        """The next message."""
        found: Json = json.loads(self.socket.recv(timeout=60))
        return found

    def hear_resource(self) -> Json:
        """The resource of the next message, which must be an event."""
        bundle = self.hear()
        assert bundle["entry"][0]["resource"]["type"] == "event-notification", bundle
        found: Json = bundle["entry"][1]["resource"]
        return found


@contextmanager
def listening(url: str, http: httpx.Client) -> Iterator[Listener]:
    address = url.replace("http", "ws") + websockets.PATH
    with connect(address, open_timeout=60) as socket:
        yield Listener(http, socket)


@pytest.fixture
def admin(websocket_url: str, project: Project) -> Iterator[Listener]:
    """The admin client of the project."""
    with listening(websocket_url, project.http) as listener:
        yield listener


@contextmanager
def limited(url: str, project: Project, *resources: Json) -> Iterator[Listener]:
    """A client with an AccessPolicy, that has logged in for a token."""
    policy = project.repository.create({"resourceType": "AccessPolicy", "resource": list(resources)})
    membership = {"accessPolicy": {"reference": f"AccessPolicy/{policy.id}"}}
    client = client_create(project.admin, name="limited", membership=membership)
    with httpx.Client(base_url=url, timeout=60) as http:
        grant = {
            "grant_type": "client_credentials",
            "client_id": client["id"],
            "client_secret": client["secret"],
        }
        token = http.post("/oauth2/token", data=grant).json()["access_token"]
        http.headers["Authorization"] = f"Bearer {token}"
        with listening(url, http) as listener:
            yield listener


SUBSCRIBES: Json = {"resourceType": "Subscription"}


def observation(tag: str, **elements: Any) -> Json:
    return {"resourceType": "Observation", "status": "final", "code": {"coding": [{"code": tag}]}} | elements


def test_only_the_author_gets_a_token(
    websocket_url: str, server: Server, project: Project, admin: Listener, tag: str
) -> None:
    subscription = admin.subscribe(f"Observation?code={tag}")
    token = admin.token(subscription)
    assert token["websocket-url"] == server.base_url.replace("http", "ws") + websockets.PATH
    with limited(websocket_url, project, SUBSCRIBES) as other:
        assert "author" in other.token(subscription, 403)["issue"][0]["details"]["text"]


def test_a_rest_hook_has_no_token(project: Project, admin: Listener, tag: str) -> None:
    subscription = project.subscribe(project.bot(), f"Observation?code={tag}")
    assert "websocket" in admin.token(subscription["id"], 400)["issue"][0]["details"]["text"]


def test_the_feature_has_to_be_on(server: Server, project: Project, admin: Listener, tag: str) -> None:
    subscription = admin.subscribe(f"Observation?code={tag}")
    token = admin.token(subscription)["token"]
    found = project.repository.read("Project", project.id).resource
    project.repository.update(
        found | {"features": [each for each in found["features"] if each != websockets.FEATURE]}
    )
    try:
        wait_until(lambda: "switched on" in json.dumps(_ask(project, subscription)))
        wait_until(lambda: "switched off" in json.dumps(admin.say("bind-with-token", token)))
        made = project.http.post(
            "/fhir/R4/Subscription",
            json={**project.http.get(f"/fhir/R4/Subscription/{subscription}").json(), "id": None},
        )
        assert "not switched on" in made.headers["warning"]
    finally:
        project.repository.update(
            project.repository.read("Project", project.id).resource | {"features": found["features"]}
        )
    wait_until(lambda: "parameter" in _ask(project, subscription))


def _ask(project: Project, subscription: str) -> Json:
    found: Json = project.http.get(f"/fhir/R4/Subscription/{subscription}/$get-ws-binding-token").json()
    return found


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        ("no JSON", "JSON object"),
        ('["ping"]', "JSON object"),
        ('{"type": "subscribe"}', "Unknown type of message 'subscribe'"),
        ('{"type": "bind-with-token"}', "no token of"),
        ('{"type": "bind-with-token", "payload": {"token": "a.b.c"}}', "no token of"),
        ('{"type": "bind-with-token", "payload": "x"}', "no token of"),
        (json.dumps({"type": "x" * 20_000}), "JSON object"),
    ],
)
def test_what_is_not_understood_gets_a_sentence_and_the_connection_goes_on(
    admin: Listener, message: str, sentence: str
) -> None:
    admin.socket.send(message)
    outcome = admin.hear()
    assert outcome["resourceType"] == "OperationOutcome"
    assert sentence in outcome["issue"][0]["details"]["text"]
    assert admin.say("ping") == {"type": "pong"}


def test_an_access_token_binds_nothing(websocket_url: str, project: Project) -> None:
    with limited(websocket_url, project, SUBSCRIBES) as other:
        access = str(other.http.headers["Authorization"]).removeprefix("Bearer ")
        assert "no token of" in json.dumps(other.say("bind-with-token", access))


def test_a_binding_token_is_no_access_token(server: Server, admin: Listener, tag: str) -> None:
    token = admin.token(admin.subscribe(f"Observation?code={tag}"))["token"]
    answer = httpx.get(f"{server.base_url}/fhir/R4/Patient", headers={"Authorization": f"Bearer {token}"})
    assert answer.status_code == 401


def test_a_listener_hears_what_its_access_policy_lets_it_see(
    websocket_url: str, project: Project, tag: str
) -> None:
    seen = {"resourceType": "Observation", "criteria": "Observation?status=final", "hiddenFields": ["note"]}
    with limited(websocket_url, project, SUBSCRIBES, seen) as listener:
        assert listener.bind(listener.subscribe(f"Observation?code={tag}"))["type"] == "handshake"
        project.post("/fhir/R4/Observation", observation(tag, status="preliminary"))
        project.post("/fhir/R4/Observation", observation(tag, valueString="seen", note=[{"text": "hidden"}]))
        heard = listener.hear_resource()
        assert heard["valueString"] == "seen"
        assert "note" not in heard


def test_a_listener_whose_login_has_ended_hears_nothing_more(
    websocket_url: str, project: Project, tag: str
) -> None:
    with limited(websocket_url, project, SUBSCRIBES, {"resourceType": "Observation"}) as listener:
        listener.bind(listener.subscribe(f"Observation?code={tag}"))
        project.post("/fhir/R4/Observation", observation(tag, valueString="before"))
        assert listener.hear_resource()["valueString"] == "before"
        listener.http.post("/oauth2/logout").raise_for_status()
        project.post("/fhir/R4/Observation", observation(tag, valueString="after"))
        assert listener.hear()["resourceType"] == "OperationOutcome"
        project.post("/fhir/R4/Observation", observation(tag, valueString="much later"))
        assert listener.say("ping") == {"type": "pong"}


def test_nothing_of_another_project_is_heard(
    server: Server, project: Project, admin: Listener, tag: str
) -> None:
    admin.bind(admin.subscribe(f"Observation?code={tag}"))
    httpx.post(
        f"{server.base_url}/fhir/R4/Observation",
        json=observation(tag, valueString="foreign"),
        auth=(server.client_id, server.client_secret),
    ).raise_for_status()
    project.post("/fhir/R4/Observation", observation(tag, valueString="own"))
    assert admin.hear_resource()["valueString"] == "own"


def test_all_who_are_bound_hear_in_order_until_they_unbind(
    websocket_url: str, project: Project, admin: Listener, tag: str
) -> None:
    subscription = admin.subscribe(f"Observation?code={tag}")
    admin.bind(subscription)
    with listening(websocket_url, project.http) as second:
        second.bind(subscription)
        for number in range(20):
            project.post("/fhir/R4/Observation", observation(tag, valueInteger=number))
        for each in (admin, second):
            assert [each.hear_resource()["valueInteger"] for _ in range(20)] == list(range(20))
        token = admin.token(subscription)["token"]
        second.socket.send(json.dumps({"type": "unbind-from-token", "payload": {"token": token}}))
        project.post("/fhir/R4/Observation", observation(tag, valueInteger=20))
        assert admin.hear_resource()["valueInteger"] == 20
        assert second.say("ping") == {"type": "pong"}


def test_a_subscription_nobody_listens_to_is_erased(project: Project, admin: Listener, tag: str) -> None:
    abandoned, awaited = (admin.subscribe(f"Observation?code={tag}") for _ in range(2))
    with connection() as session:
        session.execute(
            "UPDATE bots_awaitedsubscription SET until = now() - interval '1 s' WHERE subscription_id = %s",
            (abandoned,),
        )
    wait_until(lambda: project.http.get(f"/fhir/R4/Subscription/{abandoned}").status_code == 404)
    assert project.http.get(f"/fhir/R4/Subscription/{abandoned}/_history").status_code == 404
    assert project.http.get(f"/fhir/R4/Subscription/{awaited}").status_code == 200


def test_a_server_without_websockets_says_so(project: Project, tag: str) -> None:
    repository = project.repository  # of this process, which serves none
    channel = {"type": "websocket"}
    subscription = {"resourceType": "Subscription", "status": "active", "reason": "test", "channel": channel}
    repository.create(subscription | {"criteria": f"Observation?code={tag}"})
    assert "FHIRBOTS_WEBSOCKETS" in " ".join(repository.take_warnings())


def test_the_address_tells_who_speaks_http_to_it(server: Server) -> None:
    answer = httpx.get(server.base_url + websockets.PATH)
    assert answer.status_code == 426
    assert "WebSocket" in answer.json()["issue"][0]["details"]["text"]
