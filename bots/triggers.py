"""What people do to schedules and deliveries, by API or in the console: run one now, carry out again."""

from __future__ import annotations

from collections.abc import Sequence

from bots import cron, deliveries, tasks
from fhirstore.api import Repository, forbidden


def schedule_run_now(repository: Repository, type_: str, id_: str) -> int:
    """Run a Bot or Cron now as its schedule would; returns the id of the delivery.

    Raises FhirError: when the caller may not read the resource; 400 for one that no schedule could run.
    """
    delivery = cron.run_now(repository, type_, id_)
    tasks.ring_deliver()
    return delivery


def deliveries_replay(
    repository: Repository,
    type_: str,
    id_: str | None,
    *,
    ids: Sequence[int] | None = None,
    paused: bool = False,
) -> int:
    """Carry out again what has ended; returns how many deliveries that are.

    Args:
        type_, id_: the Subscription, Bot or Cron; no id for the whole project.
        ids: these deliveries, however they ended; None for all that failed.
        paused: instead of those that failed, what was skipped while the Subscription was off.

    Raises:
        FhirError: 403 unless the caller is admin; when he may not read the resource.
    """
    if not repository.identity.is_admin:
        raise forbidden()
    if id_ is not None:
        repository.read(type_, id_)
    project = repository.identity.project
    count = deliveries.replay(project, owner_id=id_, ids=None if ids is None else list(ids), paused=paused)
    if count:
        tasks.ring_deliver()
    return count
