"""Reads what a timeline tells from the store: runs, versions and deployments of one resource."""

from __future__ import annotations

from typing import Final

from bots.api import deployments
from console.timeline import Item, Position, Run, run_of, story, versions
from fhirstore.api import FhirError, Repository, Stored, parse

PAGE: Final = 20
MAX_VERSIONS: Final = 100
SAME_INSTANT: Final = 20
"""AuditEvents of one millisecond that a page may begin among."""


def bot_story(repository: Repository, stored: Stored, *, before: str | None = None) -> tuple[list[Item], str]:
    """The story of a Bot, Subscription or any other resource, newest first.

    Args:
        repository: of the reader; who may not read AuditEvents sees versions only.
        stored: the resource.
        before: the position behind which the page begins, as the page before has named it.

    Returns:
        Items, and the position for the next older page (empty at the end).
    """
    position = Position.parse(before)
    try:
        found, _more = runs(repository, [("entity", f"{stored.type}/{stored.id}")], position, PAGE + 1)
    except FhirError as error:
        if error.status != 403:
            raise
        found = []
    history, _total = repository.history(stored.type, stored.id, count=MAX_VERSIONS)
    is_bot = stored.type == "Bot"
    deployed = deployments(repository, stored.id) if is_bot else []
    items, has_older = story(
        [Item("run", run.moment, run=run) for run in found],
        versions(history, has_deployments=is_bot),
        [Item("deployment", deployment.created, deployment=deployment) for deployment in deployed],
        limit=PAGE,
        before=position,
    )
    return items, str(items[-1].position) if items and has_older else ""


def runs(
    repository: Repository, filters: list[tuple[str, str]], before: Position | None, limit: int
) -> tuple[list[Run], bool]:
    """AuditEvents, newest first, from a position on.

    Args:
        repository: of the reader.
        filters: search parameters.
        before: only what stands behind this position.
        limit: how many at most.

    Returns:
        The events, and whether older ones are left.
    """
    query = [*filters, ("_sort", "-_lastUpdated"), ("_count", str(limit + SAME_INSTANT))]
    if before is not None:
        query.append(("_lastUpdated", f"le{before.instant}"))
    found = [run_of(stored.resource) for stored in repository.search(parse("AuditEvent", query)).entries]
    wanted = [run for run in found if before is None or run.position < before]
    wanted.sort(key=lambda run: run.position, reverse=True)
    return wanted[:limit], len(wanted) > limit
