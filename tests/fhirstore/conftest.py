"""People of the store's tests: each test has a project of its own, as a tenant would."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import pytest

from fhirstore.access import Policy
from fhirstore.identity import Identity, system_identity
from fhirstore.repository import Repository

pytestmark = pytest.mark.usefixtures("database")


@pytest.fixture
def project() -> str:
    """The id of a project nobody else uses."""
    return str(uuid.uuid4())


@pytest.fixture
def system(database: None, project: str) -> Repository:
    """The server itself."""
    return Repository(system_identity(project))


@pytest.fixture
def repository(database: None, project: str) -> Repository:
    """Bob, who has no AccessPolicy and is no admin."""
    return Repository(Identity(project, f"Practitioner/{uuid.uuid4()}", "Bob"))


@pytest.fixture
def admin(database: None, project: str) -> Repository:
    """Alice, an admin of the project."""
    return Repository(Identity(project, f"Practitioner/{uuid.uuid4()}", "Alice", is_admin=True))


@pytest.fixture
def stranger(database: None) -> Repository:
    """Charlie, an admin of another project."""
    return Repository(Identity(str(uuid.uuid4()), f"Practitioner/{uuid.uuid4()}", "Charlie", is_admin=True))


@pytest.fixture
def restricted(database: None, project: str) -> Callable[..., Repository]:
    """A repository under an AccessPolicy: ``restricted({"resourceType": "Patient"}, …, organization="…")``."""

    def build(*entries: dict[str, Any], **variables: str) -> Repository:
        policy = Policy.compile({"resourceType": "AccessPolicy", "resource": list(entries)}, variables)
        return Repository(Identity(project, f"Practitioner/{uuid.uuid4()}", policy=policy))

    return build


def patient(family: str = "Smith", **elements: Any) -> dict[str, Any]:
    """A small Patient."""
    return {"resourceType": "Patient", "name": [{"family": family, "given": ["Jane"]}], **elements}
