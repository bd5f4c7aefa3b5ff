"""Ending a call from outside."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Stoppable(Protocol):
    """A process that can be told that nobody wants its result any more."""

    def stop(self) -> None:
        """Kill it."""


class Stop:
    """Ends a call, and those it waits for: at once if they run, as soon as they would begin if they wait for a process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._processes: list[Stoppable] = []
        self._requested = False

    @property
    def is_requested(self) -> bool:
        """True from the request on."""
        return self._requested

    def request(self) -> None:
        """End it; may be called from any thread, any number of times."""
        with self._lock:
            self._requested = True
            for process in self._processes:
                process.stop()

    @contextmanager
    def ends(self, process: Stoppable) -> Iterator[None]:
        """A request kills the process, until the end of the block."""
        with self._lock:
            self._processes.append(process)
            if self._requested:
                process.stop()
        try:
            yield
        finally:
            with self._lock:
                self._processes.remove(process)
