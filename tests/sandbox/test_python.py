"""Python in the sandbox: log, limits, isolation of calls, and the places of the pool."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bots.sandbox.api import HostRequest, HostResponse, Result, SandboxPool, deno_path
from bots.sandbox.pool import MOST
from tests.sandbox.conftest import invocation, no_answer, program, python_program
from tests.sandbox.test_pool import until

ASKS = "async def handler(medplum, event):\n    return (await medplum.get('fhir/R4/x'))['n']\n"


@pytest.fixture
def small_pool(runtime: Path, python_runtime: Path) -> Iterator[SandboxPool]:
    """A pool of its own, without spares until Python is asked for."""
    with SandboxPool(size=12, spare=1, deno=deno_path(), runtime=runtime, python=python_runtime) as pool:
        yield pool


@pytest.fixture(params=[False, True], ids=["pyodide", "cpython"])
def native(request: pytest.FixtureRequest) -> bool:
    """Both ways to run Python."""
    return bool(request.param)


def run(pool: SandboxPool, source: str, input: Any = None, *, native: bool = False, **more: Any) -> Result:
    return pool.run(invocation(replace(python_program(source), native=native), input, **more), no_answer)


def answer(_: HostRequest) -> HostResponse:
    return HostResponse(200, {"content-type": "application/json"}, b'{"n": 7}')


LOG = """\
import logging, sys, warnings
def handler(medplum, event):
    print("a", 1)
    print("two\\nlines")
    sys.stderr.write("e\\n")
    logging.debug("d")
    logging.getLogger("x").info("i %s", 1)
    logging.warning("w")
    logging.error("bad %d", "x")
    warnings.warn("old")
    try:
        1 / 0
    except ZeroDivisionError:
        logging.exception("caught")
    print("no line end", end="")
"""


def test_everything_said_is_in_the_log_with_its_level(python_pool: SandboxPool, native: bool) -> None:
    result = run(python_pool, LOG, native=native)
    lines = [(line.level, line.text) for line in result.log]
    assert lines[:6] == [
        ("log", "a 1"),
        ("log", "two"),
        ("log", "lines"),
        ("error", "e"),
        ("debug", "d"),
        ("info", "i 1"),
    ]
    assert lines[6] == ("warn", "w")
    assert lines[7][0] == "error"
    assert "cannot be shown: 'bad %d' ('x',)" in lines[7][1]
    assert lines[8] == ("warn", "index.py:10: UserWarning: old")
    assert lines[9][1].startswith(
        'caught\nTraceback (most recent call last):\n  File "index.py", line 12, in handler\n    1 / 0'
    )
    assert lines[10] == ("log", "no line end")


def test_a_flood_of_lines_is_cut_in_the_middle(python_pool: SandboxPool) -> None:
    result = run(python_pool, "def handler(m, e):\n    for n in range(5000):\n        print(n)\n")
    assert (result.ok, len(result.log)) == (True, 1101)
    assert (result.log[0].text, result.log[999].text, result.log[-1].text) == ("0", "999", "4999")
    assert result.log[1000].text == "… 3900 more lines were left out here …"


def test_a_dry_load_that_never_ends_is_found(
    python_pool: SandboxPool, native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bots.sandbox.pool.CHECK_SECONDS", 1.5)
    source = "while True:\n    pass\n\ndef handler(medplum, event): ...\n"
    (problem,) = python_pool.check(replace(python_program(source), native=native))
    assert "time limit" in problem.text


@pytest.mark.parametrize(
    ("body", "failure", "text"),
    [
        ("while True: pass", "timeout", "time limit"),
        ("print('x'); bytearray(1 << 30)", "memory", "more memory"),
        ("return object()", "output", "it holds a value of type object"),
        ("return float('nan')", "output", "a number that is none"),
        ("a = []; a.append(a); return a", "output", "it contains itself"),
        ("return 'x' * (17 << 20)", "output", "at most 16777216 can be sent"),
        ("raise SystemExit(3)", "code", "called sys.exit()"),
        ("def f(): return f()\n    f()", "code", "RecursionError"),
        ("return medplum.get('fhir/R4/x')", "code", "Nothing is expected here"),
    ],
)
def test_failures_have_their_kind(
    python_pool: SandboxPool, native: bool, body: str, failure: str, text: str
) -> None:
    result = run(
        python_pool,
        f"def handler(medplum, event):\n    {body}\n",
        native=native,
        timeout=3 if failure == "timeout" else 60,
    )
    assert (result.ok, result.failure) == (False, failure), result
    assert text in str(result.error)


LEFT = """\
import asyncio
kept = {}
async def later(medplum):
    await asyncio.sleep(0.05)
    await medplum.get("fhir/R4/forbidden")
