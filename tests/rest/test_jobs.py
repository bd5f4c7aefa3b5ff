"""Asynchronous jobs: from 202 to their end, cancelled, failed, taken over from a process that has died."""

from __future__ import annotations

import subprocess
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from fhirstore import database as store
from fhirstore import jobs
from fhirstore.api import Job, Repository, bad_request, identity_of_membership, register_job, start_job
from fhirstore.auth.identities import membership_of_profile
from tests.conftest import process_environment
from tests.rest.conftest import Caller, text_of

pytestmark = pytest.mark.usefixtures("database")

URL = "http://127.0.0.1:8000/fhir/R4/$test"
Run = Callable[[Job], Iterable[dict[str, Any]]]


def member(caller: Caller) -> Repository:
    """The Repository of the caller's client."""
    membership = membership_of_profile(caller.project, f"ClientApplication/{caller.client_id}")
    assert membership
    return Repository(identity_of_membership(membership))


def start(caller: Caller, run: Run | None, on_cancel: jobs.OnCancel | None = None, **parameters: Any) -> str:
    """Start a job of a kind of its own; returns its id."""
    kind = f"test-{uuid.uuid4()}"
    register_job(kind, run, on_cancel=on_cancel)
    return start_job(member(caller), kind, parameters, URL).id


def status(caller: Caller, job: str) -> dict[str, Any]:
    """The AsyncJob, by its status address."""
    answer: dict[str, Any] = caller.send("GET", f"job/{job}/status", x_medplum="extended").json()
    return answer


def hello(job: Job) -> list[dict[str, Any]]:
    """A job that answers with its parameter and with who it runs as."""
    return [
        {"name": "said", "valueString": job.parameters["text"]},
        {"name": "author", "valueString": job.repository.identity.profile},
    ]


@contextmanager
def held(job: str) -> Iterator[None]:
    """The lock of a job as a process that runs it holds it; left, the process is dead."""
    with psycopg.connect(**store.connection_parameters()) as other:
        number = other.execute("SELECT number FROM job WHERE id = %s", [job]).fetchone()
        assert number
        other.execute("SELECT pg_advisory_lock(%s, %s)", [jobs.LOCKS, number[0]])
        yield


def test_a_job_runs_as_its_caller_and_tells_its_end(home: Caller) -> None:
    job = start(home, hello, text="hello")
    waiting = home.send("GET", f"job/{job}/status")
    assert waiting.status_code == 202
    assert waiting.headers["content-location"] == f"http://127.0.0.1:8000/fhir/R4/job/{job}/status"
    assert waiting.json()["status"] == "accepted"
    jobs.run_due_jobs()
    ended = home.send("GET", f"job/{job}/status", x_medplum="extended")
    assert ended.status_code == 200
    resource = ended.json()
    assert resource["status"] == "completed"
    assert resource["request"] == URL
    assert resource["transactionTime"] >= resource["requestTime"]
    profile = f"ClientApplication/{home.client_id}"
    assert resource["meta"]["author"]["reference"] == profile
    assert resource["output"]["parameter"] == [
        {"name": "said", "valueString": "hello"},
        {"name": "author", "valueString": profile},
    ]
    assert home.send("GET", f"AsyncJob/{job}").json()["status"] == "completed"


def test_a_job_is_active_while_it_runs(home: Caller) -> None:
    seen = []

    def run(job: Job) -> list[dict[str, Any]]:
        seen.append(home.send("GET", f"job/{job.id}/status"))
        return []

    start(home, run)
    jobs.run_due_jobs()
    assert [(answer.status_code, answer.json()["status"]) for answer in seen] == [(202, "active")]


@pytest.mark.parametrize("prefix", ["/api/fhir/R4/", "/projects/{}/fhir/R4/", "/api/projects/{}/fhir/R4/"])
def test_the_address_of_the_status_begins_as_the_request_did(home: Caller, prefix: str) -> None:
    job = start(home, hello, text="x")
    path = f"{prefix.format(home.project)}job/{job}/status"
    answer = home.send("GET", path)
    assert answer.headers["content-location"] == f"http://127.0.0.1:8000{path}"
    assert home.send("DELETE", path).status_code == 202


