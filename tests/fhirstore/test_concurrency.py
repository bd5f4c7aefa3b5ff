"""Many writers at once: nothing is lost, nothing is done twice."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

from fhirstore import database
from fhirstore.changes import Change, claim_changes, delete_changes
from fhirstore.errors import FhirError
from fhirstore.repository import Repository
from tests.fhirstore.conftest import patient

THREADS = 6
ROUNDS = 5


def together(work: Callable[[int], object]) -> list[object]:
    """Run ``work`` in several threads that start at the same moment."""
    barrier = Barrier(THREADS)

    def run(number: int) -> object:
        barrier.wait()
        return work(number)

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(run, range(THREADS)))


def test_concurrent_patches_all_count(repository: Repository) -> None:
    stored = repository.create(patient())

    def add_names(number: int) -> None:
        for turn in range(ROUNDS):
            value = {"system": "https://example.com", "value": f"{number}-{turn}"}
            repository.patch("Patient", stored.id, [{"op": "add", "path": "/identifier/-", "value": value}])

    together(add_names)
    found = {
        identifier["value"] for identifier in repository.read("Patient", stored.id).resource["identifier"]
    }
    assert len(found) == THREADS * ROUNDS
    versions, total = repository.history("Patient", stored.id)
    assert total == THREADS * ROUNDS + 1
    assert [len(version.resource.get("identifier", ())) for version in versions] == list(
        range(THREADS * ROUNDS, -1, -1)
    )
    assert len(repository.search_all("Patient", "identifier=https://example.com|")) == 1


def test_one_of_many_updates_with_the_same_version_wins(repository: Repository) -> None:
    stored = repository.create(patient())

    def update(number: int) -> bool:
        try:
            repository.update({**patient(f"Writer{number}"), "id": stored.id}, if_match=stored.version_id)
        except FhirError as refused:
            return refused.status != 412
        return True

    assert sum(map(bool, together(update))) == 1
    assert repository.history("Patient", stored.id)[1] == 2


def test_creates_with_the_same_id_make_one_resource(system: Repository) -> None:
    stored = system.create(patient())
    system.delete("Patient", stored.id)
    id = stored.id[:-4] + "beef"

    def create(_: int) -> bool:
        try:
            system.create(patient(), id=id)
        except FhirError as refused:
            return refused.status != 409
        return True

    assert sum(map(bool, together(create))) == 1


def test_delete_and_update_meet(repository: Repository) -> None:
    stored = repository.create(patient())

    def work(number: int) -> None:
        if number % 2:
            repository.delete("Patient", stored.id)
        else:
            repository.update({**patient(f"Writer{number}"), "id": stored.id})

    together(work)
    versions, _ = repository.history("Patient", stored.id)
    found = repository.search_all("Patient", "name=writer")
    assert bool(found) is not versions[0].deleted


def test_each_change_is_claimed_once(repository: Repository) -> None:
    ids = {repository.create(patient(str(number))).id for number in range(40)}
    claimed: list[Change] = []

    def work(_: int) -> None:
        while True:
            with database.transaction():
                changes = claim_changes(3)
                mine = [change for change in changes if change.project == repository.identity.project]
                delete_changes([change.id for change in changes])
            claimed.extend(mine)
            if not changes:
                return

    together(work)
    with database.transaction():
        claimed += [change for change in claim_changes(1000) if change.project == repository.identity.project]
    assert sorted(change.resource_id for change in claimed) == sorted(ids)


def test_changes_of_a_resource_are_claimed_in_order(repository: Repository) -> None:
    stored = repository.create(patient())
    repository.patch("Patient", stored.id, [{"op": "add", "path": "/active", "value": True}])
    with database.transaction():
        everything = claim_changes(10_000)
        mine = [change for change in everything if change.resource_id == stored.id]
        assert [change.interaction for change in mine] == ["create", "update"]
        repository_thread_sees = ThreadPoolExecutor(1).submit(_claim_now).result()
        assert stored.id not in {change.resource_id for change in repository_thread_sees}, "they are locked"


def _claim_now() -> list[Change]:
    with database.transaction():
        return claim_changes(10_000)
