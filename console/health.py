"""`/healthcheck`: whether database, broker, worker and sandbox work, and the signs of life that workers write for it."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from importlib.metadata import version
from typing import Any

import psycopg
from django.conf import settings
from django.db import DatabaseError, connection
from django.http import HttpRequest, JsonResponse
from django.utils import timezone

from console.celery import app

BEAT_SECONDS = 5.0
"""How often a worker writes its sign of life."""

MISSING_AFTER = timedelta(seconds=4 * BEAT_SECONDS)
"""A worker that has been silent for so long counts as gone."""

SANDBOX_SECONDS = 60.0
"""How often a worker tries its sandbox."""

CACHE_SECONDS = 1.0
"""A good answer is kept for so long in each web process: whoever asks in a loop asks for one real check a second."""

OK = "ok"

logger = logging.getLogger(__name__)


def healthcheck(request: HttpRequest) -> JsonResponse:
    """200 with ``{"ok": true, "version": …, "parts": {…}}`` when all parts work, else 503 and what is wrong."""
    parts = _cached_parts()
    healthy = all(state == OK for state in parts.values())
    body = {"ok": healthy, "version": version("fhirbots"), "parts": parts}
    return JsonResponse(body, status=200 if healthy else 503, headers={"Cache-Control": "no-store"})


_cache_lock = threading.Lock()
_cache: tuple[float, dict[str, str]] = (-CACHE_SECONDS, {})


def _cached_parts() -> dict[str, str]:
    """The states of the parts.

    A bad answer is not kept, or one web process would still tell of a trouble that another no longer sees; but whoever
    waited while it was found out shares it, so that a slow check is made by one request at a time.
    """
    global _cache
    asked = time.monotonic()
    with _cache_lock:
        checked, parts = _cache
        good = bool(parts) and all(state == OK for state in parts.values())
        if checked < asked and not (good and asked - checked < CACHE_SECONDS):
            parts = check_parts()
            _cache = (time.monotonic(), parts)
        return parts


def check_parts() -> dict[str, str]:
    """Look at each part; the values are "ok" or a sentence without addresses and names."""
    parts = {"database": OK, "broker": OK, "worker": OK, "sandbox": OK}
    try:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT problem FROM console_worker WHERE seen > %s", [timezone.now() - MISSING_AFTER]
            )
            problems = [problem for (problem,) in cursor.fetchall()]
    except DatabaseError:
        # without the database the other parts are unknown, and they cannot work
        return dict.fromkeys(parts, "The database does not answer or is not migrated.")
    try:
        with app.connection_for_write() as broker:
            broker.ensure_connection(max_retries=1, interval_start=0, timeout=3)
    except Exception:  # noqa: BLE001  each transport has its own errors, and all mean the same here
        parts["broker"] = "The message broker does not answer."
    if not problems:
        parts["worker"] = "No worker is running."
        parts["sandbox"] = "No worker is running that could run a Bot."
    elif all(problems):
        parts["sandbox"] = problems[0]
    return parts


def try_sandbox() -> str:
    """Run a tiny Bot in this process's sandbox pool; returns what is wrong in one sentence, or an empty string."""
    from bots.api import HostResponse, Invocation, Program, pool

    program = Program(
        ("healthcheck",), "exports.handler = async () => 'ok';", "healthcheck.js", module="commonjs"
    )
    invocation = Invocation(program, event={}, base_url=settings.BASE_URL, timeout=10)
    try:
        result = pool().run(invocation, lambda _asked: HostResponse(403))
    except Exception:
        logger.exception("The sandbox cannot be started.")
        return "The sandbox cannot be started; the worker's log says why."
    if result.value == "ok":
        return ""
    logger.error("The sandbox does not run Bots: %s %s", result.failure, result.error)
    return "The sandbox does not run Bots; the worker's log says why."


class Heartbeat(threading.Thread):
    """Writes a worker's sign of life while `is_consuming`, with the result of trying the sandbox.

    Args:
        is_consuming: whether the worker is connected to its broker.
    """

    def __init__(self, is_consuming: Callable[[], bool]) -> None:
        super().__init__(name="heartbeat", daemon=True)
        self._is_consuming = is_consuming
        self._worker = f"{socket.gethostname()}:{os.getpid()}"
        self._stop_bell = threading.Event()

    def run(self) -> None:
        """Beat until stopped."""
        tried, problem = -SANDBOX_SECONDS, ""
        while not self._stop_bell.is_set():
            written = False
            if self._is_consuming():
                if problem or time.monotonic() - tried >= SANDBOX_SECONDS:
                    tried, problem = time.monotonic(), try_sandbox()
                written = self._write(
                    "INSERT INTO console_worker (name, seen, problem) VALUES (%s, now(), %s)"
                    " ON CONFLICT (name) DO UPDATE SET seen = excluded.seen, problem = excluded.problem",
                    [self._worker, problem],
                )
            self._stop_bell.wait(BEAT_SECONDS if written else 0.5)
        self._write(
            "DELETE FROM console_worker WHERE name = %s OR seen < now() - interval '1 hour'", [self._worker]
        )
        connection.close()

    def stop(self) -> None:
        """Take the sign of life back and end."""
        self._stop_bell.set()
        self.join(timeout=5)

    def _write(self, statement: str, parameters: list[Any]) -> bool:
        try:
            with connection.cursor() as cursor:
                cursor.execute(statement, parameters)
        except (DatabaseError, psycopg.Error):
            logger.warning("The sign of life cannot be written: the database does not answer.")
            connection.close()
            return False
        return True
