"""What leaves the sandbox: the requests of the Medplum client and of fetch, answered by the host."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bots.sandbox.api import HostRequest, HostResponse, SandboxPool
from tests.sandbox.conftest import BASE_URL, Run, invocation, no_answer, program

F = f"{BASE_URL}fhir/R4"
PATIENT = {"resourceType": "Patient", "id": "1"}


class Host:
    """Answers with what the test says, and keeps what it was asked."""

    def __init__(self, *answers: Any, status: int = 200, content_type: str = "application/fhir+json") -> None:
        self.requests: list[HostRequest] = []
        self.answers = list(answers)
        self.status = status
        self.content_type = content_type

    def __call__(self, request: HostRequest) -> HostResponse:
        self.requests.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, HostResponse):
            return answer
        return HostResponse(self.status, {"content-type": self.content_type}, json.dumps(answer).encode())


def handler(body: str) -> str:
    return f"export async function handler(medplum, event) {{ {body} }}"


@pytest.mark.parametrize(
    ("call", "method", "url", "body", "content_type"),
    [
        ("readResource('Patient', '1')", "GET", f"{F}/Patient/1", None, None),
        ("createResource({resourceType: 'Patient'})", "POST", f"{F}/Patient", {"resourceType": "Patient"}, "application/fhir+json"),
        ("updateResource({resourceType: 'Patient', id: '1'})", "PUT", f"{F}/Patient/1", PATIENT, "application/fhir+json"),
        ("patchResource('Patient', '1', [{op: 'remove', path: '/active'}])", "PATCH", f"{F}/Patient/1", [{"op": "remove", "path": "/active"}], "application/json-patch+json"),
        ("deleteResource('Patient', '1')", "DELETE", f"{F}/Patient/1", None, None),
        ("search('Patient', 'name=Grüße & co=1')", "GET", f"{F}/Patient?name=Gr%C3%BC%C3%9Fe+&+co=1", None, None),
        ("searchOne('Patient', {name: 'a'})", "GET", f"{F}/Patient?_count=1&name=a", None, None),
        ("executeBatch({resourceType: 'Bundle', type: 'batch'})", "POST", F, {"resourceType": "Bundle", "type": "batch"}, "application/fhir+json"),
        ("executeBot('7', {a: 1}, 'application/json')", "POST", f"{F}/Bot/7/$execute", {"a": 1}, "application/json"),
        ("post(medplum.fhirUrl('Schedule', '1', '$find'), {resourceType: 'Parameters'})", "POST", f"{F}/Schedule/1/$find", {"resourceType": "Parameters"}, None),
        ("get('fhir/R4/Patient/1')", "GET", f"{F}/Patient/1", None, None),
        ("sendEmail({to: 'a@example.com', subject: 'x', text: 'y'})", "POST", f"{BASE_URL}email/v1/send", {"to": "a@example.com", "subject": "x", "text": "y"}, "application/json"),
    ],
)  # fmt: skip
def test_the_client_sends_its_request_to_the_host(
    run: Run, call: str, method: str, url: str, body: Any, content_type: str | None
) -> None:
    host = Host(PATIENT)
    result = run(handler(f"await medplum.{call}; return 1"), respond=host)
    assert result.ok, result
    (request,) = host.requests
    assert (request.method, request.url) == (method, url)
    assert (json.loads(request.body) if request.body else None) == body
    assert request.headers.get("content-type") == content_type or (body and content_type is None)
    assert request.headers["x-medplum"] == "extended"
    assert "authorization" not in request.headers


def test_the_trace_of_the_event_goes_with_each_request(run: Run) -> None:
    host = Host(PATIENT)
    run(handler("await medplum.readResource('Patient', '1')"), event={"traceId": "abc"}, respond=host)
    assert host.requests[0].headers["x-trace-id"] == host.requests[0].headers["traceparent"] == "abc"


def test_bytes_go_both_ways_unchanged(run: Run) -> None:
    content = bytes(range(256)) * 4096  # 1 MiB: more than a pipe holds

    def respond(request: HostRequest) -> HostResponse:
        assert request.body == content
        assert request.headers["content-type"] == "application/pdf"
        return HostResponse(
            201, {"content-type": "application/fhir+json"}, b'{"resourceType":"Binary","id":"1"}'
        )

    source = handler("""
        const data = new Uint8Array(1048576).map((_, index) => index % 256);
        return (await medplum.createBinary({data, filename: "x.pdf", contentType: "application/pdf"})).id;
    """)
    assert run(source, respond=respond).value == "1"

    source = handler("return (await medplum.download('Binary/1')).arrayBuffer()")
    result = run(source, respond=lambda _: HostResponse(200, {"content-type": "application/pdf"}, content))
    assert (result.value_kind, result.value) == ("binary", content)


def test_many_requests_at_once_with_full_pipes_do_not_deadlock(run: Run) -> None:
    """Both sides write more than a pipe holds before either reads."""
    source = handler("""
        const body = "x".repeat(300000);
        const answers = await Promise.all(Array.from({length: 40}, (_, n) =>
            medplum.post("fhir/R4/echo", {n, body}, "application/json")));
        return answers.map((answer) => answer.n + ":" + answer.body.length);
    """)

    def respond(request: HostRequest) -> HostResponse:
        return HostResponse(200, {"content-type": "application/json"}, request.body)

    assert run(source, respond=respond).value == [f"{n}:300000" for n in range(40)]


OUTCOME = {"resourceType": "OperationOutcome", "id": "not-found", "issue": [{"severity": "error", "code": "not-found", "details": {"text": "Not found"}}]}  # fmt: skip


def test_a_refused_request_is_an_outcome_the_bot_can_catch(run: Run) -> None:
    host = Host(OUTCOME, status=404)
    result = run(
        handler(
            "return medplum.readResource('Patient', '1').catch((e) => [e instanceof Error, e.outcome.id])"
        ),
        respond=host,
    )
    assert result.value == [True, "not-found"]


def test_a_refused_request_that_is_not_caught_is_the_outcome_of_the_bot(run: Run) -> None:
    result = run(handler("await medplum.readResource('Patient', '1')"), respond=Host(OUTCOME, status=404))
    assert (result.failure, result.outcome, result.error) == ("code", OUTCOME, "Not found")


def test_the_profile_is_known_without_a_request(run: Run) -> None:
    source = handler(
        "return [medplum.getProfile().id, (await medplum.getProfileAsync()).id, medplum.isSuperAdmin()]"
    )
    assert run(source, profile={"resourceType": "Bot", "id": "7"}).value == ["7", "7", False]
    assert run(handler("return medplum.getProfile()")).value_kind == "undefined"


@pytest.mark.parametrize(
    ("init", "method", "headers", "body"),
    [
        ("", "GET", {}, b""),
        ("{method: 'post', body: 'text'}", "POST", {"content-type": "text/plain;charset=UTF-8"}, b"text"),
        ("{method: 'POST', body: new URLSearchParams({a: 'b c'})}", "POST", {"content-type": "application/x-www-form-urlencoded;charset=UTF-8"}, b"a=b+c"),
        ("{method: 'POST', body: new Blob(['x'], {type: 'a/b'})}", "POST", {"content-type": "a/b"}, b"x"),
        ("{method: 'PUT', body: new Uint8Array([0, 255]), headers: {A: 1, b: undefined}}", "PUT", {"a": "1"}, b"\x00\xff"),
        ("{headers: new Headers([['X-A', '1'], ['x-a', '2']])}", "GET", {"x-a": "1, 2"}, b""),
        ("{headers: [['X-A', '1']]}", "GET", {"x-a": "1"}, b""),
    ],
)  # fmt: skip
def test_fetch_goes_to_the_host(
    run: Run, init: str, method: str, headers: dict[str, str], body: bytes
) -> None:
    host = Host(HostResponse(201, {"x-y": "z", "content-type": "text/plain"}, b"hi"))
    url = "https://example.com/a?b=c"
    source = handler(f"""
        const response = await fetch({url!r}{", " + init if init else ""});
        return [response.status, response.ok, response.url, response.headers.get("X-Y"), await response.text()];
    """)
    assert run(source, respond=host).value == [201, True, url, "z", "hi"]
    (request,) = host.requests
    assert (request.method, request.url, dict(request.headers), request.body) == (method, url, headers, body)


@pytest.mark.parametrize(
    "input",
    ["new URL('https://example.com/x')", "new Request('https://example.com/x', {method: 'POST', body: 'b'})"],
)
def test_fetch_takes_urls_and_requests(run: Run, input: str) -> None:
    host = Host(HostResponse(204, {}, b""))
    assert run(handler(f"return (await fetch({input})).status"), respond=host).value == 204
    assert host.requests[0].url == "https://example.com/x"


def test_the_host_can_refuse_a_request_with_a_sentence(run: Run) -> None:
    sentence = "Network access is denied by default. An admin can allow example.com."
    host = Host(HostResponse(error=sentence))
    result = run(handler("await fetch('https://example.com')"), respond=host)
    assert (result.failure, result.error) == ("code", sentence)
    assert (result.stack or "").startswith(f"TypeError: {sentence}")


@pytest.mark.parametrize("url", ["/relative", "not a url", ""])
def test_fetch_without_an_absolute_url_is_an_error_in_the_bot(run: Run, url: str) -> None:
    result = run(handler(f"await fetch({url!r})"))
    assert (result.failure, "URL" in (result.error or "")) == ("code", True)


def test_fetch_can_be_aborted(run: Run) -> None:
    source = handler("""
        const signal = AbortSignal.abort(new Error("stop"));
        const first = await fetch("https://example.com", {signal}).catch((error) => error.message);
        const controller = new AbortController();
        const second = fetch("https://example.com", {signal: controller.signal}).catch((error) => error.name);
        await null; await null; await null;
        controller.abort();
        return [first, await second];
    """)
    assert run(source, respond=Host(HostResponse(200))).value == ["stop", "AbortError"]


def test_what_the_host_raises_is_raised_and_the_bot_is_stopped(pool: SandboxPool) -> None:
    bot = program(handler("if (event.input) await fetch('https://example.com'); return 'fine'"))

    def respond(request: HostRequest) -> HostResponse:
        raise LookupError("a fault of the host")

    with pytest.raises(LookupError, match="a fault of the host"):
        pool.run(invocation(bot, "x"), respond)
    again = pool.run(invocation(bot, ""), no_answer)
    assert (again.value, again.warm) == ("fine", False)


def test_a_bot_may_execute_a_bot_that_executes_it(pool: SandboxPool) -> None:
    """More bots inside each other than the pool has places."""
    bot = program(
        handler("""
        if (event.input === 0) return [];
        return [event.input, ...await medplum.executeBot('me', event.input - 1, 'application/json')];
    """)
    )

    def respond(request: HostRequest) -> HostResponse:
        assert request.url == f"{F}/Bot/me/$execute"
        inner = pool.run(invocation(bot, json.loads(request.body or b"0")), respond)
        return HostResponse(200, {"content-type": "application/json"}, inner.value_json)

    assert pool.run(invocation(bot, 6), respond).value == [6, 5, 4, 3, 2, 1]
