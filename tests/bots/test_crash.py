"""What happens when a process is killed with `kill -9`: nothing is lost, nothing is doubled in the store."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
import uuid
from typing import Any

import httpx
import pytest

from bots.api import deliveries
from bots.subscriptions import ATTEMPTS_URL
from tests.bots.conftest import Project, wait_until
from tests.conftest import Server, process_environment

pytestmark = pytest.mark.timeout(180)

SLOW = """
exports.handler = async (medplum, event) => {
  if (event.input.multipleBirthInteger === 0) await new Promise(done => setTimeout(done, 4000));
  console.log('n' + event.input.multipleBirthInteger);
};"""


def patients(project: Project, tag: str, count: int) -> None:
    for number in range(count):
        resource: dict[str, Any] = {
            "resourceType": "Patient",
            "identifier": [{"system": "urn:test", "value": tag}],
            "multipleBirthInteger": number,
        }
        project.post("/fhir/R4/Patient", resource)


def numbers(project: Project, subscription_id: str, count: int) -> list[str]:
    """What the runs of a Subscription have logged, once all its deliveries have ended."""

    def are_finished() -> bool:
        found = deliveries(project.admin, subscription_id, count=1000)
        return len(found) == count and all(each.state == "done" for each in found)

    wait_until(are_finished, patience=90)
    return sorted(event["outcomeDesc"] for event in project.audit_events(f"Subscription/{subscription_id}"))


def test_worker_killed_in_the_middle_of_runs(server: Server, project: Project) -> None:
    tag = uuid.uuid4().hex
    bot = project.bot(SLOW, filename="a.cjs", timeout=20)
    subscription = project.subscribe(bot, f"Patient?identifier=urn:test|{tag}")["id"]
    patients(project, tag, 12)
    wait_until(
        lambda: any(each.state == "running" for each in deliveries(project.admin, subscription, count=100))
    )
    server.kill("worker")
    server.start("worker")
    assert numbers(project, subscription, 12) == sorted(f"n{number}" for number in range(12))
    assert max(each.attempts for each in deliveries(project.admin, subscription, count=100)) == 2


def test_worker_killed_while_runs_fail_and_alarms_are_due(server: Server, project: Project) -> None:
    tag = uuid.uuid4().hex
    bot = project.bot(SLOW.replace("console.log(", "throw new Error("), filename="a.cjs", timeout=20)
    once = [{"url": ATTEMPTS_URL, "valueInteger": 1}]
    project.subscribe(bot, f"Patient?identifier=urn:test|{tag}", extension=once)
    alarm = project.bot(
        "exports.handler = async (medplum, event) => console.log(event.input.id);", filename="b.cjs"
    )
    alarms = project.subscribe(alarm, f"AuditEvent?outcome=4,8,12&entity=Bot/{bot}")["id"]
    patients(project, tag, 12)
    wait_until(lambda: len(project.search(f"AuditEvent?entity=Bot/{bot}")) > 2)
    server.kill("worker")
    server.start("worker")
    told = numbers(project, alarms, 12)
    assert told == sorted(event["id"] for event in project.audit_events(f"Bot/{bot}"))


def test_worker_and_web_server_killed_between_commit_and_dispatch(server: Server, project: Project) -> None:
    tag = uuid.uuid4().hex
    bot = project.bot(
        "exports.handler = async (medplum, event) => { console.log('n' + event.input.multipleBirthInteger); };",
        filename="a.cjs",
    )
    subscription = project.subscribe(bot, f"Patient?identifier=urn:test|{tag}")["id"]
    server.kill("worker")
    patients(project, tag, 5)
    server.kill("web")
    assert deliveries(project.admin, subscription) == []
    server.services["worker"].start()
    server.start("web")
    assert numbers(project, subscription, 5) == [f"n{number}" for number in range(5)]


def test_caller_learns_that_the_worker_has_died(server: Server, project: Project) -> None:
    bot = project.bot(
        "exports.handler = async () => { await new Promise(() => {}); };", filename="a.cjs", timeout=60
    )
    answers: list[httpx.Response] = []
    caller = threading.Thread(target=lambda: answers.append(project.execute(bot)))
    caller.start()
    time.sleep(3)  # long enough for the caller to have heard that it runs
    server.kill("worker")
    server.start("worker")
    caller.join()
    assert answers[0].status_code == 400
    assert "the worker at it has stopped" in answers[0].json()["issue"][0]["details"]["text"]


def test_caller_learns_that_no_worker_answers(server: Server, project: Project) -> None:
    bot = project.bot()
    server.kill("worker")
    try:
        answer = project.execute(bot)
    finally:
        server.start("worker")
    assert answer.status_code == 400
    assert "no worker answered within" in answer.json()["issue"][0]["details"]["text"]
    assert project.audit_events(f"Bot/{bot}") == []
    assert project.execute(bot).status_code == 200


BROKEN = """
import django, sys
django.setup()
from bots.api import bot_execute
from fhirstore.api import Repository, identity_of_membership
result = bot_execute(Repository(identity_of_membership(sys.argv[1])), sys.argv[2], content_type=None)
print(result.status, result.log_text)
"""


def test_caller_learns_that_the_broker_is_away(server: Server, project: Project) -> None:
    environment = process_environment(server.base_url) | {
        "CELERY_BROKER_URL": "amqp://127.0.0.1:1//",
        "DJANGO_SETTINGS_MODULE": "console.settings",
    }
    arguments = [sys.executable, "-c", BROKEN, project.admin.identity.membership or "", project.bot()]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "400 The Bot was not run: the message broker cannot be reached", done.stderr