async def handler(medplum, event):
    if event.input == "leave":
        kept["client"], kept["task"] = medplum, asyncio.create_task(later(medplum))
        return "left"
    await asyncio.sleep(0.2)
    try:
        await kept["client"].get("fhir/R4/forbidden")
    except Exception as error:
        return [kept["task"].cancelled(), str(error)]
"""


def test_what_a_call_left_running_does_nothing_in_the_next(python_pool: SandboxPool, native: bool) -> None:
    asked: list[HostRequest] = []

    def respond(request: HostRequest) -> HostResponse:
        asked.append(request)
        return answer(request)

    bot = replace(python_program(LEFT), native=native)
    assert python_pool.run(invocation(bot, "leave"), respond).value == "left"
    cancelled, error = python_pool.run(invocation(bot, "look"), respond).value
    assert cancelled is True
    assert "has ended" in error
    assert asked == []


def test_processes_from_one_snapshot_differ_in_chance(python_pool: SandboxPool) -> None:
    source = "import random, secrets, uuid\ndef handler(m, e): return [random.random(), secrets.token_hex(8), str(uuid.uuid4())]\n"
    first, second = run(python_pool, source).value, run(python_pool, source).value
    assert not set(first) & set(second)


def test_a_plain_handler_may_run_an_event_loop(python_pool: SandboxPool, native: bool) -> None:
    source = "import asyncio\nasync def work():\n    await asyncio.sleep(0.01)\n    return 5\ndef handler(m, e): return asyncio.run(work())\n"
    assert run(python_pool, source, native=native).value == 5


def test_only_who_uses_python_pays_for_it(small_pool: SandboxPool) -> None:
    assert small_pool.run(invocation(program("export const handler = () => 1")), no_answer).value == 1
    until(lambda: small_pool.state().spares == 1)
    assert run(small_pool, "def handler(m, e): return 1\n").value == 1
    until(lambda: small_pool.state().spares == 2)


def test_one_python_bot_does_not_take_all_places(
    small_pool: SandboxPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MOST, "python", 2)
    gate, bot = threading.Event(), python_program(ASKS)

    def respond(request: HostRequest) -> HostResponse:
        gate.wait()
        return answer(request)

    with ThreadPoolExecutor(4) as threads:
        calls = [threads.submit(small_pool.run, invocation(bot), respond) for _ in range(4)]
        until(lambda: (small_pool.state().processes, small_pool.state().waiting) == (2, 2))
        gate.set()
        assert [each.result().value for each in calls] == [7] * 4


def test_a_python_bot_that_executes_itself_does_not_wait_for_itself(
    small_pool: SandboxPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MOST, "python", 1)
    bot = python_program(ASKS)

    def deeper(depth: int) -> Any:
        def respond(request: HostRequest) -> HostResponse:
            if depth:
                assert small_pool.run(invocation(bot), deeper(depth - 1)).value == 7
            return answer(request)

        return respond

    assert small_pool.run(invocation(bot), deeper(3)).value == 7
    until(lambda: small_pool.state().processes <= 3)


TRUNCATE = """\
import os
def handler(medplum, event):
    try:
        os.truncate("/dev/null", 0)
    except OSError as error:
        return error.errno
"""


def test_no_file_is_cut_short_where_landlock_knows_nothing_of_that(python_pool: SandboxPool) -> None:
    """Landlock does since its third version only; the file is one it lets the process write."""
    assert run(python_pool, TRUNCATE, native=True).value == errno.EPERM
