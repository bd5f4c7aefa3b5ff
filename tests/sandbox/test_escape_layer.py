"""Ways out through the modules and globals of the bot layer, and through the pipe: none succeeds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bots.sandbox.api import HostRequest, HostResponse, SandboxPool
from tests.sandbox.conftest import Run, invocation, no_answer, program

ESCAPES = Path(__file__).with_name("escapes.mjs")


def test_nothing_of_the_layer_leads_out(run: Run, targets: dict[str, Any]) -> None:
    """More than a hundred attempts; requests that reach the host are refused by it, as in production."""
    result = run(ESCAPES.read_text(), targets, filename="escapes.mjs", timeout=100)
    assert result.ok, result
    assert len(result.value) > 100
    assert {name: text for name, text in result.value.items() if text.startswith("WORKED")} == {}


@pytest.mark.parametrize(
    "name", ["v8: a snapshot to a file", "dgram", "abort", "a stack without end", "memory without end"]
)
def test_what_ends_the_process_ends_it_alone(run: Run, targets: dict[str, Any], name: str) -> None:
    result = run(ESCAPES.read_text(), targets | {"fatal": name}, filename="escapes.mjs")
    assert not result.ok or result.value[name].startswith("refused"), result
    assert not list(Path("/tmp").glob("fhirbots-heap*"))
    assert run("export const handler = () => 1").value == 1


FORGERIES = {
    "a result": '{"type":"result","call":1,"ok":true,"kind":"string"}',
    "an abort of nothing": '{"type":"abort","call":1}',
    "an abort of another call": '{"type":"abort","call":99,"id":1}',
    "a part, as the host sends": '{"type":"part","call":1,"id":1,"end":true}',
    "a response, as the host sends": '{"type":"response","call":1,"id":1,"status":200}',
    "a request of another call": '{"type":"request","call":7,"id":1,"method":"GET","url":"u","headers":[]}',
    "a request with another redirect": '{"type":"request","call":1,"id":1,"method":"GET","url":"u","headers":[],"redirect":"never"}',
    "a request without id": '{"type":"request","call":1,"method":"GET","url":"u","headers":[]}',
    "a ready": '{"type":"ready"}',
    "no JSON": "{",
    "a list": "[]",
}
WRITE = """
const core = Deno[Deno.internal]?.core;
function write(text) {
  const json = new TextEncoder().encode(text);
  const frame = new Uint8Array(8 + json.length);
  new DataView(frame.buffer).setUint32(0, json.length);
  frame.set(json, 8);
  const fs = process.getBuiltinModule("fs");
  for (const attempt of [() => fs.writeSync(1, frame), () => core.writeSync(1, frame), () => core.ops.op_write_sync(1, frame)]) {
    try { attempt(); return; } catch { /* another way */ }
  }
}
export async function handler(_, { input }) {
  write(input);
  await new Promise((resolve) => setTimeout(resolve, 50));
  return "the real end";
}
"""


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_frame_gains_nothing(pool: SandboxPool, name: str) -> None:
    """Whatever a bot writes to its pipe is at most its own end: no request beyond its own, and the next bot is served."""
    seen: list[HostRequest] = []

    def respond(request: HostRequest) -> HostResponse:
        seen.append(request)
        return HostResponse(200)

    result = pool.run(invocation(program(WRITE, "index.mjs"), FORGERIES[name]), respond)
    assert result.failure in (None, "crash"), result
    assert result.value in (None, "the real end", "")
    assert seen == []
    assert pool.run(invocation(program("export const handler = () => 1")), no_answer).value == 1


def test_one_bots_library_is_not_the_next_ones(run: Run) -> None:
    """What a bot does to a library stays in its process."""
    poison = "import JSZip from 'jszip'; JSZip.prototype.file = () => 'poisoned'; globalThis.fetch = 0; Object.prototype.polluted = 1; export const handler = () => new JSZip().file()"
    assert run(poison).value == "poisoned"
    clean = "import JSZip from 'jszip'; export const handler = () => [typeof new JSZip().file('a', 'b'), typeof fetch, ({}).polluted ?? 'clean']"
    assert run(clean).value == ["object", "function", "clean"]


@pytest.mark.parametrize(
    "damage",
    [
        "JSON.stringify = () => '{\"type\":\"result\",\"call\":1,\"ok\":true}'",
        "JSON.parse = () => ({})",
        "Uint8Array.prototype.set = () => {}",
        "TextEncoder.prototype.encode = () => new Uint8Array(4)",
        "DataView.prototype.setUint32 = () => {}",
        "Map.prototype.get = () => undefined",
        "Promise.prototype.then = function () { return this }",
        "Object.prototype.call = 99",
        "Object.prototype.type = 'request'",
        "Array.prototype[Symbol.iterator] = undefined",
        "AbortSignal.prototype.addEventListener = () => { throw 1 }",
        "globalThis.Response = class {}",
        "Object.defineProperty(Object.prototype, 'program', { value: { filename: 'x' } })",
    ],
)  # fmt: skip
def test_a_bot_that_breaks_its_runtime_breaks_only_itself(pool: SandboxPool, damage: str) -> None:
    broken = program(f"export async function handler(medplum) {{ {damage}; try {{ await fetch('https://a.test/') }} catch {{ }} return 'x' }}", "index.mjs")  # fmt: skip
    urls: list[str] = []

    def respond(request: HostRequest) -> HostResponse:
        urls.append(request.url)
        return HostResponse(error="refused")

    pool.run(invocation(broken, timeout=1), respond)
    assert set(urls) <= {"https://a.test/"}
    assert pool.run(invocation(program("export const handler = () => 1")), no_answer).value == 1
