"""``Idempotency-Key``: a request that is sent again gets the answer of the first one, and the Bot runs once.

A key belongs to a caller and a Bot, and is known for a day (:data:`KEEP`). The worker stores the answer in the transaction of the
AuditEvent, so an answer is there exactly when the run is on record. Whoever comes with the key of a run that has not ended waits
for its answer. A key whose run ended without an answer, because its worker or database died, is free again: then the Bot may have
run, and the client that repeats its request wants it to run.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Final

import orjson

from bots.request import ExecutionRequest
from fhirstore.api import FhirError, bad_request, connection, issue, outcome

HEADER: Final = "idempotency-key"
REPLAYED: Final = "Idempotent-Replayed"
"""Header of an answer that was given before."""

KEEP: Final = timedelta(days=1)
MAX_KEY: Final = 255
GRACE: Final = 60.0
"""Seconds beyond its time limit after which a run without an answer is given up."""

FIRST_LOOK: Final = 0.02
LAST_LOOK: Final = 0.5

_CLAIM: Final = """
INSERT INTO bots_idempotentcall (project, caller, bot_id, key_digest, request_digest, until)
VALUES (%(project)s, %(caller)s, %(bot_id)s, %(key)s, %(request)s, clock_timestamp() + %(patience)s)
ON CONFLICT (project, caller, bot_id, key_digest) DO UPDATE
SET request_digest = excluded.request_digest, until = excluded.until, answer = NULL, created = clock_timestamp()
WHERE bots_idempotentcall.created < clock_timestamp() - %(keep)s
    OR (bots_idempotentcall.answer IS NULL AND bots_idempotentcall.until < clock_timestamp())
RETURNING id
"""
_LOOK: Final = """
SELECT request_digest, answer FROM bots_idempotentcall
WHERE project = %(project)s AND caller = %(caller)s AND bot_id = %(bot_id)s AND key_digest = %(key)s
"""


def run_once(
    key: str,
    request: ExecutionRequest,
    fingerprint: bytes,
    timeout: float,
    run: Callable[[int], bytes],
) -> tuple[bytes, bool]:
    """Return the answer to a request with a key, and whether it was given before.

    Args:
        key: as sent.
        request: the run it asks for.
        fingerprint: of all that the request consists of.
        timeout: of the Bot, in seconds.
        run: does it, given the number under which :func:`store` keeps the answer; raises when there is none.

    Raises FhirError: 400 for a key that is none, 422 when it was used for another request.
    """
    if not 0 < len(key) <= MAX_KEY:
        raise bad_request(f"Idempotency-Key must have 1 to {MAX_KEY} characters")
    parameters = {
        "project": request.project,
        "caller": request.caller or "",
        "bot_id": request.bot_id,
        "key": hashlib.sha256(key.encode()).digest(),
        "request": fingerprint,
        "patience": timedelta(seconds=timeout + GRACE),
        "keep": KEEP,
    }
    pause = FIRST_LOOK
    while True:
        with connection() as session:
            claimed = session.execute(_CLAIM, parameters).fetchone()
            found = None if claimed else session.execute(_LOOK, parameters).fetchone()
        if claimed:
            return _run(claimed[0], run), False
        if found is not None:
            if bytes(found[0]) != fingerprint:
                text = "This Idempotency-Key was used for another request"
                raise FhirError(outcome("business-rule", [issue(text, code="business-rule")]))
            if found[1] is not None:
                return bytes(found[1]), True
            time.sleep(pause)
            pause = min(pause * 2, LAST_LOOK)


def _run(number: int, run: Callable[[int], bytes]) -> bytes:
    try:
        return run(number)
    except BaseException:
        with connection() as session:
            session.execute("DELETE FROM bots_idempotentcall WHERE id = %s AND answer IS NULL", (number,))
        raise


def store(number: int, answer: bytes) -> None:
    """Keep an answer, in the current transaction if there is one."""
    with connection() as session:
        session.execute("UPDATE bots_idempotentcall SET answer = %s WHERE id = %s", (answer, number))


def fingerprint_of(method: str, path: str, content_type: str | None, query: str, body: bytes) -> bytes:
    """What two requests have in common if they are the same."""
    parts = [method, path, content_type or "", query, hashlib.sha256(body).hexdigest()]
    return hashlib.sha256(orjson.dumps(parts)).digest()


def forget_old() -> None:
    """Drop answers nobody will ask for any more."""
    with connection() as session:
        session.execute(
            "DELETE FROM bots_idempotentcall WHERE id IN (SELECT id FROM bots_idempotentcall"
            " WHERE created < clock_timestamp() - %s ORDER BY id LIMIT 500)",
            (KEEP,),
        )
