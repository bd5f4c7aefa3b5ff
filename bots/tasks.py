"""Celery tasks: each hands its message to the code that does the work. No results are kept, no argument is logged.

Queue ``bots`` runs Bots; queue ``system`` moves rows on. Every task may run twice or not at all without harm: calls expire,
and what must not be lost stands in tables (changes, deliveries) that :func:`sweep` looks through every few seconds.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any, Final

from celery import current_app, shared_task, signals
from kombu.exceptions import OperationalError

from bots import (
    calls,
    cron,
    deliveries,
    execution,
    idempotency,
    preparation,
    runqueue,
    runs,
    subscriptions,
    websockets,
)
from bots.messages import Direct, send, short_way
from bots.workers import lease
from fhirstore.api import FhirError, log_failure

_log = logging.getLogger(__name__)
_broker_is_away = threading.Event()


# --- queue bots ------------------------------------------------------------------------------------------------------


@shared_task(base=Direct, ignore_result=True)
def execute_bot(call_id: str, channel: str, expires: float, request: str, project: str) -> None:
    """Run a Bot for a caller who waits."""
    calls.work(call_id, channel, expires, request, project, execution.execute_call)


@shared_task(base=Direct, ignore_result=True)
def prepare_code(call_id: str, channel: str, expires: float, upload: str, project: str) -> None:
    """Transpile and check code that shall be deployed, for a caller who waits."""
    calls.work(call_id, channel, expires, upload, project, preparation.prepare_call)


@shared_task(base=Direct, ignore_result=True)
def deliver() -> None:
    """Work through deliveries and queued runs that are due."""
    if deliveries.deliver_due():
        _send(deliver, "bots")  # behind what others are waiting for


# --- queue system ----------------------------------------------------------------------------------------------------


@shared_task(base=Direct, ignore_result=True)
def dispatch_changes() -> None:
    """Turn changes into deliveries."""
    _ring_deliver(subscriptions.dispatch_changes())


@shared_task(ignore_result=True)
def fire_schedules() -> None:
    """Turn what is due into deliveries."""
    _ring_deliver(cron.fire_due())


@shared_task(ignore_result=True)
def sweep() -> None:
    """Find what a lost message or a dead worker has left behind."""
    for step in _SWEEP:
        try:
            step()
        except Exception as error:  # noqa: BLE001  whatever it is, it must not hold up the steps behind it
            log_failure(f"sweep, {step.__module__}.{step.__name__}", error)
            if isinstance(error, FhirError) and error.status == 503:
                return  # the database is away, from all of them


def _ring_for_waiting() -> None:
    _ring_deliver(deliveries.due_count() + runqueue.waiting_count())


_SWEEP: Final[tuple[Callable[[], object], ...]] = (
    deliveries.reclaim,
    runqueue.reclaim,
    deliveries.forget_old,
    calls.forget_old_replies,
    idempotency.forget_old,
    websockets.forget_old,
    runs.forget_old_sometimes,
    subscriptions.dispatch_changes,
    cron.fire_due,
    _ring_for_waiting,
)


# --- bells -----------------------------------------------------------------------------------------------------------


def ring_dispatch() -> None:
    """Say that there are changes: called in a background thread after writes of this process."""
    _send(dispatch_changes, "system")


def ring_runs() -> None:
    """Say that there are runs waiting: called in a background thread after commits of this process."""
    _send(deliver, "bots")


def ring_deliver() -> None:
    """Say that there is a delivery."""
    _send(deliver, "bots")


def _ring_deliver(count: int) -> None:
    """Have `count` new deliveries carried out: by this thread too if it may run Bots, which spares a message its way."""
    missing = deliveries.deliverers_missing(count) if count else 0
    is_here = missing > 0 and "bots" in current_app.amqp.queues.consume_from
    for _ in range(missing - is_here):
        _send(deliver, "bots")
    if is_here:
        deliver()


def _send(task: Any, queue: str) -> None:
    try:
        send(task, queue)
    except (OperationalError, OSError) as error:
        if (
            not _broker_is_away.is_set()
        ):  # once, not for every write; the sweep finds what these bells were about
            _log.warning(
                "The message broker cannot be reached (%s): Subscriptions are late", type(error).__name__
            )
            _broker_is_away.set()
    else:
        _broker_is_away.clear()


# --- worker processes ------------------------------------------------------------------------------------------------


@signals.worker_init.connect
def _start_worker(**_: Any) -> None:
    """Have the sandboxes ready before the first task comes."""
    calls.answer_questions()
    execution.listen_for_stops()
    execution.pool()


@signals.worker_ready.connect
def _sweep_at_start(**_: Any) -> None:
    """Take over at once what a predecessor has left behind."""
    short_way.open(current_app.amqp.queues.consume_from)
    _send(sweep, "system")


@signals.worker_shutting_down.connect
def _take_no_more(how: str, **_: Any) -> None:
    short_way.close(wait=how == "Warm")


@signals.worker_shutdown.connect
def _stop_worker(**_: Any) -> None:
    short_way.join()
    execution.close_pool()
    lease.drop()
