"""Celery tasks that carry out the store's own work: its asynchronous jobs. As in `bots.tasks`, messages are only bells."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any, Final

from celery import shared_task, signals
from django.core.management import call_command
from kombu.exceptions import OperationalError

from fhirstore.api import (
    due_jobs,
    expire_files,
    forget_old_logins_sometimes,
    run_due_jobs,
    stop_jobs,
    sweep_binaries,
)

CLEANING: Final = 3600.0
"""Seconds between two looks for sessions of the console that have expired."""

_log = logging.getLogger(__name__)
_broker_is_away = threading.Event()
_next_cleaning = 0.0


@shared_task(ignore_result=True)
def run_jobs() -> None:
    """Run the store's jobs that are due."""
    run_due_jobs()


@shared_task(ignore_result=True)
def sweep() -> None:
    """Find the jobs and files that a lost message or a dead process has left behind."""
    sweep_binaries()
    expire_files()
    for _ in range(min(due_jobs(), 4)):
        _send(run_jobs)
    forget_old_logins_sometimes()
    _forget_old_sessions_sometimes()


def _forget_old_sessions_sometimes() -> None:
    global _next_cleaning
    if time.monotonic() >= _next_cleaning:
        _next_cleaning = time.monotonic() + CLEANING
        call_command("clearsessions")


def ring_jobs() -> None:
    """Say that there is a job: called in a background thread after a commit of this process."""
    _send(run_jobs)


def _send(task: Any) -> None:
    try:
        task.apply_async(queue="system")
    except (OperationalError, OSError) as error:
        if not _broker_is_away.is_set():  # once; the sweep finds what these bells were about
            _log.warning("The message broker cannot be reached (%s): jobs are late", type(error).__name__)
            _broker_is_away.set()
    else:
        _broker_is_away.clear()


@signals.worker_shutting_down.connect
def _stop_jobs(**_: Any) -> None:
    """Leave long jobs to the next worker instead of making everybody wait for their end."""
    stop_jobs()
