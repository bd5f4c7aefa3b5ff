"""A resource of another project looks exactly like a missing one, whatever is asked."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import pytest

from fhirstore import binaries, database
from fhirstore.changes import claim_changes
from fhirstore.errors import FhirError, Outcome
from fhirstore.repository import Repository
from tests.fhirstore.conftest import patient

CALLS: dict[str, Callable[[Repository, str, str], object]] = {
    "read": lambda repository, id, version: repository.read("Patient", id),
    "read_reference": lambda repository, id, version: repository.read_reference(f"Patient/{id}"),
    "read_version": lambda repository, id, version: repository.read_version("Patient", id, version),
    "history": lambda repository, id, version: repository.history("Patient", id),
    "update": lambda repository, id, version: repository.update({**patient("X"), "id": id}),
    "update with If-Match": lambda repository, id, version: repository.update(
        {**patient("X"), "id": id}, if_match=version
    ),
    "patch": lambda repository, id, version: repository.patch(
        "Patient", id, [{"op": "remove", "path": "/name"}]
    ),
    "delete": lambda repository, id, version: repository.delete("Patient", id),
}


def outcome(call: Callable[[], object]) -> Outcome:
    with pytest.raises(FhirError) as refused:
        call()
    return refused.value.outcome


@pytest.mark.parametrize("name", CALLS)
def test_another_projects_resource_is_not_found(
    name: str, repository: Repository, stranger: Repository
) -> None:
    stored = repository.create(patient())
    deleted = repository.create(patient("Deleted"))
    repository.delete("Patient", deleted.id)
    missing = outcome(lambda: CALLS[name](stranger, str(uuid.uuid4()), str(uuid.uuid4())))
    for theirs in (stored, deleted):
        assert outcome(lambda: CALLS[name](stranger, theirs.id, theirs.version_id)) == missing  # noqa: B023
    assert repository.read("Patient", stored.id) == stored
    assert repository.history("Patient", deleted.id)[1] == 2


@pytest.mark.parametrize(
    "query",
    [
        "",
        "_id={id}",
        "name=smith",
        "name:exact=Smith",
        "gender=male",
        "gender:missing=false",
        "gender:not=female",
        "birthdate=ge1900",
        "_lastUpdated=ge2000",
        "_project={project}",
        "_compartment=Patient/{id}",
        "_total=accurate&_count=0",
    ],
)
def test_searches_end_at_the_project(query: str, repository: Repository, stranger: Repository) -> None:
    stored = repository.create(patient(gender="male", birthDate="2000-01-01"))
    query = query.format(id=stored.id, project=repository.identity.project)
    assert stranger.search_all("Patient", query) == []
    if "_count=0" not in query:
        assert [found.id for found in repository.search_all("Patient", query)] == [stored.id]


def test_a_binary_of_another_project_is_not_found(repository: Repository, stranger: Repository) -> None:
    stored = repository.store_binary(b"secret", "text/plain")
    missing = outcome(lambda: stranger.open_binary(str(uuid.uuid4())))
    assert outcome(lambda: stranger.open_binary(stored.id)) == missing
    assert outcome(lambda: stranger.store_binary(b"x", "text/plain", id=stored.id)) == missing
    theirs = stranger.create(patient(photo=[{"url": f"Binary/{stored.id}"}]))
    assert b"Signature" not in binaries.presign_urls(theirs.content), (
        "no address for another project's content"
    )


def test_the_id_of_another_projects_resource_cannot_be_taken(
    system: Repository, stranger: Repository
) -> None:
    stored = stranger.create(patient())
    with pytest.raises(FhirError) as refused:
        system.create(patient("Other"), id=stored.id)
    assert refused.value.status == 409
    assert stranger.read("Patient", stored.id) == stored


def test_changes_carry_their_project(repository: Repository, stranger: Repository) -> None:
    mine, theirs = repository.create(patient()), stranger.create(patient())
    with database.transaction():
        projects: dict[str, Any] = {change.resource_id: change.project for change in claim_changes(10_000)}
    assert projects[mine.id] == repository.identity.project
    assert projects[theirs.id] == stranger.identity.project
