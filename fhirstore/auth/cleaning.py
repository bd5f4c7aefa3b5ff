"""Logins that are over are forgotten, after a while."""

from __future__ import annotations

import threading
import time
from typing import Final

from fhirstore import database

PAUSE: Final = 3600.0
"""Seconds between two looks, by each process."""
KEPT: Final = "7 days"
"""How long a login is kept after its last token has ended: until then its open WebSockets go on, and clocks may differ."""
BATCH: Final = 5000
"""Logins that one step forgets."""

_DELETE: Final = f"""
DELETE FROM fhirstore_login WHERE id IN (
    SELECT id FROM fhirstore_login
    WHERE auth_time < now() - interval '{KEPT}' AND (
        revoked < now() - interval '{KEPT}'
        OR access_expires < now() - interval '{KEPT}'
        AND (code_expires IS NULL OR code_expires < now() - interval '{KEPT}')
        AND (refresh_expires IS NULL OR refresh_expires < now() - interval '{KEPT}'))
    LIMIT {BATCH} FOR UPDATE SKIP LOCKED)
"""  # noqa: S608  (our own constants)

_turn = threading.Lock()
_next_look = 0.0


def forget_old_logins_sometimes() -> None:
    """:func:`forget_old_logins` now and then: the sweep calls this every few seconds."""
    global _next_look
    with _turn:
        if time.monotonic() < _next_look:
            return
        _next_look = time.monotonic() + PAUSE
    if forget_old_logins() == BATCH:
        _next_look = 0.0  # there are more: with the next sweep


def forget_old_logins() -> int:
    """Drop logins none of whose tokens (access, refresh, code) can be used any more; returns how many, at most BATCH.

    Raises:
        FhirError: 503, the database is away.
    """
    with database.connection() as connection:
        return connection.execute(_DELETE).rowcount
