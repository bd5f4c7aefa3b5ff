"""Time, memory and the pipe: how a bot is stopped, and what is told of it. And that no call reaches into the next one."""

from __future__ import annotations

import time
from typing import Any

import pytest

from bots.sandbox.api import HostRequest, HostResponse, SandboxPool
from bots.sandbox.pool import KEEP_BYTES
from tests.sandbox.conftest import Run, invocation, no_answer, program


def handler(body: str) -> str:
    return f"export async function handler(medplum, event) {{ {body} }}"


@pytest.mark.parametrize(
    "body",
    [
        "for (;;);",
        "for (;;) await null",
        "await new Promise(() => {})",
        "setInterval(() => {}, 1); await new Promise(() => {})",
        "return /^(a+)+$/.test('a'.repeat(50) + 'b')",
        "Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0)",
        "const f = (n) => n < 2 ? n : f(n - 1) + f(n - 2); f(60)",
        "return {toJSON() { for (;;); }}",
        "return {then() {}}",
        "throw {get message() { for (;;); }}",
        "try { for (;;); } finally { for (;;); }",
    ],
)
def test_a_bot_is_stopped_at_its_time_limit(run: Run, body: str) -> None:
    result = run(handler(body), timeout=0.3)
    assert (result.ok, result.failure) == (False, "timeout")
    assert result.error == "The bot was stopped at its time limit of 0.3 s."
    assert result.duration_ms >= 300


def test_code_that_never_finishes_loading_is_stopped_too(run: Run) -> None:
    assert run(f"for (;;); {handler('')}", timeout=0.3).failure == "timeout"


def test_the_time_limit_holds_while_the_host_is_slow(run: Run) -> None:
    def respond(request: HostRequest) -> HostResponse:
        time.sleep(0.5)
        return HostResponse(200)

    result = run(handler("await fetch('https://example.com'); return 1"), respond=respond, timeout=0.2)
    assert result.failure == "timeout"


def test_a_stopped_bot_runs_again_afresh(pool: SandboxPool) -> None:
    bot = program("let calls = 0; " + handler("calls++; if (event.input) for (;;); return calls"))
    assert pool.run(invocation(bot), no_answer).value == 1
    assert pool.run(invocation(bot), no_answer).value == 2
    assert pool.run(invocation(bot, "loop", timeout=0.3), no_answer).failure == "timeout"
    assert pool.run(invocation(bot), no_answer).value == 1


@pytest.mark.parametrize(
    "body",
    [
        "const a = []; for (;;) a.push(new Array(1000).fill(1.5))",
        "const a = []; for (let i = 0; ; i++) a.push(('x' + i).repeat(1e6).split(''))",
        "const a = []; for (;;) a.push(new Uint8Array(1 << 25).fill(1))",
        "const a = []; for (;;) a.push(Buffer.alloc(1 << 25, 1))",
        "const a = []; for (;;) { const m = new WebAssembly.Memory({initial: 1000}); new Uint8Array(m.buffer).fill(1); a.push(m) }",
        "const a = []; for (;;) a.push(new SharedArrayBuffer(1 << 26))",
        "const a = new ArrayBuffer(1, {maxByteLength: 1 << 30}); a.resize(1 << 30); new Uint8Array(a).fill(1)",
    ],
)  # fmt: skip
def test_a_bot_that_takes_too_much_memory_fails_with_memory(run: Run, body: str) -> None:
    result = run(handler(body))
    assert (result.ok, result.failure) == (False, "memory"), result
    assert "memory" in (result.error or "")


def test_a_bot_may_be_given_more_memory(pool: SandboxPool) -> None:
    bot = program(
        handler("const a = []; for (let i = 0; i < 20000; i++) a.push(new Array(1000).fill(1.5)); return 1")
    )
    assert pool.run(invocation(bot, memory_mb=64), no_answer).failure == "memory"
    assert pool.run(invocation(bot, memory_mb=512), no_answer).value == 1


def test_a_process_that_has_grown_is_not_kept(pool: SandboxPool, monkeypatch: pytest.MonkeyPatch) -> None:
    bot = program(
        "const kept = [];" + handler("kept.push(new Array(1e6).fill(event.input)); return kept.length")
    )
    assert [pool.run(invocation(bot, 1.5), no_answer).value for _ in range(2)] == [1, 2]
    monkeypatch.setitem(KEEP_BYTES, "javascript", 1 << 20)
    assert [pool.run(invocation(bot, 1.5), no_answer).value for _ in range(2)] == [3, 1]


def test_memory_does_not_leak_from_call_to_call(pool: SandboxPool) -> None:
    bot = program(handler("return new Array(1e6).fill(event.input).length"))
    for _ in range(40):
        assert pool.run(invocation(bot, "x"), no_answer).ok


