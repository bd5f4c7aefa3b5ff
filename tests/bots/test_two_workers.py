"""Two workers and two schedulers side by side, as the services form allows, on whichever broker this run has."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from django.db import connection

from bots.models import Delivery
from console.supervisor import Service, beat
from tests.bots.conftest import Project, wait_until
from tests.bots.test_audit import parts
from tests.bots.test_cron import YEARLY, due_again, features, runs_of
from tests.conftest import Server, process_environment

pytestmark = pytest.mark.timeout(300)

PATIENTS = 40
UNTIL_GO = """
exports.handler = async (medplum) => {
  while (!(await medplum.search('Basic', 'identifier=go', { cache: 'reload' })).entry?.length)
    await new Promise(done => setTimeout(done, 200));
};"""


@pytest.fixture
def second(server: Server, data_folder: Path) -> Iterator[dict[str, Service]]:
    """A second worker and a second scheduler, the worker started as the README says."""
    environment = process_environment(server.base_url)
    command = [sys.executable, "-m", "celery", "-A", "console", "worker"]
    services = {"worker": Service("second worker", command, environment), "beat": beat(environment)}
    for name, service in services.items():
        service.output = (data_folder / f"second-{name}.log").open("wb")
        service.start()
    wait_until(lambda: gives_signs_of_life(services["worker"]), 60)
    yield services
    for service in services.values():
        service.ask_to_stop()
    for service in services.values():
        service.wait()
        if service.output is not None:
            service.output.close()


def gives_signs_of_life(worker: Service) -> bool:
    assert worker.process is not None
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1 FROM console_worker WHERE name LIKE %s", [f"%:{worker.process.pid}"])
        return cursor.fetchone() is not None


def test_each_moment_of_a_schedule_runs_once(
    server: Server, project: Project, second: dict[str, Service]
) -> None:
    features(project.repository, "bots", "cron")
    made = [project.bot(cronString=YEARLY) for _ in range(6)]

    def all_run_once_more(moments: int) -> None:
        for each in made:
            due_again(each, timedelta(seconds=30 - moments))  # another moment each time
        wait_until(
            lambda: all([run.state for run in runs_of(each)] == ["done"] * moments for each in made), 60
        )

    for moments in (1, 2, 3):
        all_run_once_more(moments)
    server.kill("beat")  # so the second is known to send
    all_run_once_more(4)
    server.start("beat")
    all_run_once_more(5)
    assert all(len(project.audit_events(f"Bot/{each}", 5)) == 5 for each in made)
    assert all(service.is_running() for service in second.values())


def test_the_other_worker_does_what_a_killed_one_was_at(project: Project, second: dict[str, Service]) -> None:
    subscription = project.subscribe(project.bot(UNTIL_GO, filename="a.cjs", timeout=120), "Patient")
    for number in range(PATIENTS):
        project.post("/fhir/R4/Patient", {"resourceType": "Patient", "multipleBirthInteger": number})
    deliveries = Delivery.objects.filter(subscription_id=subscription["id"])
    wait_until(lambda: deliveries.filter(state="running").values("lease").distinct().count() == 2, 60)
    second["worker"].kill()
    go = {"resourceType": "Basic", "code": {"text": "go"}, "identifier": [{"value": "go"}]}
    project.post("/fhir/R4/Basic", go)
    wait_until(lambda: deliveries.filter(state="done").count() == PATIENTS, 120)
    events = project.audit_events(f"Subscription/{subscription['id']}", PATIENTS)
    assert [event["outcome"] for event in events] == ["0"] * PATIENTS
    assert len({event["entity"][1]["what"]["reference"] for event in events}) == PATIENTS
    assert any(parts(event, "urn:fhirbots:bot-run").get("attempt") == 2 for event in events)
