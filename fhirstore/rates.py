"""Rate limits: token buckets in the memory of this process, one for each client of each limiter.

A bucket holds what may be used in a minute and fills up evenly. Buckets are not shared: several web processes allow a
client as many times as much together, which is enough against a client that has gone wild and costs a microsecond.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import Final

from django.conf import settings

from fhirstore.errors import too_many_requests

MINUTE: Final = 60.0
MANY: Final = 10_000
"""With more buckets than this, full ones are forgotten."""


READ, HISTORY, SEARCH, WRITE = 1, 10, 20, 100
"""What an interaction costs, as Medplum counts it."""


def points(method: str, path: str, body: bytes) -> int:
    """What a FHIR request costs: a Bundle as many writes as it has entries, an operation a write."""
    parts = path.strip("/").split("/")
    if "$" in path:
        return WRITE
    if method == "GET":
        return (
            HISTORY
            if parts[-1] == "_history"
            else READ
            if len(parts) > 1 or parts[0] == "metadata"
            else SEARCH
        )
    if parts[-1] == "_search":
        return SEARCH
    return WRITE * max(1, body.count(b'"request"')) if parts == [""] else WRITE


class Limiter:
    """Limits what each client uses in a minute.

    Args:
        name: as the ``RateLimit`` header has it.
        amount: tells how much that is; nothing is limited while it is 0.
        clock: seconds that go on.
    """

    def __init__(
        self, name: str, amount: Callable[[], int], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.name = name
        self._amount = amount
        self._clock = clock
        self._buckets: dict[str, tuple[float, float]] = {}
        """Level and the time it was that."""
        self._lock = threading.Lock()

    def use(self, client: str, cost: int = 1) -> str:
        """Take ``cost`` from the client's bucket; return its value of the ``RateLimit`` header, "" without a limit.

        Raises:
            FhirError: 429 with ``Retry-After`` and ``RateLimit`` when there is not enough in it; then nothing is taken.
        """
        amount = self._amount()
        if amount <= 0:
            return ""
        cost = min(cost, amount)
        now = self._clock()
        with self._lock:
            level, before = self._buckets.get(client, (float(amount), now))
            level = min(amount, level + (now - before) * amount / MINUTE)
            enough = level >= cost
            if enough:
                level -= cost
            self._buckets[client] = (level, now)
            if len(self._buckets) > MANY:
                self._forget(amount, now)
        # Seconds until the bucket is full again.
        header = f'"{self.name}";r={int(level)};t={math.ceil((amount - level) * MINUTE / amount)}'
        if enough:
            return header
        wait = max(1, math.ceil((cost - level) * MINUTE / amount))
        raise too_many_requests(wait, header)

    def _forget(self, amount: int, now: float) -> None:
        full_since = {
            client
            for client, (level, before) in self._buckets.items()
            if level + (now - before) * amount / MINUTE >= amount
        }
        # Rather forgive everybody than grow without end.
        if len(self._buckets) - len(full_since) > MANY:
            self._buckets.clear()
        for client in full_since:
            self._buckets.pop(client, None)


requests = Limiter("requests", lambda: settings.RATE_LIMIT_REQUESTS)
"""Requests to the API, by address."""
interactions = Limiter("fhirInteractions", lambda: settings.RATE_LIMIT_POINTS)
"""Points of FHIR interactions, by client."""
