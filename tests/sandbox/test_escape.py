"""Ways out of the sandbox, tried. First as a bot, then with all permissions of Deno, behind the system's layers alone."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bots.sandbox.api import Result, confinement_report, deno_path
from bots.sandbox.placement import place
from bots.sandbox.process import BotProcess, Launcher
from tests.sandbox.conftest import Run, invocation, no_answer, program

ATTACKS = Path(__file__).with_name("attacks.mjs")
linux = pytest.mark.skipif(sys.platform != "linux", reason="the layers are Linux's")


@pytest.fixture(scope="session")
def powerful(runtime: Path) -> Iterator[BotProcess]:
    """A bot process for which Deno allows everything."""
    process = Launcher(deno_path(), runtime, permissions=["-A"]).start(256)
    process.wake()
    yield process
    process.close()


def attack(process: BotProcess, input: dict[str, Any]) -> Result:
    bot = program(ATTACKS.read_text(), "attacks.mjs", key=("attacks",))
    return process.invoke(invocation(bot, input), no_answer, lambda _: None)


def succeeded(result: Result) -> dict[str, str]:
    assert result.ok, result
    assert len(result.value) > 30
    return {name: text for name, text in result.value.items() if str(text).startswith("WORKED")}


def test_a_bot_gets_nowhere(run: Run, targets: dict[str, Any]) -> None:
    result = run(ATTACKS.read_text(), targets, filename="attacks.mjs")
    assert succeeded(result) == {}
    assert "env access" in str(result.value["environment"])
    native = run(ATTACKS.read_text(), {"native": True}, filename="attacks.mjs")
    assert "A bot has no ffi access" in (native.error or "")


@linux
def test_with_all_permissions_of_deno_the_system_still_refuses(
    powerful: BotProcess, targets: dict[str, Any]
) -> None:
    result = attack(powerful, targets)
    assert succeeded(result) == {}
    known = {
        "DENO_DIR",
        "DENO_NO_UPDATE_CHECK",
        "DENO_NODE_SHIM_ACTIVE",
        "HOME",
        "LC_CTYPE",
        "NO_COLOR",
        "PATH",
        "TZ",
    }
    assert set(result.value["environment"]) <= known


@linux
def test_with_native_code_the_system_still_refuses(powerful: BotProcess, targets: dict[str, Any]) -> None:
    assert succeeded(attack(powerful, {**targets, "native": True})) == {}


def test_the_layers_in_force_are_told() -> None:
    layers = {layer.name: layer.active for layer in confinement_report()}
    assert sorted(layers) == [
        "landlock",
        "limits",
        "no new privileges",
        "parent death",
        "seccomp",
        "user",
    ]
    assert all(layers.values()) or sys.platform != "linux"


@linux
def test_the_process_is_what_the_layers_say(powerful: BotProcess) -> None:
    status = Path(f"/proc/{powerful.pid}/status").read_text()
    fields = dict(re.findall(r"^(\w+):[ \t]*(.*)$", status, re.MULTILINE))
    assert (fields["NoNewPrivs"], fields["Seccomp"]) == ("1", "2")
    assert int(fields["CapEff"], 16) == int(fields["CapPrm"], 16) == int(fields["CapInh"], 16) == 0
    if os.geteuid() == 0:
        assert fields["Uid"].split() == ["65533"] * 4
        assert fields["Gid"].split() == ["65533"] * 4
        assert fields["Groups"].split() == []
    descriptors = {path.name: str(path.readlink()) for path in Path(f"/proc/{powerful.pid}/fd").iterdir()}
    for number, name in descriptors.items():
        flags = int(Path(f"/proc/{powerful.pid}/fdinfo/{number}").read_text().split()[3], 8)
        assert not name.startswith("/") or name == "/dev/null" or flags & os.O_ACCMODE == os.O_RDONLY, name


# The leaks of Deno itself (sandbox.md §3) -----------------------------------------------------------------------------

STORES = """
const found = {};
for (const name of ["localStorage", "sessionStorage", "caches", "indexedDB", "BroadcastChannel", "Worker", "EventSource"]) {
  found[name] = typeof globalThis[name];
}
export const handler = () => found;
"""


def test_shared_stores_are_not_there(run: Run) -> None:
    assert set(run(STORES).value.values()) == {"undefined"}


WORKER = """
import { createRequire } from "node:module";
const { Worker } = process.getBuiltinModule("node:worker_threads");
const code = `
  const { parentPort } = require("node:worker_threads");
  const found = {};
  try { found.read = localStorage.getItem("x"); localStorage.setItem("x", "from the worker"); } catch (e) { found.storage = e.message; }
  (async () => {
    try { const cache = await caches.open("x"); await cache.put("https://a/b", new Response("x")); found.cache = "stored"; }
    catch (e) { found.noCache = e.message; }
    parentPort.postMessage(found);
  })();
`;
export async function handler() {
  return await new Promise((resolve, reject) => {
    const worker = new Worker(code, { eval: true });
    worker.once("message", resolve);
    worker.once("error", (error) => reject(new Error("worker: " + error.message)));
  });
}
"""


@linux
def test_a_worker_with_fresh_globals_leaves_nothing_behind(run: Run, runtime: Path) -> None:
    before = sorted(str(path) for path in runtime.rglob("*"))
    for _ in range(2):
        result = run(WORKER, filename="index.mjs", timeout=5)
        assert not result.ok or result.value.get("read") is None
        assert not result.ok or result.value.get("cache") is None, result
    assert sorted(str(path) for path in runtime.rglob("*")) == before


def test_the_folder_of_deno_stays_as_it_was(run: Run, runtime: Path) -> None:
    """Neither sources nor caches of bots are written anywhere."""
    assert run("export const handler = () => 'some code'").ok

    def content() -> dict[str, bytes]:
        cache = place(
            deno_path(), runtime
        ).cache  # elsewhere than the runtime, if that lies in a closed folder
        return {str(path): path.read_bytes() for path in cache.rglob("*") if path.is_file()}

    before = content()
    assert run("export const handler = () => 'some words that are nowhere else'").ok
    assert run("exports.handler = () => 'some words that are nowhere else'", filename="index.cjs").ok
    assert content() == before
    assert not any(b"words that are nowhere else" in data for data in before.values())
    assert {name for name, data in before.items() if Path(name).name in ("gen", "location_data") and not data}


def test_the_runtime_has_no_literal_import(runtime: Path) -> None:
    """Deno loads what a literal `import()` of the main module names without asking for permission."""
    for name in ("main.mjs", "core.mjs"):
        assert not re.search(r"\bimport\(\s*[\"'`]", (runtime / name).read_text())


@pytest.mark.parametrize("filename", ["index.mjs", "index.cjs"])
@pytest.mark.parametrize(
    "expression",
    [
        'import("file:///etc/passwd")',
        'import("/etc/passwd")',
        'import("file:///etc/os-release", {with: {type: "json"}})',
        'import("file:///etc/passwd", {with: {type: "text"}})',
        'import("file:///etc/passwd", {with: {type: "bytes"}})',
        'import("https://example.com/x.js")',
        'import("data:application/javascript,export{default} from %22file:///etc/passwd%22")',
        'import(URL.createObjectURL(new Blob(["import %22file:///etc/passwd%22".replaceAll("%22", String.fromCharCode(34))], {type: "text/javascript"})))',
    ],
)  # fmt: skip
def test_a_literal_import_in_a_bot_reads_nothing(run: Run, filename: str, expression: str) -> None:
    export = "export const handler" if filename.endswith("mjs") else "exports.handler"
    result = run(f"{export} = async () => ({{...await {expression}}})", filename=filename)
    assert not result.ok
    assert "root:" not in str(result)
    assert "NAME=" not in str(result)


@pytest.mark.parametrize(
    "expression",
    [
        "Deno.permissions.requestSync?.({name: 'read'}).state",
        "Deno.permissions.request({name: 'net'}).then((status) => status.state)",
        "Deno.permissions.query({name: 'run'}).then((status) => status.state)",
    ],
)
def test_permissions_cannot_be_asked_for(run: Run, expression: str) -> None:
    assert run(f"export const handler = () => {expression}").value in ("denied", "prompt")


def test_the_pipe_is_not_given_to_the_bot(run: Run) -> None:
    source = "export const handler = () => [typeof Deno.stdin, typeof Deno.stdout, typeof Deno.exit, typeof prompt]"
    assert run(source).value == ["undefined"] * 4
