"""``$execute`` with ``Prefer: respond-async``: the job, its output, its end by cancel, and what a crash does to it."""

from __future__ import annotations

import uuid
from typing import Any

import httpx
import pytest

from bots.runqueue import run_next
from bots.workers import lease
from fhirstore.api import connection
from tests.bots.conftest import Project, wait_until
from tests.conftest import Server

VALUE = "exports.handler = async (medplum, event) => event.input.value;"
ENDLESS = """
exports.handler = async (medplum, event) => {
  console.log('begun');
  await medplum.createResource({resourceType: 'Basic', code: {text: event.input.name}});
  await new Promise((resolve) => setTimeout(resolve, 600000));
};"""


def start(project: Project, bot: str, value: Any = None, **headers: str) -> httpx.Response:
    """Ask for an asynchronous run."""
    answer = project.execute(bot, value, **({"Prefer": "respond-async"} | headers))
    assert answer.status_code == 202, answer.text
    return answer


def end_of(project: Project, answer: httpx.Response) -> Any:
    """The AsyncJob once it has ended."""
    url = answer.headers["content-location"]
    wait_until(lambda: project.http.get(url).status_code == 200)
    return project.http.get(url).json()


def test_answer_comes_at_once_and_names_the_job(project: Project, server: Server) -> None:
    bot = project.bot(VALUE, filename="a.cjs")
    answer = start(project, bot, {"value": "done"})
    outcome = answer.json()
    location = answer.headers["content-location"]
    assert location.startswith(f"{server.base_url}/fhir/R4/job/")
    assert (outcome["id"], outcome["issue"][0]["diagnostics"]) == ("accepted", location)
    job = end_of(project, answer)
    assert job["status"] == "completed"
    assert job["request"] == f"{server.base_url}/fhir/R4/Bot/{bot}/$execute"
    assert job["requestTime"] <= job["transactionTime"]
    assert job["meta"]["author"]["reference"].startswith("ClientApplication/")
    assert job["output"]["parameter"] == [{"name": "responseBody", "valueString": "done"}]
    (event,) = project.audit_events(f"Bot/{bot}", 1)
    assert event["outcome"] == "0"


@pytest.mark.parametrize(
    ("value", "parameter"),
    [
        ("text", {"valueString": "text"}),
        (42, {"valueString": "42"}),
        (1.5, {"valueString": "1.5"}),
        (False, {"valueBoolean": False}),
        (None, {"valueString": "null"}),
        ({"a": [1]}, {"valueString": '{"a":[1]}'}),
        ({"resourceType": "Patient"}, {"valueString": '{"resourceType":"Patient"}'}),
        ("a\x00b\x1b[0m", {}),
    ],
)
def test_output_follows_the_returned_value(project: Project, values: str, value: Any, parameter: Any) -> None:
    job = end_of(project, start(project, values, {"value": value}))
    if value == "a\x00b\x1b[0m":  # no string of FHIR: said, not lost
        assert job["status"] == "error"
        return
    assert job["status"] == "completed"
    assert job["output"]["parameter"] == [{"name": "responseBody", **parameter}]


@pytest.fixture(scope="module")
def values(project: Project) -> str:
    """A Bot that returns what it is given."""
    return project.bot(VALUE, filename="a.cjs")


def test_nothing_returned_and_outcomes_are_outcomes(project: Project, values: str) -> None:
    for value in ({}, {"value": ""}):
        job = end_of(project, start(project, values, value))
        (parameter,) = job["output"]["parameter"]
        assert (job["status"], parameter["name"], parameter["resource"]["id"]) == (
            "completed",
            "outcome",
            "ok",
        )
    said = {
        "resourceType": "OperationOutcome",
        "id": "conflict",
        "issue": [{"severity": "error", "code": "conflict"}],
    }
    job = end_of(project, start(project, values, {"value": said}))
    assert (job["status"], job["output"]["parameter"]) == ("error", [{"name": "outcome", "resource": said}])


def test_failing_bot_makes_the_job_an_error(project: Project) -> None:
    for code, text in (("throw new Error('broken');", "broken"), ("for (;;) {}", "time limit")):
        bot = project.bot(f"exports.handler = async () => {{ {code} }};", filename="a.cjs", timeout=1)
        job = end_of(project, start(project, bot))
        (parameter,) = job["output"]["parameter"]
        assert (job["status"], parameter["name"]) == ("error", "outcome")
        assert text in parameter["resource"]["issue"][0]["details"]["text"]
    undeployed = end_of(project, start(project, project.bot(None)))
    assert (
        "has not been deployed"
        in undeployed["output"]["parameter"][0]["resource"]["issue"][0]["details"]["text"]
    )


