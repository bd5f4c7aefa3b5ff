"""The scheduler while its broker is away."""

from __future__ import annotations

import logging

import pytest
from celery import Celery

from console.celery import Scheduler, app
from tests.conftest import free_port


@pytest.mark.usefixtures("database")
def test_a_broker_that_is_away_is_told_of_once_each_time(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CELERY_BROKER_URL", raising=False)  # Celery would prefer it
    away = Celery("away", broker=f"amqp://127.0.0.1:{free_port()}//", set_as_current=False)
    at_once = {"max_retries": 1, "interval_start": 0, "interval_step": 0}
    away.conf.update(task_publish_retry=False, broker_transport_options=at_once)
    scheduler = Scheduler(away, lazy=True)
    entry = scheduler.Entry(
        name="sweep", task="tests.unknown", schedule=1.0, app=away, options={"expires": 0.001}
    )
    for _ in range(2):
        with caplog.at_level(logging.WARNING, "console.celery"):
            for _ in range(3):
                scheduler.apply_entry(entry)
        assert [record.getMessage() for record in caplog.records] == [
            "The scheduler cannot send (OperationalError): Subscriptions and schedules are late"
        ]
        caplog.clear()
        scheduler.app = app  # it is back
        scheduler.apply_entry(entry)
        assert not caplog.records
        scheduler.app = away
