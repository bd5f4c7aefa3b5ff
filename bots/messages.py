"""Messages to workers: Celery's, sent and taken without what Celery does for tasks that have retries, limits or results.

Ours have none of these, and that would take longer than to run a warm Bot. A message is a bell or a call (:mod:`bots.calls`).
Where sender and worker share a machine it goes from one to the other (:mod:`bots.shortcut`), else through Celery's broker.
"""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any, Final

import orjson
from celery import Task, current_app
from django.conf import settings
from django.db import close_old_connections, connections

from bots.shortcut import Inlet, Outlet, meeting_place
from fhirstore.api import log_failure

_log = logging.getLogger(__name__)

_NO_FOLLOWERS: Final = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}


class Direct(Task):  # type: ignore[type-arg]  # at run time it has none
    """A task whose messages go straight to a thread of the worker. Expiry, retries and the like are without effect."""

    Strategy = "bots.messages:hand_over"


def hand_over(task: Direct, _app: Any, consumer: Any, **_: Any) -> Callable[..., None]:
    """Celery's hook for what a worker does with the messages of a task: returns the function that takes one."""

    def take(message: Any, _payload: Any, acknowledge: Any, *_: Any) -> None:
        def accept(*_: Any) -> None:
            acknowledge(_log, consumer.connection_errors)

        consumer.pool.apply_async(_run, (message.body, task), accept_callback=accept, callback=_ignore)

    return take


def _run(body: str | bytes, task: Any = None) -> None:
    """Run the task a message is for: the arguments come first in it, then, if it came the short way, the task's name."""
    name = "message"
    try:
        arguments, *others = orjson.loads(body)
        task = task or current_app.tasks[others[0]]
        name = task.name
        task.run(*arguments)
    except Exception as error:  # noqa: BLE001  whatever it is, nobody else would tell of it
        log_failure(name, error)
    finally:
        close_old_connections()


def _ignore(_result: Any) -> None:
    """What a task returns is of no use."""


def send(task: Any, queue: str, *arguments: Any) -> None:
    """Let a worker run a task; raises kombu's OperationalError or OSError when the broker cannot be reached.

    The message is that of Celery's protocol 2 (https://docs.celeryq.dev/en/stable/internals/protocol.html), put together here
    because ``apply_async`` takes four times as long.
    """
    if _outlet_sends(queue, task.name, arguments):
        return
    id_ = uuid.uuid4().hex
    headers = {
        "lang": "py",
        "task": task.name,
        "id": id_,
        "root_id": id_,
        "parent_id": None,
        "group": None,
        "argsrepr": "(…)",
        "kwargsrepr": "{}",
        "retries": 0,
        "eta": None,
        "expires": None,
        "timelimit": [None, None],
        "ignore_result": True,
    }
    target = current_app.amqp.queues[queue]
    with current_app.producer_pool.acquire(block=True) as producer:
        connection: Any = producer.connection
        is_known = hash(target) in connection.declared_entities  # kombu would find out by copying it
        producer.publish(
            orjson.dumps([arguments, {}, _NO_FOLLOWERS]).decode(),
            routing_key=target.name,  # of the default exchange, which every broker has
            declare=None if is_known else [target],
            headers=headers,
            content_type="application/json",
            content_encoding="utf-8",
            correlation_id=id_,
            delivery_mode=1,  # transient
            retry=True,
            retry_policy=current_app.conf.task_publish_retry_policy,
        )


# --- the short way ---------------------------------------------------------------------------------------------------


def _outlet_sends(queue: str, name: str, arguments: tuple[Any, ...]) -> bool:
    outlet = _outlet()
    return outlet is not None and outlet.send(queue, orjson.dumps([arguments, name]))


@cache
def _outlet() -> Outlet | None:
    folder, database = _meeting_place()
    return None if folder is None else Outlet(folder, database)


def _meeting_place() -> tuple[Path | None, str]:
    given = connections["default"].settings_dict
    is_embedded = settings.CELERY_BROKER_URL.startswith("postgresql")
    return meeting_place(str(given["HOST"])) if is_embedded else None, str(given["NAME"])


class ShortWay:
    """Takes the messages that come the short way to this worker, beside Celery's threads: each of its own waits for one."""

    def __init__(self) -> None:
        self._inlets: list[Inlet] = []
        self._threads: list[threading.Thread] = []
        self._waits = True

    def open(self, queues: Iterable[str]) -> None:
        """Take messages of these queues, if there is a short way here."""
        folder, database = _meeting_place()
        if folder is None:
            return
        for queue in queues:
            try:
                inlet = Inlet(folder, database, queue)
            except OSError as error:
                _log.warning("Messages go through the broker only: %s", error.strerror)
                return
            self._inlets.append(inlet)
            for number in range(settings.WORKER_THREADS):
                thread = threading.Thread(
                    target=_take, args=(inlet,), name=f"messages-{queue}-{number}", daemon=True
                )
                thread.start()
                self._threads.append(thread)

    def close(self, *, wait: bool) -> None:
        """Take no more. `wait`: what was taken shall be done before the process ends."""
        self._waits = wait
        for inlet in self._inlets:
            inlet.close()

    def join(self) -> None:
        """Wait until everything that was taken is done, if that is wanted."""
        for thread in self._threads if self._waits else ():
            thread.join()


def _take(inlet: Inlet) -> None:
    while body := inlet.take():
        _run(body)


short_way: Final = ShortWay()
"""Of this process."""
