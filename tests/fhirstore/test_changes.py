"""The outbox: every committed write leaves one Change, and the doorbell says so."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest

from fhirstore import changes, database, tables
from fhirstore.changes import Change, claim_changes, delete_changes, on_change
from fhirstore.errors import bad_request
from fhirstore.identity import Identity
from fhirstore.repository import Repository
from tests.fhirstore.conftest import patient


@pytest.fixture(autouse=True)
def bell() -> Iterator[None]:
    """Callbacks of a test end with it."""
    before = list(changes._doorbell._callbacks)
    yield
    changes._doorbell._callbacks[:] = before


def claimed(repository: Repository) -> list[Change]:
    """Take the changes of this project; those of other tests go as well."""
    with database.transaction():
        found = claim_changes(10_000)
        delete_changes([change.id for change in found])
    return [change for change in found if change.project == repository.identity.project]


def test_every_write_leaves_a_change(project: str, database: None) -> None:
    repository = Repository(Identity(project, "Bot/b"), trace_id="trace-1", depth=2)
    created = repository.create(patient())
    updated, _ = repository.update({**created.resource, "active": True})
    repository.update(updated.resource)
    repository.delete("Patient", created.id)
    repository.delete("Patient", created.id)
    restored, _ = repository.update(updated.resource)
    first, second, third, fourth = claimed(repository)
    assert (first.type, first.resource_id, first.version_id) == ("Patient", created.id, created.version_id)
    assert (first.author, first.trace_id, first.depth) == ("Bot/b", "trace-1", 2)
    assert (first.interaction, first.previous_version_id, first.previous) == ("create", None, None)
    assert (first.content, first.created) == (created.content, created.last_updated)
    assert (second.interaction, second.previous_version_id) == ("update", created.version_id)
    assert (second.content, second.previous) == (updated.content, created.content)
    assert (third.interaction, third.previous_version_id) == ("delete", updated.version_id)
    assert third.previous == updated.content
    assert (fourth.interaction, fourth.version_id) == ("update", restored.version_id)
    assert claimed(repository) == []


def test_a_change_that_is_not_deleted_comes_again(repository: Repository) -> None:
    stored = repository.create(patient())
    with database.transaction():
        assert stored.id in {change.resource_id for change in claim_changes(10_000)}
    assert [change.resource_id for change in claimed(repository)] == [stored.id]


def test_a_write_that_is_rolled_back_leaves_no_change(repository: Repository) -> None:
    def fail() -> None:
        with repository.transaction():
            repository.create(patient())
            raise bad_request("No")

    with pytest.raises(Exception, match="No"):
        fail()
    assert claimed(repository) == []


def test_the_oldest_changes_come_first_and_no_more_than_asked_for(repository: Repository) -> None:
    claimed(repository)
    ids = [repository.create(patient()).id for _ in range(5)]
    with database.transaction():
        oldest = claim_changes(3)
    assert [change.resource_id for change in oldest] == ids[:3]


def test_audit_events_leave_a_change_only_where_they_are_watched(repository: Repository) -> None:
    event = {
        "resourceType": "AuditEvent",
        "type": {"code": "execute"},
        "recorded": "2026-01-01T00:00:00Z",
        "agent": [{"requestor": False}],
        "source": {"observer": {"reference": "Bot/x"}},
    }
    watching = Repository(repository.identity, is_watched=True)
    with database.transaction(), tables.creates_together():
        repository.create(event)
        stored = watching.create(event)
        repository.create(event)
    assert [change.resource_id for change in claimed(repository)] == [stored.id]


def test_claiming_needs_a_transaction(database: None) -> None:
    with pytest.raises(RuntimeError, match="needs a transaction"):
        claim_changes(1)


def test_the_doorbell_rings_after_the_commit_and_not_without(repository: Repository) -> None:
    rung = threading.Event()
    on_change(rung.set)
    on_change(_fail)
    while rung.wait(0.05):
        rung.clear()  # for the project that was made before
    with repository.transaction():
        repository.create(patient())
        assert not rung.wait(0.05), "not committed yet"
    assert rung.wait(10)
    rung.clear()
    stored = repository.create(patient())
    assert rung.wait(10), "one failing callback does not silence the bell"
    rung.clear()
    repository.update(stored.resource)
    assert not rung.wait(0.05), "nothing was written"


def _fail() -> None:
    raise ValueError("a callback that fails")


@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_a_forked_process_has_its_own_connections_and_bell(repository: Repository) -> None:
    rung_in_child = os.pipe()
    on_change(lambda: os.write(rung_in_child[1], b"%d " % os.getpid()) and None)
    before = repository.create(patient())
    child = os.fork()
    if not child:
        try:
            repository.create(patient("Child"))
            # The bell's thread needs a moment before the process may end.
            while b"%d " % os.getpid() not in os.read(rung_in_child[0], 4096):
                pass
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert len(repository.search_all("Patient", "family=child")) == 1
    assert repository.read("Patient", before.id) == before
