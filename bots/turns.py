"""Taking turns: one project's flood of calls delays its own and nobody else's.

At two places calls of a project could use up what all need:

* The threads of a web server process, each of which waits for one answer: :class:`Admission` lets a project have all but a few.
* The threads of a worker process, each of which runs one Bot: :class:`Turns` takes every message off the queue at once, so that no
  project's calls stand behind another's, and gives each thread that becomes free to the project that has the fewest at work.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from django.conf import settings

from bots.results import NOT_AGAIN
from fhirstore.api import FhirError, issue, log_failure, outcome

Job = Callable[[], None]

SPARE: Final = 3
"""Threads of a web server process that no project alone can keep busy."""

GRACE: Final = 0.25
"""Seconds a call waits for one of its project to end before it is refused: enough for the peaks of quick Bots."""


class Admission:
    """How many calls of each project this process may wait for at the same time."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._changed = threading.Condition()
        self._counts: Counter[str] = Counter()

    @contextmanager
    def of(self, project: str) -> Iterator[None]:
        """Count a call as long as the block lasts.

        Raises FhirError: 429 when the project has too many; the Bot has not run then.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._counts[project] < self._limit, GRACE):
                raise _too_many(self._limit)
            self._counts[project] += 1
        try:
            yield
        finally:
            with self._changed:
                self._counts[project] -= 1
                if not self._counts[project]:
                    del self._counts[project]
                self._changed.notify_all()


def _too_many(limit: int) -> FhirError:
    text = f"Too many Bots of this project run at the same time (more than {limit}). This one was not run: try again later"
    return FhirError(
        outcome("too-many-requests", [issue(text, code="throttled")]),
        {"Retry-After": "3", "RateLimit": NOT_AGAIN},
    )


admission: Final = Admission(max(1, int(settings.WEB_THREADS) - SPARE))
"""Of this process."""


class Turns:
    """Runs jobs in the threads that bring them, as many at a time as there are threads, less one that keeps taking messages.

    Args:
        limit: returns how many jobs may run now.
    """

    def __init__(self, limit: Callable[[], int]) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._running: Counter[str] = Counter()
        self._waiting: dict[str, deque[Job]] = {}

    def take(self, project: str, job: Job) -> None:
        """Run the job, and then those that wait; or leave it to a thread that runs another one now."""
        with self._lock:
            if self._running.total() >= self._limit():
                self._waiting.setdefault(project, deque()).append(job)
                return
            self._running[project] += 1
        following: tuple[str, Job] | None = (project, job)
        while following is not None:
            project, job = following
            try:
                job()
            except Exception as error:  # noqa: BLE001  whatever it is, those that wait for this thread have their turn
                log_failure("call", error)
            following = self._end(project)

    def _end(self, project: str) -> tuple[str, Job] | None:
        with self._lock:
            self._running[project] -= 1
            if not self._running[project]:
                del self._running[project]
            if not self._waiting:
                return None
            following = min(
                self._waiting, key=lambda each: self._running[each]
            )  # of equals who was served longest ago
            jobs = self._waiting.pop(following)
            job = jobs.popleft()
            if jobs:
                self._waiting[following] = jobs
            self._running[following] += 1
            return following, job
