"""Bots that answer while they run: ``event.responseStream``, in Python ``event.response_stream`` and ``yield``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from tests.bots.conftest import Project, wait_until
from tests.bots.test_python import NATIVE

STEPS = """
exports.handler = async (medplum, event) => {
  const out = event.responseStream;
  out.startStreaming(200, {'Content-Type': 'text/event-stream', 'X-Own': '1', 'Set-Cookie': 'a=b'});
  out.write('data: first\\n\\n');
  for (;;) {
    const found = await medplum.searchResources('Basic', {_count: 100});
    if (found.some((each) => each.code.text === event.input.name)) break;
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  out.write('data: second\\n\\n');
  out.end();
  console.log('done');
  return 'ignored';
};"""


@contextmanager
def streamed(project: Project, bot: str, value: Any = None) -> Iterator[httpx.Response]:
    """``$execute`` of a streaming Bot."""
    with project.http.stream(
        "POST",
        f"/fhir/R4/Bot/{bot}/$execute",
        json=value or {},
        headers={"Accept": "text/event-stream"},
    ) as answer:
        yield answer


def test_chunks_arrive_while_the_bot_runs(project: Project) -> None:
    bot = project.bot(STEPS, filename="a.cjs", streamingEnabled=True)
    with streamed(project, bot, {"name": "go on"}) as answer:
        assert (answer.status_code, answer.headers["content-type"]) == (200, "text/event-stream")
        assert answer.headers["x-own"] == "1"
        assert "set-cookie" not in answer.headers
        chunks = answer.iter_text()
        assert next(chunks) == "data: first\n\n"  # the Bot waits for us now
        project.post("/fhir/R4/Basic", {"resourceType": "Basic", "code": {"text": "go on"}})
        assert "".join(chunks).removeprefix(": still running\n\n") == "data: second\n\n"
    (event,) = project.audit_events(f"Bot/{bot}", 1)
    assert (event["outcome"], event["outcomeDesc"]) == ("0", "done")


def test_large_and_many_chunks_arrive_whole_and_in_order(project: Project) -> None:
    code = """
        exports.handler = async (medplum, {responseStream}) => {
          responseStream.startStreaming(201, {'Content-Type': 'application/octet-stream'});
          for (let i = 0; i < 200; i++) responseStream.write(`${i},`);
          responseStream.write(new Uint8Array(5_000_000).fill(7));
          responseStream.end('end');
        };"""
    bot = project.bot(code, filename="a.cjs", streamingEnabled=True)
    with streamed(project, bot) as answer:
        assert answer.status_code == 201
        body = answer.read()
    head = "".join(f"{number}," for number in range(200)).encode()
    assert body == head + b"\x07" * 5_000_000 + b"end"


def test_disconnect_stops_the_run(project: Project) -> None:
    code = """
        exports.handler = async (medplum, {responseStream}) => {
          responseStream.startStreaming(200, {'Content-Type': 'text/event-stream'});
          for (let i = 0; ; i++) {
            responseStream.write(`data: ${i}\\n\\n`);
            await new Promise((resolve) => setTimeout(resolve, 20));
          }
        };"""
    bot = project.bot(code, filename="a.cjs", streamingEnabled=True, timeout=300)
    with streamed(project, bot) as answer:
        next(answer.iter_text())
    (event,) = project.audit_events(f"Bot/{bot}", 1)
    assert (event["outcome"], event["outcomeDesc"]) == ("4", "The run was cancelled.")


def test_bot_that_does_not_stream_answers_as_ever(project: Project) -> None:
    bot = project.bot("exports.handler = async () => ({a: 1});", filename="a.cjs", streamingEnabled=True)
    with streamed(project, bot) as answer:
        assert json.loads(answer.read()) == {"a": 1}
    plain = project.bot(
        "exports.handler = async (medplum, event) => 'responseStream' in event;", filename="a.cjs"
    )
    with streamed(project, plain) as answer:
        assert answer.read() == b"false"


def test_failure_before_the_start_is_an_outcome(project: Project) -> None:
    bot = project.bot(
        "exports.handler = async () => { throw new Error('early'); };",
        filename="a.cjs",
        streamingEnabled=True,
    )
    with streamed(project, bot) as answer:
        assert (answer.status_code, "early" in answer.read().decode()) == (400, True)


def test_failure_after_the_start_ends_the_answer_and_is_audited(project: Project) -> None:
    code = "exports.handler = async (medplum, {responseStream}) => { responseStream.write('a'); throw new Error('late'); };"
    bot = project.bot(code, filename="a.cjs", streamingEnabled=True)
    with streamed(project, bot) as answer:
        assert (answer.status_code, answer.read()) == (200, b"a")
    (event,) = project.audit_events(f"Bot/{bot}", 1)
    assert event["outcome"] == "4"
    assert "late" in event["outcomeDesc"]


def test_streaming_bot_needs_a_caller_who_takes_a_stream(project: Project) -> None:
    bot = project.bot(STEPS, filename="a.cjs", streamingEnabled=True)
    answer = project.execute(bot)
    assert answer.status_code == 400
    assert "requires Accept: text/event-stream" in answer.json()["issue"][0]["details"]["text"]


def test_time_limit_holds_for_a_reader_who_does_not_read(project: Project) -> None:
    code = """
        exports.handler = async (medplum, {responseStream}) => {
          responseStream.startStreaming(200, {});
          for (;;) responseStream.write(new Uint8Array(200_000));
        };"""
    bot = project.bot(code, filename="a.cjs", streamingEnabled=True, timeout=2)
    with streamed(project, bot):
        wait_until(lambda: len(project.audit_events(f"Bot/{bot}")) == 1)
    (event,) = project.audit_events(f"Bot/{bot}", 1)
    assert "time limit" in event["outcomeDesc"]


# --- Python ----------------------------------------------------------------------------------------------------------

WRITES = """
import asyncio


async def handler(medplum, event):
    out = event.response_stream
    out.start_streaming(200, {"Content-Type": "text/event-stream", "X-Own": 1, "Set-Cookie": "a=b"})
    out.write("data: first\\n\\n")
    while not await medplum.search_one("Basic", {"code:text": event.input["name"]}):
        await asyncio.sleep(0.02)
    out.end(b"data: second\\n\\n")
    print("done")
    return "ignored"
"""
YIELDS = """
import asyncio
from fhirbots import Response


async def handler(medplum, event):
    yield Response(200, {"X-Own": "1"})
    yield "data: first\\n\\n"
    while not await medplum.search_one("Basic", {"code:text": event.input["name"]}):
        await asyncio.sleep(0.02)
    yield b"data: second\\n\\n"
    print("done")
"""
YIELDS_PLAINLY = """
import time


def handler(medplum, event):
    event.response_stream.start_streaming(headers={"X-Own": "1"})
    yield "data: first\\n\\n"
    while not medplum.search_one("Basic", {"code:text": event.input["name"]}):
        time.sleep(0.02)
    yield "data: second\\n\\n"
    print("done")
"""
EMITS = """
from fhirbots import Response


def handler(medplum, event):
    kind = event.input.get("kind")
    if kind == "early":
        raise ValueError("early")
    if kind == "status":
        yield Response(202, {"Content-Type": "text/csv"}, b"a,")
    yield "b"
    if kind == "late":
        raise ValueError("late")
    if kind == "wrong":
        yield {"not": "text"}
    if kind == "large":
        yield bytes(5_000_000)
    yield b"c"
"""


@pytest.fixture(params=[(), NATIVE], ids=["pyodide", "cpython"])
def runtime(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Elements of a Python Bot that streams."""
    return {"streamingEnabled": True} | ({"extension": request.param} if request.param else {})


@pytest.mark.parametrize("code", [WRITES, YIELDS, YIELDS_PLAINLY], ids=["writes", "yields", "plainly"])
def test_chunks_arrive_while_a_python_bot_runs(
    project: Project, runtime: dict[str, Any], code: str, request: pytest.FixtureRequest
) -> None:
    bot, name = project.bot(code, filename="a.py", **runtime), request.node.name
    with streamed(project, bot, {"name": name}) as answer:
        assert (answer.status_code, answer.headers["content-type"]) == (200, "text/event-stream")
        assert answer.headers["x-own"] == "1"
        assert "set-cookie" not in answer.headers
        chunks = answer.iter_text()
        assert next(chunks) == "data: first\n\n"  # the Bot waits for us now
        project.post("/fhir/R4/Basic", {"resourceType": "Basic", "code": {"text": name}})
        assert "".join(chunks).removeprefix(": still running\n\n") == "data: second\n\n"
    (event,) = project.audit_events(f"Bot/{bot}", 1)
    assert (event["outcome"], event["outcomeDesc"]) == ("0", "done")


def test_what_a_python_bot_yields_and_raises(project: Project, runtime: dict[str, Any]) -> None:
    bot = project.bot(EMITS, filename="a.py", **runtime)

    def answer(kind: str) -> tuple[int, str, bytes]:
        with streamed(project, bot, {"kind": kind}) as got:
            return got.status_code, got.headers["content-type"], got.read()

    assert answer("") == (200, "text/event-stream", b"bc")
    assert answer("status") == (202, "text/csv", b"a,bc")
    assert answer("large") == (200, "text/event-stream", b"b" + bytes(5_000_000) + b"c")
    assert answer("late") == (200, "text/event-stream", b"b")
    assert answer("wrong") == (200, "text/event-stream", b"b")
    status, _, body = answer("early")
    assert (status, b"early" in body) == (400, True)
    *_, late, wrong, early = project.audit_events(f"Bot/{bot}", 6)
    assert [event["outcome"] for event in (late, wrong, early)] == ["4", "4", "4"]
    assert "ValueError: late" in late["outcomeDesc"]
    assert "A chunk must be text or bytes, not dict." in wrong["outcomeDesc"]


def test_a_python_bot_that_yields_answers_in_one_piece_who_does_not_stream(project: Project) -> None:
    bot = project.bot(EMITS, filename="a.py")
    answer = project.execute(bot, {"kind": "status"})
    assert (answer.status_code, answer.headers["content-type"], answer.text) == (202, "text/csv", "a,bc")
    answer = project.execute(bot, {"kind": "late"})
    assert (answer.status_code, "late" in answer.text) == (400, True)
    unaware = project.bot(
        "def handler(medplum, event):\n    return event.response_stream is None\n", filename="a.py"
    )
    with streamed(project, unaware) as got:
        assert got.read() == b"true"


def test_a_python_bot_cannot_write_in_a_wrong_order_or_after_its_call(
    project: Project, runtime: dict[str, Any]
) -> None:
    code = """
kept = []


def handler(medplum, event):
    out = event.response_stream
    said = []
    for act in (lambda: out.start_streaming(99), lambda: kept[0].write("x"), lambda: out.write(7)):
        try:
            act()
        except Exception as error:
            said.append(str(error))
    kept.append(out)
    out.write("|".join(said))
    if len(kept) == 1:
        return  # without an end
    for act in (out.start_streaming, out.end, out.end, lambda: out.write("x")):
        try:
            act()
        except Exception as error:
            print(error)
"""
    bot = project.bot(code, filename="a.py", **runtime)
    with streamed(project, bot) as answer:
        first = answer.read().decode()
    with streamed(project, bot) as answer:
        second = answer.read().decode()
    status, chunk = (
        "The status of a response must be between 200 and 599.",
        "A chunk must be text or bytes, not int.",
    )
    assert first == f"{status}|list index out of range|{chunk}"
    over = "This call of the Bot has ended: its response cannot be written any more."
    assert second == f"{status}|{over}|{chunk}"
    (_, event) = project.audit_events(f"Bot/{bot}", 2)
    assert event["outcomeDesc"].splitlines() == [
        "The response has been started before.",
        "The response has been ended before.",
    ]


def test_disconnect_stops_a_python_bot(project: Project, runtime: dict[str, Any]) -> None:
    code = """
import asyncio


async def handler(medplum, event):
    while True:
        yield "data: 1\\n\\n"
        await asyncio.sleep(0.02)
"""
    bot = project.bot(code, filename="a.py", timeout=300, **runtime)
    with streamed(project, bot) as answer:
        next(answer.iter_text())
    (event,) = project.audit_events(f"Bot/{bot}", 1)
    assert (event["outcome"], event["outcomeDesc"]) == ("4", "The run was cancelled.")