def test_credentials_do_not_wait_with_the_run(project: Project) -> None:
    bot = project.bot(
        "exports.handler = async (medplum, event) => Object.keys(event.headers).join();", filename="a.cjs"
    )
    names = end_of(project, start(project, bot, Prefer="return=minimal; respond-async", Cookie="a=1"))
    (parameter,) = names["output"]["parameter"]
    assert "prefer" in parameter["valueString"]
    assert not {"authorization", "cookie"} & set(parameter["valueString"].split(","))


def test_malformed_input_is_refused_at_once(project: Project, values: str) -> None:
    headers = {"Prefer": "respond-async", "content-type": "application/json"}
    assert (
        project.http.post(f"/fhir/R4/Bot/{values}/$execute", content="{", headers=headers).status_code == 400
    )


def begun(project: Project, name: str) -> bool:
    return bool([each for each in project.search("Basic?_count=100") if each["code"]["text"] == name])


def test_cancel_stops_the_run(project: Project) -> None:
    bot = project.bot(ENDLESS, filename="a.cjs", timeout=300)
    answer = start(project, bot, {"name": "cancel"})
    url = answer.headers["content-location"]
    wait_until(lambda: begun(project, "cancel"))
    assert project.http.get(url).json()["status"] == "active"
    assert project.http.delete(url).status_code == 202
    job = project.http.get(url)
    assert (job.status_code, job.json()["status"]) == (200, "cancelled")
    (event,) = project.audit_events(f"Bot/{bot}", 1)
    assert event["outcome"] == "4"
    assert event["outcomeDesc"] == "begun\nThe run was cancelled."
    assert project.http.get(url).json()["status"] == "cancelled"
    assert project.http.post(f"/fhir/R4/AsyncJob/{job.json()['id']}/$cancel").status_code == 200


def test_killed_worker_does_not_lose_the_run(project: Project, server: Server) -> None:
    code = """
        exports.handler = async (medplum, event) => {
          const code = {text: 'crash'};
          const before = await medplum.searchResources('Basic', {_count: 100});
          if (before.some((each) => each.code.text === 'crash')) return 'second';
          await medplum.createResource({resourceType: 'Basic', code});
          await new Promise((resolve) => setTimeout(resolve, 600000));
        };"""
    bot = project.bot(code, filename="a.cjs", timeout=300)
    answer = start(project, bot)
    wait_until(lambda: begun(project, "crash"))
    server.kill("worker")
    server.start("worker")
    job = end_of(project, answer)
    assert (job["status"], job["output"]["parameter"][0]["valueString"]) == ("completed", "second")
    (event,) = project.audit_events(f"Bot/{bot}", 1)
    run = next(each for each in event["extension"] if each["url"] == "urn:fhirbots:bot-run")
    assert {"url": "attempt", "valuePositiveInt": 2} in run["extension"]


def test_killed_web_server_does_not_lose_the_run(project: Project, server: Server) -> None:
    bot = project.bot(ENDLESS.replace("600000", "500"), filename="a.cjs")
    answer = start(project, bot, {"name": "web"})
    server.kill("web")
    server.start("web")
    assert end_of(project, answer)["status"] == "completed"


def test_many_runs_all_end(project: Project, values: str) -> None:
    answers = [start(project, values, {"value": number}) for number in range(30)]
    found = [end_of(project, answer)["output"]["parameter"][0]["valueString"] for answer in answers]
    assert found == [str(number) for number in range(30)]


def test_a_run_that_cannot_be_begun_is_given_back(project: Project) -> None:
    id_ = str(uuid.uuid4())
    with connection() as session:  # as another version may have written it
        session.execute(
            "INSERT INTO bots_queuedrun (id, project, bot_id, request, attempts) VALUES (%s, %s, 'x', '{}', 0)",
            (id_, project.id),
        )

    def row() -> Any:
        with connection() as session:
            statement = "SELECT attempts, lease, due > clock_timestamp() FROM bots_queuedrun WHERE id = %s"
            return session.execute(statement, (id_,)).fetchone()

    try:
        run_next(lease.number())
        wait_until(lambda: row()[0] > 0)
        wait_until(lambda: row()[1] is None)
        assert row()[2]
    finally:
        with connection() as session:
            session.execute("DELETE FROM bots_queuedrun WHERE id = %s", (id_,))
