"""The outbox: every write leaves a :class:`Change` in its transaction; who follows changes claims and deletes them.

The table is the truth; the doorbell (:func:`on_change`) only says that it is worth looking now.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal

from psycopg.rows import class_row

from fhirstore import database

logger = logging.getLogger(__name__)

UNWATCHED: Final = frozenset({"AuditEvent"})
"""Types whose writes make no Change, unless the Repository is told to: every run writes one, and following all would never end."""


@dataclass(frozen=True, slots=True)
class Change:
    """One write.

    Attributes:
        id: ascending; the order of one resource's changes.
        type, resource_id, version_id: what was written; for deletes the version of the deletion.
        previous_version_id: the version before, None on create.
        author: reference of the acting profile.
        trace_id: of the request or run that wrote, None if it had none.
        depth: how many bot runs lie between a person's write and this one.
        content: the version's JSON; for deletes a stub with ``meta``.
        previous: JSON of the version before, None on create.
    """

    id: int
    project: str
    type: str
    resource_id: str
    version_id: str
    previous_version_id: str | None
    interaction: Literal["create", "update", "delete"]
    author: str
    trace_id: str | None
    depth: int
    created: datetime
    content: bytes
    previous: bytes | None


# A resource's changes leave in order: one whose elder is still claimed by somebody else waits for the next bell. OFFSET
# keeps the question a look at the index for each row, however many changes are waiting.
_CLAIM = """
WITH head AS MATERIALIZED (
    SELECT * FROM change WHERE project <> ALL(%(besides)s::uuid[]) ORDER BY id LIMIT %(limit)s FOR UPDATE SKIP LOCKED
)
SELECT h.id, h.project::text, h.type, h.resource_id::text, h.version_id::text, h.previous_version_id::text,
    h.interaction, h.author, h.trace_id, h.depth, h.created,
    convert_to(v.content, 'UTF8') AS content, convert_to(p.content, 'UTF8') AS previous
FROM head h
JOIN version v ON v.rid = h.rid AND v.version_id = h.version_id
LEFT JOIN version p ON p.rid = h.rid AND p.version_id = h.previous_version_id
WHERE NOT EXISTS (
    SELECT FROM change e
    WHERE e.rid = h.rid AND e.id < h.id AND NOT EXISTS (SELECT FROM head o WHERE o.id = e.id)
    OFFSET 0
)
ORDER BY h.id
"""


def claim_changes(limit: int, *, besides: Iterable[str] = ()) -> list[Change]:
    """Lock up to ``limit`` changes, oldest first, for the current transaction; others skip them.

    Delete them with :func:`delete_changes` in the same transaction. Without a commit they are free again.

    Args:
        limit: how many at most.
        besides: ids of projects whose changes stay where they are.

    Raises:
        RuntimeError: outside a transaction.
    """
    if not database.in_transaction():
        raise RuntimeError("claim_changes() needs a transaction")
    with database.connection() as connection, connection.cursor(row_factory=class_row(Change)) as cursor:
        values = {"limit": limit, "besides": list(besides)}
        return cursor.execute(_CLAIM, values, prepare=True).fetchall()


def new_change_id() -> int:
    """A number behind all changes there have been, for an event that no write has made."""
    with database.connection() as connection:
        row = connection.execute("SELECT nextval(pg_get_serial_sequence('change', 'id'))").fetchone()
    assert row is not None
    return int(row[0])


def delete_changes(ids: Sequence[int]) -> None:
    """Remove changes that have been dealt with."""
    with database.connection() as connection:
        connection.execute("DELETE FROM change WHERE id = ANY(%s::bigint[])", [database.plain_array(ids)])


PAUSE: Final = 0.005
"""Seconds between two calls of the doorbell: a lone write is heard of at once, of a stream of them several together."""


class Doorbell:
    """Calls the callbacks in a thread of its own; rings that come meanwhile, or within PAUSE, become one.

    Args:
        subject: what it rings for.
    """

    def __init__(self, subject: str) -> None:
        self._subject = subject
        os.register_at_fork(after_in_child=self.after_fork)
        self._callbacks: list[Callable[[], None]] = []
        self._rung = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def add(self, callback: Callable[[], None]) -> None:
        """Call ``callback()`` after rings; its errors are logged."""
        self._callbacks.append(callback)

    def ring(self) -> None:
        """Costs a flag; the thread starts with the first ring."""
        if not self._callbacks or self._rung.is_set():
            return
        if self._thread is None:
            with self._lock:
                if self._thread is None:
                    self._thread = threading.Thread(
                        target=self._serve, name=f"fhirstore-{self._subject}", daemon=True
                    )
                    self._thread.start()
        self._rung.set()

    def after_fork(self) -> None:
        """The child has no thread yet, whatever the parent had."""
        self._rung, self._lock, self._thread = threading.Event(), threading.Lock(), None

    def _serve(self) -> None:
        while True:
            self._rung.wait()
            # Cleared before the calls: what is written from here on rings again.
            self._rung.clear()
            for callback in list(self._callbacks):
                try:
                    callback()
                except Exception:
                    logger.exception("The doorbell for %s failed.", self._subject)
            time.sleep(PAUSE)


_doorbell = Doorbell("changes")


def on_change(callback: Callable[[], None]) -> None:
    """Call ``callback()`` in a background thread soon after any write of this process is committed.

    Many writes may become one call; a call may come without a change. Its errors are logged.
    """
    _doorbell.add(callback)


def ring() -> None:
    """Ring after the commit of the current transaction, at once outside of one; called by the repository."""
    database.on_commit(_doorbell.ring)
