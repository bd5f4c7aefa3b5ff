"""Ways out of the sandbox for Python, tried as `test_escape` does for JavaScript: as a bot, then with Deno's permissions."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bots.sandbox.api import Result, SandboxPool, deno_path
from bots.sandbox.process import BotProcess, Launcher
from tests.sandbox.conftest import invocation, no_answer, python_program

ATTACKS = Path(__file__).with_name("attacks.py")
linux = pytest.mark.skipif(sys.platform != "linux", reason="the layers are Linux's")


@pytest.fixture(scope="module")
def powerful(python_runtime: Path) -> Iterator[BotProcess]:
    """A Python process for which Deno allows everything."""
    process = Launcher(deno_path(), python_runtime, permissions=["-A"], python=True).start(256)
    process.wake()
    yield process
    process.close()


def succeeded(result: Result, targets: dict[str, Any]) -> dict[str, Any]:
    assert result.ok, result
    environment = result.value.pop("environment")
    assert set(environment) <= {"HOME", "TZ", "LANG", "PATH", "PWD", "USER", "LOGNAME"}, environment
    assert len(result.value) > 45
    assert "the secret" not in str(result.value)
    return {name: text for name, text in result.value.items() if str(text).startswith("WORKED")}


def test_a_python_bot_gets_nowhere(python_pool: SandboxPool, targets: dict[str, Any]) -> None:
    bot = python_program(ATTACKS.read_text(), "attacks.py")
    assert succeeded(python_pool.run(invocation(bot, targets), no_answer), targets) == {}


@linux
def test_with_all_permissions_of_deno_the_system_still_refuses_python(
    powerful: BotProcess, targets: dict[str, Any]
) -> None:
    bot = python_program(ATTACKS.read_text(), "attacks.py", key=("attacks",))
    result = powerful.invoke(invocation(bot, targets), no_answer, lambda _: None)
    # Its own environment and address space are its own.
    harmless = {
        "js_environment",
        "js_process_environment",
        "js_deno_core",
        "js_dlopen",  # native code, which meets the layers: `test_escape` goes on from there
        "js_inspector",
        "js_permissions",
        "js_read_runtime",
    }
    assert set(succeeded(result, targets)) <= harmless


@linux
def test_native_python_gets_nowhere_either(python_pool: SandboxPool, targets: dict[str, Any]) -> None:
    bot = replace(python_program(ATTACKS.read_text(), "attacks.py"), native=True)
    result = python_pool.run(invocation(bot, targets), no_answer)
    environment = result.value["environment"]
    assert environment.pop("PYTHONHOME")
    assert environment.pop("PYTHONPATH")
    environment.pop("LD_LIBRARY_PATH", None)
    environment.pop("LC_CTYPE", None)
    # Threads are its own, and the C library is what the interpreter is made of; what they try is refused.
    assert set(succeeded(result, targets)) <= {"threads", "ctypes_library"}


@linux
@pytest.mark.parametrize(
    "code",
    [
        "import os; os._exit(0)",
        "import os; os.abort()",
        "import ctypes; ctypes.string_at(1)",
        "import os; os.kill(os.getpid(), 9)",
        "import os; os.execv('/bin/sh', ['sh', '-c', 'id'])",
        "import os; os.execv(__import__('sys').executable, ['python', '-c', 'print(open(\"/etc/passwd\").read())'])",
        "import ctypes; ctypes.CDLL(None).syscall(57) and 1 / 0; raise SystemExit",
        "import ctypes; libc = ctypes.CDLL(None); libc.setrlimit(2, None); libc.prctl(1, 0); raise SystemExit",
        "import resource; resource.setrlimit(resource.RLIMIT_DATA, (-1, -1))",
        "import os; os.setuid(0)",
        "import os; os.chroot('/')",
        "import os; os.mkfifo('/tmp/x')",
        "import os; os.open('/dev/tty', os.O_RDWR)",
        "import mmap; mmap.mmap(-1, 1 << 31)",
        "bytearray(1 << 30)",
        "import os; os.listdir('/tmp')",
        "import os; os.scandir('/proc/1')",
        "import shutil; shutil.rmtree(os.path.dirname(os.__file__)) if (os := __import__('os')) else None; open(os.__file__, 'w')",
    ],
)  # fmt: skip
def test_native_python_that_breaks_its_process_harms_only_its_own_call(
    python_pool: SandboxPool, code: str
) -> None:
    source = f"def handler(medplum, event):\n    if event.input.get('quiet'): return 'well'\n    {code}\n"
    bot = replace(python_program(source), native=True)
    result = python_pool.run(invocation(bot, {}, timeout=3), no_answer)
    assert not result.ok, result
    assert "uid=" not in str(result)
    assert "root:" not in str(result)
    assert python_pool.run(invocation(bot, {"quiet": True}), no_answer).value == "well"


@pytest.mark.parametrize(
    "code",
    [
        "import os; os.system('id')",
        "from pyodide.code import run_js; run_js('new (process.getBuiltinModule(\"worker_threads\").Worker)(\"1\", {eval: true})')\n"
        "    import time; time.sleep(2)",
        "import socket; socket.create_server(('127.0.0.1', 0)).accept()",
        "import os; os._exit(0)",
        "import os; os.abort()",
        "import ctypes; ctypes.string_at(0xfffffff0)",
        "import ctypes; ctypes.memset(0, 1, 1 << 24)",
        "import faulthandler; faulthandler._sigsegv()",
        "import js; js.Deno.exit(0)",
        "import js; js.process.exit(0)",
        "import js; js.process.abort()",
        "import sys; sys.setrecursionlimit(10**9)\n    def f(): return f()\n    f()",
        "import os; os.closerange(0, 100)",
        "import os\n    while True: os.write(pipe, b'x' * 100000)",
        "import os, struct\n    os.write(pipe, struct.pack('>II', 1 << 31, 1 << 31))",
        "import os, struct\n    os.write(pipe, struct.pack('>II', 2, 0) + b'{}')",
        "import os, struct\n    frame = b'{\"type\":\"result\",\"call\":99,\"ok\":true,\"kind\":\"undefined\"}'\n"
        "    os.write(pipe, struct.pack('>II', len(frame), 0) + frame)",
        "import os\n    os.read(pipe, 1 << 20)",
    ],
)  # fmt: skip
def test_a_python_bot_that_breaks_its_process_harms_only_its_own_call(
    python_pool: SandboxPool, code: str
) -> None:
    source = f"def handler(medplum, event):\n    if event.input.get('quiet'): return 'well'\n    pipe = medplum._transport.pipe._writing\n    {code}\n"
    bot = python_program(source)
    result = python_pool.run(invocation(bot, {}, timeout=3), no_answer)
    assert not result.ok or result.value is None
    assert "uid=" not in str(result)
    assert python_pool.run(invocation(bot, {"quiet": True}), no_answer).value == "well"


def test_a_forged_request_has_the_authority_of_its_own_process(python_pool: SandboxPool) -> None:
    """Frames can be written by hand; who is asked in whose name is decided by the pipe they come from."""
    source = """\
import json, os, struct
def handler(medplum, event):
    frame = json.dumps({"type": "request", "call": 1, "id": 77, "method": "GET", "url": medplum.base_url + "x",
                        "headers": [["authorization", "Bearer somebody-else"]], "identity": "admin"}).encode()
    os.write(medplum._transport.pipe._writing, struct.pack(">II", len(frame), 0) + frame)
"""
    asked: list[Any] = []

    def respond(request: Any) -> Any:
        asked.append(request)
        return no_answer(request)

    python_pool.run(invocation(python_program(source), {}), respond)
    assert len(asked) == 1
    assert not hasattr(asked[0], "identity")
