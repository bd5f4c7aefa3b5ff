"""``Idempotency-Key``: sent twice, run once."""

from __future__ import annotations

import threading
import uuid

import httpx
import pytest

from tests.bots.conftest import Project, wait_until

CODE = """
exports.handler = async (medplum, event) => {
  const made = await medplum.createResource({resourceType: 'Basic', code: {text: event.input.name}});
  await new Promise((resolve) => setTimeout(resolve, event.input.wait ?? 0));
  return {id: made.id};
};"""


@pytest.fixture(scope="module")
def bot(project: Project) -> str:
    """A Bot that writes each time it runs."""
    return project.bot(CODE, filename="a.cjs")


def count(project: Project, name: str) -> int:
    return sum(each["code"]["text"] == name for each in project.search("Basic?_count=200"))


def test_same_key_gets_the_same_answer(project: Project, bot: str) -> None:
    key, value = {"Idempotency-Key": uuid.uuid4().hex}, {"name": "same"}
    first, second = (project.execute(bot, value, **key) for _ in range(2))
    assert first.content == second.content
    assert first.headers["content-type"] == second.headers["content-type"]
    assert (first.headers.get("idempotent-replayed"), second.headers["idempotent-replayed"]) == (None, "true")
    assert count(project, "same") == 1
    project.execute(bot, value, **{"Idempotency-Key": uuid.uuid4().hex})
    assert count(project, "same") == 2


def test_failure_is_an_answer_too(project: Project) -> None:
    bot = project.bot(
        "exports.handler = async () => { throw new Error('no ' + Math.random()); };", filename="a.cjs"
    )
    key = {"Idempotency-Key": "k"}
    first, second = project.execute(bot, **key), project.execute(bot, **key)
    assert (first.status_code, first.json()["issue"]) == (400, second.json()["issue"])
    assert len(project.audit_events(f"Bot/{bot}", 1)) == 1


def test_concurrent_requests_wait_for_the_one_run(project: Project, bot: str) -> None:
    key, value = {"Idempotency-Key": uuid.uuid4().hex}, {"name": "concurrent", "wait": 300}
    answers: list[httpx.Response] = []
    threads = [
        threading.Thread(target=lambda: answers.append(project.execute(bot, value, **key))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({answer.text for answer in answers}) == 1
    assert count(project, "concurrent") == 1


def test_key_of_another_request_is_refused(project: Project, bot: str) -> None:
    key = {"Idempotency-Key": uuid.uuid4().hex}
    project.execute(bot, {"name": "one"}, **key)
    assert project.execute(bot, {"name": "two"}, **key).status_code == 422
    assert project.execute(bot, {"name": "one"}, **key, Prefer="respond-async").status_code == 422
    assert project.execute(bot, {"name": "one"}, **{"Idempotency-Key": "x" * 300}).status_code == 400


def test_asynchronous_run_is_one_job(project: Project, bot: str) -> None:
    headers = {"Idempotency-Key": uuid.uuid4().hex, "Prefer": "respond-async"}
    first, second = (project.execute(bot, {"name": "async"}, **headers) for _ in range(2))
    url = first.headers["content-location"]
    assert (second.status_code, second.headers["content-location"]) == (202, url)
    wait_until(lambda: project.http.get(url).status_code == 200)
    assert count(project, "async") == 1


def test_bot_inside_a_bot_keeps_the_key_too(project: Project, bot: str) -> None:
    code = f"""exports.handler = async (medplum, event) => {{
        const options = {{headers: {{'Idempotency-Key': 'inner'}}}};
        const call = () => medplum.executeBot('{bot}', {{name: 'inner'}}, 'application/json', options);
        return [await call(), await call()];
    }};"""
    first, second = project.execute(project.bot(code, filename="a.cjs")).json()
    assert first == second
    assert count(project, "inner") == 1
