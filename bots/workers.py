"""What a worker process is to others: its lease, which says that it lives, and its threads that deliver."""

from __future__ import annotations

import contextlib
import secrets
import threading
from collections.abc import Iterator
from typing import Final

import psycopg
from django.conf import settings

from fhirstore.api import connection_parameters

LEASES: Final = 5_270_002
"""First key of the advisory locks; the second is the lease."""


class Lease:
    """The advisory lock that says this process lives."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._session: psycopg.Connection | None = None
        self._number = 0

    def number(self) -> int:
        """Return the number of the lease, taking a new one if there is none or the connection of the old one broke."""
        with self._lock:
            if self._session is not None:
                try:
                    self._session.execute("SELECT 1")
                    return self._number
                except psycopg.OperationalError:
                    self._session.close()
                self._session = None
            session = psycopg.connect(**connection_parameters())
            number = 1 + secrets.randbelow(2**31 - 1)
            try:
                session.execute("SELECT pg_advisory_lock(%s, %s)", (LEASES, number))
            except BaseException:
                session.close()
                raise
            # Not before: what is claimed under a number without its lock is given to others at once.
            self._session, self._number = session, number
            return number

    def drop(self) -> None:
        """Let go of everything this process has claimed."""
        with self._lock:
            if self._session is not None:
                self._session.close()
                self._session = None


lease: Final = Lease()
"""Of this process."""


def free_threads() -> int:
    """How many threads of this process may run Bots for callers who wait: one goes on taking messages."""
    return max(1, int(settings.WORKER_THREADS) - 1 - deliverers.active)


class Deliverers:
    """The threads of this process that deliver: as many as there is work for, but some stay free for callers who wait.

    A thread leaves when it has found nothing; what is announced between its last look and its leaving makes it look again.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._active = 0
        self.announced = 0
        """Changes with each announcement of deliveries."""

    def missing(self, count: int) -> int:
        """Announce `count` new deliveries; returns how many threads have to join for them."""
        with self._lock:
            self.announced += 1
            return min(count, self._limit() - self._active)

    def join(self) -> bool:
        """Take part; False if enough do. They have been told, then."""
        with self._lock:
            if self._active >= self._limit():
                self.announced += 1
                return False
            self._active += 1
            return True

    def leave(self, announced: int | None = None) -> bool:
        """Stop taking part; False, and no leave, if something was announced since `announced` was read."""
        with self._lock:
            if announced not in (None, self.announced):
                return False
            self._active -= 1
            return True

    @property
    def active(self) -> int:
        """Threads that deliver now."""
        return self._active

    @staticmethod
    def _limit() -> int:
        return max(1, int(settings.WORKER_THREADS) - 2)


deliverers: Final = Deliverers()
"""Of this process."""


class Underway:
    """The deliveries this process carries out now: whose they are, so that projects take turns, and how many call other servers.

    Never more than half the threads call other servers, or one dead endpoint would stop all Bots.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._projects: list[str] = []
        self._calls = 0

    @contextlib.contextmanager
    def counted(self, project: str, *, is_call: bool) -> Iterator[None]:
        """Count what happens inside the block."""
        with self._lock:
            self._projects.append(project)
            self._calls += is_call
        try:
            yield
        finally:
            with self._lock:
                self._projects.remove(project)
                self._calls -= is_call

    def state(self, ending: str | None = None, *, is_call: bool = False) -> tuple[bool, list[str], int]:
        """Return what is claimed by: whether it must be for a Bot, the projects of all under way, and how many one may have.

        A project leaves one thread to the others: its own slow Bots must not be what they wait for.

        Args:
            ending: project of one that ends now, and does not count any more.
            is_call: that one called another server.
        """
        with self._lock:
            projects, calls = list(self._projects), self._calls
        if ending in projects:
            projects.remove(ending)
            calls -= is_call
        threads = max(1, int(settings.WORKER_THREADS) - 2)
        return calls >= max(1, threads // 2), projects, max(1, threads - 1)
