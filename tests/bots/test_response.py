"""A handler that returns a Web Response makes the HTTP answer itself."""

from __future__ import annotations

import pytest

from tests.bots.conftest import Project, wait_until

CODE = """
exports.handler = async (medplum, event) => {
  const {status, headers, body, base64} = event.input;
  const content = base64 ? Uint8Array.from(atob(base64), (each) => each.charCodeAt(0)) : body;
  return new Response(content, {status, headers});
};"""


@pytest.fixture(scope="module")
def bot(project: Project) -> str:
    """A Bot that answers as it is told."""
    return project.bot(CODE, filename="a.cjs")


def test_status_headers_and_body_are_the_bots(project: Project, bot: str) -> None:
    headers = {"Content-Type": "application/json", "Location": "https://example.com/42", "X-Own": "1"}
    answer = project.execute(bot, {"status": 201, "headers": headers, "body": '{"id":42}'})
    assert (answer.status_code, answer.text) == (201, '{"id":42}')
    assert {name: answer.headers[name] for name in headers} == headers


def test_bytes_and_empty_bodies_arrive(project: Project, bot: str) -> None:
    answer = project.execute(bot, {"base64": "AP8=", "headers": {"Content-Type": "image/png"}})
    assert (answer.content, answer.headers["content-type"]) == (b"\x00\xff", "image/png")
    assert project.execute(bot, {"status": 204}).status_code == 204
    assert project.execute(bot, {"body": "words"}).headers["content-type"] == "text/plain;charset=UTF-8"


def test_headers_that_protect_the_console_stay(project: Project, bot: str) -> None:
    headers = {
        "Content-Type": "text/html",
        "Set-Cookie": "fhirbots_session=evil",
        "Content-Security-Policy": "script-src *",
        "X-Content-Type-Options": "off",
        "Access-Control-Allow-Origin": "*",
        "Content-Encoding": "gzip",
        "Content-Length": "1",
    }
    answer = project.execute(bot, {"headers": headers, "body": "<script>"})
    assert answer.text == "<script>"
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert not {"set-cookie", "access-control-allow-origin", "content-encoding"} & set(answer.headers)


@pytest.mark.parametrize("status", [404, 429, 503])
def test_refusing_status_is_a_failed_run(project: Project, status: int) -> None:
    bot = project.bot(CODE, filename="a.cjs")
    answer = project.execute(bot, {"status": status, "body": "no"})
    assert (answer.status_code, answer.text) == (status, "no")
    assert ('"bot";r=0;t=3' in answer.headers.get("ratelimit", "")) is (status != 404)
    (event,) = project.audit_events(f"Bot/{bot}", 1)
    assert (event["outcome"], event["outcomeDesc"]) == ("4", f"The Bot answered with status {status}")


def test_outcome_that_asks_for_a_5xx_is_not_repeated_either(project: Project) -> None:
    code = "exports.handler = async () => ({resourceType: 'OperationOutcome', id: 'server-timeout', issue: [{severity: 'error', code: 'timeout'}]});"
    answer = project.execute(project.bot(code, filename="a.cjs"))
    assert answer.status_code == 504
    assert '"bot";r=0;t=3' in answer.headers["ratelimit"]


@pytest.mark.parametrize(
    "code",
    ["return Response.error();", "const r = new Response('x'); await r.text(); return r;"],
)
def test_response_that_cannot_be_sent_is_said(project: Project, code: str) -> None:
    answer = project.execute(project.bot(f"exports.handler = async () => {{ {code} }};", filename="a.cjs"))
    assert answer.status_code == 400
    assert "cannot be sent" in answer.json()["issue"][0]["details"]["text"]


def test_job_keeps_the_body(project: Project, bot: str) -> None:
    def output(value: object) -> object:
        started = project.execute(bot, value, Prefer="respond-async")
        url = started.headers["content-location"]
        wait_until(lambda: project.http.get(url).status_code == 200)
        return project.http.get(url).json()

    job = output({"body": "words", "status": 201})
    assert (job["status"], job["output"]["parameter"]) == (
        "completed",
        [{"name": "responseBody", "valueString": "words"}],
    )
    job = output({"base64": "AP8="})
    assert job["output"]["parameter"] == [{"name": "responseBody", "valueBase64Binary": "AP8="}]
    assert output({"status": 500, "body": "x"})["status"] == "error"
