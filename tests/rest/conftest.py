"""Two projects per test module, called through Django's test client: `home`, and `foreign`, which must stay unseen."""

from __future__ import annotations

import base64
import json
import uuid
from dataclasses import dataclass, field
from typing import Any

import pytest
from django.http import HttpResponse
from django.test import Client

from fhirstore.api import Repository, system_identity
from fhirstore.bootstrap import bootstrap

FHIR_JSON = "application/fhir+json"
FORM = "application/x-www-form-urlencoded"


@dataclass
class Caller:
    """An admin client of a project, sending requests with its Basic credentials."""

    project: str
    client_id: str
    secret: str
    email: str
    password: str
    http: Client = field(default_factory=lambda: Client(SERVER_NAME="127.0.0.1"))

    @property
    def basic(self) -> str:
        """The ``Authorization`` header."""
        return "Basic " + base64.b64encode(f"{self.client_id}:{self.secret}".encode()).decode()

    @property
    def repository(self) -> Repository:
        """The project as the server itself sees it."""
        return Repository(system_identity(self.project))

    def send(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        content_type: str = FHIR_JSON,
        authorization: str | None = None,
        **headers: str,
    ) -> HttpResponse:
        """Send a request.

        Args:
            path: from the root, or below ``/fhir/R4/`` without leading slash.
            body: bytes or text as they are, anything else as JSON, None for no body.
            authorization: instead of the own credentials; "" for none.
            headers: with underscores for hyphens.
        """
        data = body if isinstance(body, (bytes, str)) else b"" if body is None else json.dumps(body)
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        authorization = self.basic if authorization is None else authorization
        if authorization:
            sent["authorization"] = authorization
        url = path if path.startswith("/") else f"/fhir/R4/{path}"
        return self.http.generic(
            method, url, data, content_type="" if body is None else content_type, headers=sent
        )

    def create(self, resource: dict[str, Any]) -> dict[str, Any]:
        """Create a resource; returns it as answered, with extended meta."""
        answer = self.send("POST", resource["resourceType"], resource, x_medplum="extended")
        assert answer.status_code == 201, answer.content
        return answer.json()


def new_caller() -> Caller:
    """Make a project with an admin and a client."""
    client_id, secret, email, password = (
        str(uuid.uuid4()),
        uuid.uuid4().hex,
        f"{uuid.uuid4()}@example.com",
        "correct horse",
    )
    made = bootstrap(
        email=email, password=password, project_name="Home", client_id=client_id, client_secret=secret
    )
    return Caller(made.project, client_id, secret, email, password)


@pytest.fixture(scope="module")
def home(database: None) -> Caller:
    """The project of the tests."""
    return new_caller()


@pytest.fixture(scope="module")
def foreign(database: None) -> Caller:
    """Another project."""
    return new_caller()


def smith(**elements: Any) -> dict[str, Any]:
    """A Patient."""
    return {"resourceType": "Patient", "name": [{"family": "Smith", "given": ["Jane"]}], **elements}


def text_of(answer: HttpResponse) -> str:
    """The text of an outcome's first issue."""
    return answer.json()["issue"][0]["details"]["text"]
