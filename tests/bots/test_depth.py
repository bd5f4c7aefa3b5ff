"""JSON that nests too deeply is a clear failure wherever it comes in or out, never a fault of the server."""

from __future__ import annotations

from typing import Any

import pytest

from tests.bots.conftest import Project, wait_until

NEST = """
exports.handler = async (medplum, event) => {
  let a = [];
  for (let i = 1; i < event.input.levels; i++) a = [a];
  switch (event.input.how) {
    case 'throw': throw {resourceType: 'OperationOutcome', issue: [{severity: 'error', code: 'invalid', extension: a}]};
    case 'resource': return {resourceType: 'Basic', extension: a};
    case 'response': return new Response('[' + '['.repeat(event.input.levels), {headers: {'content-type': 'application/fhir+json'}});
    default: return a;
  }
};"""
PYTHON = """
def handler(medplum, event):
    nested = []
    for _ in range(event.input["levels"] - 1):
        nested = [nested]
    return nested
"""
DEEP = [101, 255, 1000, 2000, 100_000]


@pytest.fixture(scope="module")
def bot(project: Project) -> str:
    """A Bot that returns or throws what nests as deeply as it is told; it has secrets, which are masked."""
    secrets = [{"name": "KEY", "valueString": "secret-value"}]
    project.http.post(f"/admin/projects/{project.id}/secrets", json=secrets).raise_for_status()
    return project.bot(NEST, filename="a.cjs")


def job_of(project: Project, bot: str, **value: Any) -> dict[str, Any]:
    """The AsyncJob of a run, once it has ended."""
    url = project.execute(bot, value, Prefer="respond-async").headers["content-location"]
    wait_until(lambda: project.http.get(url).status_code == 200)
    job: dict[str, Any] = project.http.get(url).json()
    return job


@pytest.mark.parametrize("levels", DEEP)
@pytest.mark.parametrize("how", ["return", "resource", "throw"])
def test_result_is_a_failed_run(project: Project, bot: str, how: str, levels: int) -> None:
    answer = project.execute(bot, {"levels": levels, "how": how})
    assert (answer.status_code, answer.json()["resourceType"]) == (400, "OperationOutcome")
    assert "fault of the server" not in answer.text
    (run,) = project.http.get(f"/fhir/R4/Bot/{bot}/$runs?count=1").json()["runs"]
    assert run["failure"] in ("output", "code", "crash")
    assert job_of(project, bot, levels=levels, how=how)["status"] == "error"


def test_result_of_a_python_bot_is_a_failed_run(project: Project) -> None:
    bot = project.bot(PYTHON, filename="a.py", timeout=60)
    assert project.execute(bot, {"levels": 100}).status_code == 200
    for levels in DEEP:
        answer = project.execute(bot, {"levels": levels})
        assert (answer.status_code, answer.json()["resourceType"]) == (400, "OperationOutcome")
        assert "fault of the server" not in answer.text


def test_as_deep_as_the_api_takes_comes_back(project: Project, bot: str) -> None:
    assert project.execute(bot, {"levels": 100}).text == "[" * 100 + "]" * 100


@pytest.mark.parametrize("levels", DEEP)
def test_input_is_refused(project: Project, bot: str, levels: int) -> None:
    headers = {"content-type": "application/json"}
    nested = "[" * levels + "]" * levels
    refused = project.http.post(f"/fhir/R4/Bot/{bot}/$execute", content=nested, headers=headers)
    assert (refused.status_code, refused.json()["resourceType"]) == (400, "OperationOutcome")


def test_response_is_the_bots_own_whatever_it_says_of_itself(project: Project, bot: str) -> None:
    path = f"/fhir/R4/Bot/{bot}/$execute?_pretty=true"
    answer = project.http.post(path, json={"levels": 7, "how": "response"})
    assert (answer.status_code, answer.text) == (200, "[" * 8)