def test_cancelling_ends_a_waiting_job(home: Caller) -> None:
    job = start(home, hello, text="x")
    answer = home.send("DELETE", f"job/{job}/status")
    assert answer.status_code == 202
    assert answer.json()["id"] == "accepted"
    jobs.run_due_jobs()
    assert status(home, job)["status"] == "cancelled"
    assert home.send("GET", f"job/{job}/status").status_code == 200
    assert home.send("POST", f"AsyncJob/{job}/$cancel").status_code == 200  # again


def test_cancelling_stops_a_running_job_at_its_next_batch(home: Caller) -> None:
    batches = []

    def run(job: Job) -> list[dict[str, Any]]:
        for batch in range(3):
            job.check()
            batches.append(batch)
            if batch == 1:
                assert home.send("POST", f"AsyncJob/{job.id}/$cancel").status_code == 200
        return [{"name": "done", "valueBoolean": True}]

    job = start(home, run)
    jobs.run_due_jobs()
    assert batches == [0, 1]
    assert status(home, job)["status"] == "cancelled"
    assert "output" not in status(home, job)


def test_an_ended_job_cannot_be_cancelled(home: Caller) -> None:
    job = start(home, hello, text="x")
    jobs.run_due_jobs()
    for answer in (home.send("DELETE", f"job/{job}/status"), home.send("POST", f"AsyncJob/{job}/$cancel")):
        assert answer.status_code == 400
        assert text_of(answer).endswith("job had status 'completed'")


def test_whoever_runs_a_job_elsewhere_hears_of_its_cancellation(home: Caller) -> None:
    heard = []

    def on_cancel(project: str, job_id: str, parameters: dict[str, Any]) -> None:
        heard.append((project, job_id, parameters))

    job = start(home, None, on_cancel, bot="x")
    jobs.run_due_jobs()
    assert jobs.begin_job(home.project, job)
    assert status(home, job)["status"] == "active"
    home.send("DELETE", f"job/{job}/status")
    assert heard == [(home.project, job, {"bot": "x"})]
    assert not jobs.finish_job(home.project, job, "completed", [])
    assert not jobs.begin_job(home.project, job)
    assert status(home, job)["status"] == "cancelled"


def test_deleting_the_asyncjob_ends_the_job(home: Caller) -> None:
    def run(job: Job) -> list[dict[str, Any]]:
        assert home.send("DELETE", f"AsyncJob/{job.id}").status_code == 200
        job.check()
        raise AssertionError("went on")

    waiting, running = start(home, hello, text="x"), start(home, run)
    assert home.send("DELETE", f"AsyncJob/{waiting}").status_code == 200
    jobs.run_due_jobs()
    assert jobs.due_jobs() == 0
    assert home.send("GET", f"job/{running}/status").status_code == 404


def test_a_job_that_fails_says_why(home: Caller) -> None:
    def refuse(job: Job) -> list[dict[str, Any]]:
        raise bad_request("No such thing")

    def crash(job: Job) -> list[dict[str, Any]]:
        raise ZeroDivisionError("secret of a patient")

    refused, crashed = start(home, refuse), start(home, crash)
    jobs.run_due_jobs()
    answer = home.send("GET", f"job/{refused}/status")
    assert answer.status_code == 200
    assert answer.json()["status"] == "error"
    outcome = answer.json()["output"]["parameter"][0]
    assert outcome["name"] == "outcome"
    assert outcome["resource"]["issue"][0]["details"]["text"] == "No such thing"
    ended = home.send("GET", f"job/{crashed}/status")
    assert ended.json()["status"] == "error"
    assert b"secret" not in ended.content


def test_a_dead_process_s_job_goes_on_with_what_was_saved(home: Caller) -> None:
    def run(job: Job) -> list[dict[str, Any]]:
        if job.attempt == 1:
            job.save({"done": 7})
            raise store.DatabaseUnavailableError  # what a process sees whose connection is cut
        return [{"name": "done", "valueInteger": job.progress["done"]}]

    job = start(home, run)
    with held(job):
        jobs.run_due_jobs()
        assert status(home, job)["status"] == "accepted"  # somebody else has it
        assert jobs.due_jobs() == 0
    while not jobs.due_jobs():  # until PostgreSQL has noticed
        pass
    jobs.run_due_jobs()
    assert status(home, job)["status"] == "active"
    with store.connection() as connection:
        connection.execute("UPDATE job SET due = now() WHERE id = %s", [job])
    jobs.run_due_jobs()
    assert status(home, job)["output"]["parameter"] == [{"name": "done", "valueInteger": 7}]


