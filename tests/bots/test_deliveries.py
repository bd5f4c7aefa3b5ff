"""When a delivery is over, when it is tried again, and how the threads that deliver keep nothing waiting."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime

import psycopg
import pytest

from bots.deliveries import LONGEST_PAUSE, MAX_ATTEMPTS, Claim, deliver_due, verdict
from bots.models import Delivery
from bots.request import ExecutionResult
from bots.subscriptions import dispatch_changes
from bots.tasks import sweep
from bots.workers import LEASES, Deliverers, Lease
from fhirstore.api import Repository, connection, connection_parameters, system_identity
from fhirstore.bootstrap import bootstrap


def claim(failures: int) -> Claim:
    moment = datetime(2026, 11, 21, tzinfo=UTC)
    return Claim(
        id=1,
        project="p",
        trigger="subscription",
        subscription_id="s",
        bot_id="b",
        resource_type="Patient",
        resource_id="r",
        version_id="v",
        previous_version_id=None,
        interaction="create",
        author="Practitioner/x",
        changed=moment,
        trace_id="t",
        depth=0,
        attempts=failures + 1,
        failures=failures,
        forgiven=0,
    )


def ended(failure: str | None, log_text: str = "said by the Bot") -> ExecutionResult:
    return ExecutionResult(failure is None, 200, "text/plain", b"", log_text=log_text, failure=failure)


@pytest.mark.parametrize(
    ("failure", "failures", "state", "outcome", "seconds"),
    [
        (None, 0, "done", "", 0),
        ("skipped", 0, "skipped", "said by the Bot", 0),
        ("refused", 0, "failed", "said by the Bot", 0),
        ("code", 0, "retrying", "The Bot failed: code", 20),
        ("outcome", 1, "retrying", "The Bot failed: outcome", 40),
        ("endpoint", 2, "retrying", "said by the Bot", 80),
        ("timeout", 3, "failed", "The Bot failed: timeout", 0),
        ("startup", 0, "retrying", "The Bot failed: startup", 5),
        ("startup", 1, "retrying", "The Bot failed: startup", 10),
        ("startup", MAX_ATTEMPTS - 2, "retrying", "The Bot failed: startup", 40),
        ("startup", MAX_ATTEMPTS - 1, "failed", "The Bot failed: startup", 0),
    ],
)
def test_what_is_tried_again_and_when(
    failure: str | None, failures: int, state: str, outcome: str, seconds: int
) -> None:
    found, sentence, pause = verdict(claim(failures), ended(failure), 4)
    assert (found, sentence) == (state, outcome)
    assert seconds * 0.9 <= pause.total_seconds() <= seconds * 1.1


def test_pauses_end_at_eight_hours_and_attempts_where_they_are_told_to() -> None:
    assert verdict(claim(16), ended("code"), 18)[2] == LONGEST_PAUSE
    assert verdict(claim(17), ended("code"), 18)[0] == "failed"
    assert verdict(claim(0), ended("code"), 1)[0] == "failed"


def test_deliverers_are_called_as_far_as_they_are_missing(settings: pytest.FixtureRequest) -> None:
    settings.WORKER_THREADS = 4  # type: ignore[attr-defined]
    deliverers = Deliverers()
    assert deliverers.missing(1) == 1
    assert deliverers.missing(10) == 2
    assert deliverers.join()
    assert deliverers.missing(10) == 1
    assert deliverers.join()
    assert deliverers.missing(10) == 0
    assert not deliverers.join()


def test_deliverer_looks_again_when_something_was_announced_meanwhile() -> None:
    deliverers = Deliverers()
    assert deliverers.join()
    announced = deliverers.announced
    deliverers.missing(1)
    assert not deliverers.leave(announced)
    assert deliverers.leave(deliverers.announced)
    assert deliverers.join()
    assert deliverers.leave()


def test_delivery_that_always_breaks_in_our_hands_ends_as_failed(database: None) -> None:
    made = bootstrap(email="breaks@example.com", password="x" * 20, project_name="Breaks")
    repository = Repository(system_identity(made.project))
    channel = {"type": "rest-hook", "endpoint": f"Bot/{made.project}", "payload": "application/fhir+json"}
    subscription = {"status": "active", "reason": "r", "criteria": "Patient", "channel": channel}
    id_ = repository.create({"resourceType": "Subscription"} | subscription).id
    patient = repository.create({"resourceType": "Patient"})
    dispatch_changes()
    with connection() as session:
        session.execute(
            "UPDATE version SET content = 'no JSON' WHERE version_id = %s::uuid", (patient.version_id,)
        )
    delivery = Delivery.objects.filter(subscription_id=id_)
    states = []
    for _ in range(MAX_ATTEMPTS + 1):
        delivery.update(state="waiting", due=datetime.now(UTC))
        deliver_due()
        states.append(delivery.get().state)
    assert states == ["retrying"] * MAX_ATTEMPTS + ["failed"]
    assert (
        delivery.get().outcome == "Given up: 6 times cut off by a fault of the server, whose log tells more"
    )


def test_step_of_the_sweep_that_fails_does_not_hold_up_the_others(database: None) -> None:
    made = bootstrap(email="sweep@example.com", password="x" * 20, project_name="Sweep")
    repository = Repository(system_identity(made.project))
    channel = {"type": "rest-hook", "endpoint": "https://example.com/", "payload": "application/fhir+json"}
    subscription = {"status": "active", "reason": "r", "criteria": "Patient", "channel": channel}
    id_ = repository.create({"resourceType": "Subscription"} | subscription).id
    repository.create({"resourceType": "Patient"})
    with connection() as session:
        session.execute("ALTER TABLE bots_idempotentcall RENAME TO away")
        try:
            sweep()
        finally:
            session.execute("ALTER TABLE away RENAME TO bots_idempotentcall")
    assert Delivery.objects.filter(subscription_id=id_).count() == 1


def test_lease_whose_lock_could_not_be_taken_is_none(
    database: None, settings: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.DATABASE_STATEMENT_TIMEOUT = 0.2  # type: ignore[attr-defined]
    lease = Lease()
    with psycopg.connect(**connection_parameters()) as other, monkeypatch.context() as patched:
        patched.setattr(secrets, "randbelow", lambda _: 41)
        other.execute("SELECT pg_advisory_lock(%s, 42)", (LEASES,))
        with pytest.raises(psycopg.errors.QueryCanceled):
            lease.number()
    number = lease.number()
    with connection() as session:
        is_held = session.execute(
            "SELECT count(*) FROM pg_locks WHERE classid = %s::int AND objid::bigint = %s AND granted",
            (LEASES, number),
        ).fetchone()
    lease.drop()
    assert is_held == (1,)
