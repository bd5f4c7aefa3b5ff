"""A project of its own for each test module, driven over HTTP with the real processes behind it."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from fhirstore.api import Repository, identity_of_membership, system_identity
from fhirstore.bootstrap import bootstrap
from tests.conftest import Server
from tests.tls import TLS

HELLO = "export async function handler(medplum, event) { console.log('Hello world'); return event.input; }\n"


@dataclass
class Project:
    """A project with an admin client, seen from outside."""

    id: str
    http: httpx.Client
    admin: Repository
    """Of the project's admin, for services the console calls."""

    @property
    def repository(self) -> Repository:
        """The store as the server itself sees it."""
        return Repository(system_identity(self.id))

    def post(self, path: str, value: Any, status: int = 201) -> Any:
        """POST JSON; returns the parsed answer."""
        answer = self.http.post(path, json=value)
        assert answer.status_code == status, answer.text
        return answer.json()

    def bot(self, code: str | None = HELLO, *, filename: str = "index.js", **elements: Any) -> str:
        """Create a Bot with elements, deploy code to it, and return its id."""
        bot = self.post(f"/admin/projects/{self.id}/bot", {"name": f"Bot {uuid.uuid4().hex[:8]}"})
        if elements:
            operations = [
                {"op": "add", "path": f"/{name}", "value": value} for name, value in elements.items()
            ]
            self.http.patch(f"/fhir/R4/Bot/{bot['id']}", json=operations).raise_for_status()
        if code is not None:
            self.deploy(bot["id"], code, filename)
        return str(bot["id"])

    def deploy(self, bot_id: str, code: str, filename: str = "index.js", status: int = 200) -> Any:
        """``$deploy`` code."""
        return self.post(f"/fhir/R4/Bot/{bot_id}/$deploy", {"code": code, "filename": filename}, status)

    def execute(self, bot_id: str, value: Any = None, **headers: str) -> httpx.Response:
        """``$execute`` with JSON."""
        return self.http.post(
            f"/fhir/R4/Bot/{bot_id}/$execute", json={} if value is None else value, headers=headers
        )

    def restricted_client(self) -> dict[str, Any]:
        """A ClientApplication, with its secret, that sees active Patients only, and no birth dates."""
        policy = {
            "resourceType": "AccessPolicy",
            "resource": [
                {"resourceType": "Patient", "criteria": "Patient?active=true", "hiddenFields": ["birthDate"]},
                {"resourceType": "Subscription"},
            ],
        }
        reference = f"AccessPolicy/{self.post('/fhir/R4/AccessPolicy', policy)['id']}"
        given = {"name": "C", "accessPolicy": {"reference": reference}}
        return self.post(f"/admin/projects/{self.id}/client", given)

    def subscribe(self, bot_id: str, criteria: str, status: int = 201, **elements: Any) -> Any:
        """Create an active Subscription with a Bot as endpoint."""
        subscription = {
            "resourceType": "Subscription",
            "status": "active",
            "reason": "test",
            "criteria": criteria,
            "channel": {"type": "rest-hook", "endpoint": f"Bot/{bot_id}", "payload": "application/fhir+json"},
        }
        return self.post("/fhir/R4/Subscription", subscription | elements, status)

    def search(self, query: str) -> list[dict[str, Any]]:
        """All resources a search finds."""
        answer = self.http.get(f"/fhir/R4/{query}")
        assert answer.status_code == 200, answer.text
        return [entry["resource"] for entry in answer.json().get("entry", [])]

    def audit_events(self, entity: str, count: int = 0) -> list[dict[str, Any]]:
        """The AuditEvents about a Bot or Subscription, oldest first; waits until there are `count`."""
        query = f"AuditEvent?entity={entity}&_sort=_lastUpdated&_count=1000"
        wait_until(lambda: len(self.search(query)) >= count)
        return self.search(query)


def wait_until(condition: Callable[[], bool], patience: float = 30) -> None:
    """Wait for something another process does."""
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def project(server: Server) -> Iterator[Project]:
    """A new project."""
    with new_project(server) as made:
        yield made


@contextmanager
def new_project(server: Server) -> Iterator[Project]:
    """One more project."""
    client_id, secret = str(uuid.uuid4()), uuid.uuid4().hex
    made = bootstrap(
        email=f"{client_id}@example.com",
        password=uuid.uuid4().hex,
        project_name="Bots",
        client_id=client_id,
        client_secret=secret,
    )
    headers = {"X-Medplum": "extended"}
    with httpx.Client(
        base_url=server.base_url, auth=(client_id, secret), timeout=60, headers=headers, verify=TLS
    ) as http:
        yield Project(made.project, http, Repository(identity_of_membership(made.membership)))