FORGE = "import { writeSync } from 'node:fs'; const send = (bytes) => writeSync(1, new Uint8Array(bytes));\n"
FRAME = """const frame = (header, body = "") => {
    const json = new TextEncoder().encode(typeof header === "string" ? header : JSON.stringify(header));
    const bytes = new Uint8Array(8 + json.length + body.length);
    new DataView(bytes.buffer).setUint32(0, json.length);
    new DataView(bytes.buffer).setUint32(4, body.length);
    bytes.set(json, 8);
    bytes.set(new TextEncoder().encode(body), 8 + json.length);
    send(bytes);
};\n"""


@pytest.mark.parametrize(
    ("statement", "sentence"),
    [
        ("send(new TextEncoder().encode('some text for the console, so to say'))", "a frame that is too large"),
        ("send([0, 0, 0, 4, 255, 255, 255, 255, 1, 2, 3, 4])", "a frame that is too large"),
        ("frame('not json')", "a frame that is not JSON"),
        ("frame('\\xff')", "a frame of no present call"),
        ("frame([1])", "a frame that is not an object"),
        ("frame({})", "a frame of no present call"),
        ("frame({type: 'ready'})", "a frame of no present call"),
        ("frame({type: 'result', call: 2, ok: true, kind: 'null'})", "a frame of no present call"),
        ("frame({type: 'log', call: '1'})", "a frame of no present call"),
        ("frame({type: 'log', call: 1})", "a frame of no known type"),
        ("frame({type: 'log', call: 1, level: 'shout', offset: 1, text: 'x'})", "a log line that is none"),
        ("frame({type: 'log', call: 1, level: [], offset: 1, text: 'x'})", "a log line that is none"),
        ("frame({type: 'log', call: 1, level: 'log', offset: 'x', text: 'x'})", "a log line that is none"),
        ("frame({type: 'log', call: 1, level: 'log', offset: 1e300, text: 'x'})", "a log line that is none"),
        ("frame({type: 'log', call: 1, level: 'log', offset: 1, text: {}})", "a log line that is none"),
        ("frame({type: 'tail', call: 1, skipped: 1, lines: [['log', 1, 2]]})", "a log line that is none"),
        ("for (;;) frame({type: 'log', call: 1, level: 'log', offset: 1, text: ''})", "more log than is allowed"),
        ("for (;;) frame({type: 'log', call: 1, level: 'log', offset: 1, text: 'x'.repeat(1e6)})", "more log than is allowed"),
        ("frame({type: 'request', call: 1})", "a request that is none"),
        ("frame({type: 'request', call: 1, id: 1, method: 'GET', url: 'x', headers: [1]})", "a header that is none"),
        ("frame({type: 'result', call: 1, ok: 'yes', kind: 'null'})", "a result that is none"),
        ("frame({type: 'result', call: 1, ok: true, kind: 'everything'})", "a result that is none"),
        ("frame({type: 'result', call: 1, ok: false, failure: 'startup'})", "a result that is none"),
        ("frame({type: 'bring me', call: 1})", "a frame of no known type"),
    ],
)  # fmt: skip
def test_a_forged_frame_ends_the_process(run: Run, statement: str, sentence: str) -> None:
    source = FORGE + FRAME + handler(f"{statement}; await new Promise(() => {{}})")
    result = run(source.replace("\\xff", "{}"), filename="index.mjs")
    assert (result.ok, result.failure) == (False, "crash"), result
    assert result.error == f"The bot's process was stopped: it sent {sentence}."


@pytest.mark.parametrize(
    "frames",
    [
        """frame({...part, op: 'write'}, '[200, {"set-cookie": "a=b"}]')""",
        "frame({...part, op: 'end'})",
        "start(); start()",
        "start(); frame({...part, op: 'end'}); frame({...part, op: 'write'}, 'x')",
    ],
)
def test_parts_of_an_answer_come_in_order_whatever_the_bot_sends(pool: SandboxPool, frames: str) -> None:
    """What is passed on as status and headers must be what was checked as such."""
    parts = []
    part = "const part = {type: 'stream', call: 1};"
    start = "const start = () => frame({...part, op: 'start', status: 200, headers: []});"
    source = FORGE + FRAME + handler(f"{part} {start} {frames}; await new Promise(() => {{}})")
    asked = invocation(program(source, "index.mjs"), on_part=lambda each, _: parts.append(each.kind))
    result = pool.run(asked, no_answer)
    assert result.error == "The bot's process was stopped: it sent a part of a stream that is none."
    assert parts in ([], ["start"], ["start", "end"])


ASKS = """
const asked = {type: "request", call: 1, method: "GET", url: "https://example.com", headers: []};
for (let id = 1000; ; id++) frame({...asked, id}, "x".repeat(event.input));
"""