def test_a_job_that_kills_its_process_is_given_up(home: Caller) -> None:
    job = start(home, hello, text="x")
    with store.connection() as connection:
        connection.execute("UPDATE job SET attempts = %s WHERE id = %s", [jobs.MAX_ATTEMPTS, job])
    jobs.run_due_jobs()
    assert status(home, job)["status"] == "error"


def test_a_job_is_started_with_its_transaction_or_not_at_all(home: Caller) -> None:
    repository = member(home)
    register_job("test-rollback", hello)

    def fail() -> None:
        with repository.transaction():
            start_job(repository, "test-rollback", {}, URL)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert jobs.due_jobs() == 0


def test_one_project_s_jobs_do_not_keep_others_waiting(home: Caller, foreign: Caller) -> None:
    order: list[str] = []

    def run(job: Job) -> list[dict[str, Any]]:
        order.append("home" if job.project == home.project else "foreign")
        return []

    for caller in (home, home, home, foreign):
        start(caller, run)
    jobs.run_due_jobs()
    assert sorted(order) == ["foreign", "home", "home", "home"]
    assert order.index("foreign") < 2


def test_a_project_has_only_so_many_open_jobs(
    home: Caller, foreign: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "MAX_OPEN", 2)
    waiting = [start(home, hello, text="x") for _ in range(2)]
    refused = home.send("POST", "$export", prefer="respond-async")
    assert (refused.status_code, refused.json()["id"]) == (429, "too-many-requests")
    started = foreign.send("POST", "$export", prefer="respond-async")
    assert started.status_code == 202
    foreign.send("DELETE", started["content-location"].removeprefix("http://127.0.0.1:8000"))
    for job in waiting:
        home.send("DELETE", f"job/{job}/status")


def test_a_job_of_a_member_who_is_gone_does_nothing(home: Caller) -> None:
    touched: list[str] = []

    def run(job: Job) -> list[dict[str, Any]]:
        touched.append(job.id)
        return []

    job = start(home, run)
    membership = membership_of_profile(home.project, f"ClientApplication/{home.client_id}")
    resource = home.repository.read("ProjectMembership", membership or "").resource
    home.repository.update({**resource, "active": False})
    try:
        jobs.run_due_jobs()
    finally:
        home.repository.update({**resource, "active": True})
    assert touched == []
    assert status(home, job)["status"] == "error"


def test_a_job_of_another_project_is_not_there(home: Caller, foreign: Caller) -> None:
    job = start(home, hello, text="x")
    for method, path in (
        ("GET", f"job/{job}/status"),
        ("DELETE", f"job/{job}/status"),
        ("POST", f"AsyncJob/{job}/$cancel"),
        ("GET", f"job/{uuid.uuid4()}/status"),
        ("GET", "job/x/status"),
        ("GET", "job/x"),
    ):
        assert foreign.send(method, path).status_code == 404
    assert status(home, job)["status"] == "accepted"
    assert home.send("POST", f"job/{job}/status").status_code == 405
    home.send("DELETE", f"job/{job}/status")


ENDLESS = """
import time, django
django.setup()
from fhirstore.jobs import register_job, run_due_jobs
def run(job):
    print("running", flush=True)
    time.sleep(600)
register_job("test-killed", run)
run_due_jobs()
"""


def test_the_job_of_a_killed_process_runs_elsewhere(home: Caller) -> None:
    attempts = []

    def run(job: Job) -> list[dict[str, Any]]:
        attempts.append(job.attempt)
        return []

    register_job("test-killed", run)
    job = start_job(member(home), "test-killed", {}, URL).id
    environment = process_environment("http://127.0.0.1:8000") | {
        "DJANGO_SETTINGS_MODULE": "console.settings"
    }
    with subprocess.Popen(
        [sys.executable, "-c", ENDLESS], env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "running\n"
        jobs.run_due_jobs()
        assert attempts == []
        assert status(home, job)["status"] == "active"
        process.kill()
    while not attempts:  # until PostgreSQL has noticed
        jobs.run_due_jobs()
    assert attempts == [2]
    assert status(home, job)["status"] == "completed"
