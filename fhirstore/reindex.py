"""Index stored resources anew: after a SearchParameter has become active, or when the index itself has changed.

No version and no Change comes of it: what a resource says stays as it is, only what it is found by is brought up to date. Rows
that are right already are not written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from fhirstore import errors, tables
from fhirstore.definitions import registry
from fhirstore.identity import system_identity
from fhirstore.repository import Repository
from fhirstore.search.terms import Rows, rows

BATCH: Final = 200
"""Resources per transaction."""


@dataclass(frozen=True, slots=True)
class Reindexed:
    """What a batch did, which is committed.

    Attributes:
        type: of its resources.
        seen: how many were looked at.
        changed: how many were found by something else before.
    """

    type: str
    seen: int
    changed: int


def reindex(project: str, types: Iterable[str] | None = None, *, batch: int = BATCH) -> Iterator[Reindexed]:
    """Index the resources of a project anew, in batches: each step of the iterator is one, so it can be stopped any time.

    Safe beside writers and beside another reindex: a batch locks its resources for the milliseconds it takes and waits for
    nobody while it holds several. What is written meanwhile comes up again. Starting over costs reading, not writing.

    Args:
        project: its id.
        types: resource types, all by default.
        batch: resources per step.

    Raises:
        FhirError: 400 for what is no resource type.
    """
    chosen = list(dict.fromkeys(types)) if types is not None else sorted(registry.resource_types())
    for type_ in chosen:
        if not registry.is_resource_type(type_):
            raise errors.bad_request(f"Unknown resource type: {type_}")
    return _batches(project, chosen, batch)


def reindex_one(project: str, type: str, id: str) -> bool:
    """Index one resource anew; True if it was found by something else before.

    Raises:
        FhirError: 404 if there is none, or it is deleted.
    """
    current = tables.find(project, type, id)
    if current is None or current.stored.deleted:
        raise errors.not_found()
    repository = Repository(system_identity(project))
    done = tables.reindex(project, type, [current.rid], _maker(project, repository), wait=True)
    return done.get(current.rid, False)


def _maker(project: str, repository: Repository) -> Callable[[tables.Stored], Rows]:
    """Makes what a resource shall be found by."""

    def made(stored: tables.Stored) -> Rows:
        return rows(tables.hasher(), project, stored.type, repository.index(stored.resource))

    return made


def _batches(project: str, types: Iterable[str], batch: int) -> Iterator[Reindexed]:
    made = _maker(project, Repository(system_identity(project)))
    for type_ in types:
        after = tables.BEFORE_ALL
        while page := tables.positions(project, type_, after, batch):
            after = page[-1]
            wanted = [rid for _, rid in page]
            done = tables.reindex(project, type_, wanted, made, wait=False)
            for rid in wanted:
                if rid not in done:
                    # Somebody holds it. Waiting for one while holding none cannot become a circle.
                    done |= tables.reindex(project, type_, [rid], made, wait=True)
            yield Reindexed(type_, len(done), sum(done.values()))