def test_a_bot_that_asks_and_does_not_listen_is_held_back(run: Run) -> None:
    """Neither its requests nor the answers to them may fill the memory of the host."""
    answered = []

    def respond(request: HostRequest) -> HostResponse:
        answered.append(1)
        return HostResponse(200, {}, bytes(500_000))

    small = run(FORGE + FRAME + handler(ASKS), 10, filename="index.mjs", respond=respond, timeout=0.7)
    assert small.failure == "timeout"
    assert len(answered) < 10
    large = run(FORGE + FRAME + handler(ASKS), 1_000_000, filename="index.mjs", respond=respond)
    assert large.error == "The bot's process was stopped: it sent more requests at once than are allowed."


def test_a_request_that_is_too_large_is_an_error_in_the_bot(run: Run) -> None:
    result = run(
        handler("await fetch('https://example.com', {method: 'POST', body: new Uint8Array(33 << 20)})")
    )
    assert (result.failure, result.error) == (
        "code",
        "The request has a body of 34603008 bytes; at most 33554432 can be sent.",
    )
    result = run(handler("await fetch('https://example.com/' + 'x'.repeat(2e6))"))
    assert (result.failure, "longer than 1048576 characters" in (result.error or "")) == ("code", True)


def test_a_forged_result_ends_the_call_and_nothing_else(pool: SandboxPool) -> None:
    """A bot can lie about its own result. What it sends beyond it must not be read as the next call's."""
    forged = "frame({type: 'result', call: 1, ok: true, kind: 'string'}, '\"forged\"');" * 2
    bot = program(FORGE + FRAME + handler(f"if (event.input) {{ {forged} }} return 'real'"), "index.mjs")
    assert pool.run(invocation(bot, "x"), no_answer).value == "forged"
    second = pool.run(invocation(bot), no_answer)
    assert second.value == "real" or second.failure == "crash"
    assert pool.run(invocation(bot), no_answer).value == "real"


def test_a_forged_request_has_the_authority_of_the_bot_and_no_other(run: Run) -> None:
    """Frames carry no identity at all: whatever one says, the host answers it as the identity bound to the process."""
    seen: list[HostRequest] = []

    def respond(request: HostRequest) -> HostResponse:
        seen.append(request)
        return HostResponse(200)

    forged = "{type: 'request', call: 1, id: 99, method: 'GET', url: 'u', headers: [], project: 'other', identity: 'admin'}"
    assert (
        run(
            FORGE + FRAME + handler(f"frame({forged}); return 1"), filename="index.mjs", respond=respond
        ).value
        == 1
    )
    assert seen == [HostRequest("GET", "u", {}, b"")]


LEFT_BEHIND = """
let client;
export async function handler(medplum, event) {
  if (event.input === "first") {
    client = medplum;
    setTimeout(async () => {
      console.log("the timer of the first call");
      globalThis.seen = [];
      for (const act of [() => fetch("https://example.com/late"), () => medplum.readResource("Patient", "1")]) {
        await act().catch((error) => globalThis.seen.push(error.message));
      }
    }, 20);
    return;
  }
  await new Promise((resolve) => setTimeout(resolve, 100));
  const old = await client.readResource("Patient", "1").catch((error) => error.message);
  return { seen: globalThis.seen, old };
}
"""


def test_a_timer_of_one_call_cannot_act_in_the_next(pool: SandboxPool) -> None:
    requests: list[HostRequest] = []

    def respond(request: HostRequest) -> HostResponse:
        requests.append(request)
        return HostResponse(200)

    bot = program(LEFT_BEHIND, "index.mjs")
    assert pool.run(invocation(bot, "first"), respond).ok
    second = pool.run(invocation(bot, "second"), respond)
    ended = "This call of the bot has ended: nothing it left running can send requests any more."
    assert (second.warm, second.value) == (True, {"old": ended})  # the timer went with its call
    assert second.log == ()
    assert requests == []


def test_between_calls_a_bot_stands_still(pool: SandboxPool) -> None:
    source = "let ticks = 0; setInterval(() => ticks++, 1);" + handler("return ticks")
    bot = program(source)
    before = pool.run(invocation(bot), no_answer).value
    time.sleep(0.3)
    assert pool.run(invocation(bot), no_answer).value - before < 100


def test_what_a_call_leaves_in_its_globals_stays_with_the_bot(pool: SandboxPool) -> None:
    """A warm process is the bot's own; another bot's process knows nothing of it."""
    source = "globalThis.count = (globalThis.count ?? 0);" + handler("return ++globalThis.count")
    one, other = program(source), program(source)
    values: list[Any] = [pool.run(invocation(bot), no_answer).value for bot in (one, one, other, one, other)]
    assert values == [1, 2, 1, 3, 2]
