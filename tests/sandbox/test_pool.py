"""Which process runs which call, and that no process is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from bots.sandbox.api import HostRequest, HostResponse, Program, Result, SandboxPool, deno_path
from tests.sandbox.conftest import invocation, no_answer, program

PID = "export const handler = () => process.pid"
MakePool = Callable[..., SandboxPool]


@pytest.fixture
def make_pool(runtime: Path, pool: SandboxPool) -> Iterator[MakePool]:
    """Make a pool; it is closed at the end of the test. The shared pool is at rest meanwhile."""
    pools: list[SandboxPool] = []
    until(lambda: pool.state().spares == 2)

    def make_pool(size: int = 4, spare: int = 0, runtime: Path = runtime) -> SandboxPool:
        pools.append(SandboxPool(size=size, spare=spare, deno=deno_path(), runtime=runtime))
        return pools[-1]

    yield make_pool
    for pool in pools:
        pool.close()


def call(pool: SandboxPool, bot: Program, input: Any = None, **more: Any) -> Result:
    return pool.run(invocation(bot, input, **more), no_answer)


def stat(path: Path) -> tuple[str, int]:
    """State and parent in a stat file of /proc (a bare machine has no ps); a process that has ended is "X"."""
    try:
        state, parent = path.read_text().rpartition(")")[2].split()[:2]
    except OSError:
        return "X", 0
    return state, int(parent)


def children(of: int | None = None) -> set[int]:
    """Process ids of the children of a process, this one by default."""
    parent = of or os.getpid()
    found = {int(path.parent.name): stat(path) for path in Path("/proc").glob("[0-9]*/stat")}
    return {pid for pid, (state, above) in found.items() if above == parent and state not in "ZX"}


def open_descriptors() -> int:
    return len(list(Path("/dev/fd").iterdir()))


def until(condition: Callable[[], object]) -> None:
    """Wait for something another thread or process does; the test's own time limit is the limit."""
    while not condition():
        time.sleep(0.005)


def alive(pid: int) -> bool:
    """Whether any thread of the process is left: only then its pipes are closed."""
    return any(stat(path)[0] not in "ZX" for path in Path(f"/proc/{pid}/task").glob("*/stat"))


def test_a_program_keeps_its_process(make_pool: MakePool) -> None:
    pool, bot = make_pool(), program(PID)
    first, second, third = (call(pool, bot) for _ in range(3))
    assert first.value == second.value == third.value
    assert [first.warm, second.warm, third.warm] == [False, True, True]


@pytest.mark.parametrize("changed", [0, 1, 2, 3])
def test_programs_that_differ_in_any_part_of_their_key_never_share_a_process(
    make_pool: MakePool, changed: int
) -> None:
    pool = make_pool()
    key = ["project", "bot", "deployment", "identity"]
    one = call(pool, program(PID, key=tuple(key)))
    key[changed] = "other"
    assert call(pool, program(PID, key=tuple(key))).value != one.value


def test_a_process_with_another_memory_limit_is_another_process(make_pool: MakePool) -> None:
    pool, bot = make_pool(), program(PID)
    assert call(pool, bot).value != call(pool, bot, memory_mb=256).value


def test_the_process_that_was_idle_longest_gives_way(make_pool: MakePool) -> None:
    pool = make_pool(size=2)
    a, b, c = (program(PID) for _ in range(3))
    for bot in (a, b, a, c):  # b is the oldest when c comes
        call(pool, bot)
    assert [call(pool, bot).warm for bot in (a, c, b)] == [True, True, False]
    state = pool.state()
    assert (state.size, state.processes, state.idle, state.waiting) == (2, 2, 2, 0)


def test_more_bots_than_places_all_get_their_turn(make_pool: MakePool) -> None:
    before = children()
    pool = make_pool(size=2, spare=1)
    bots = [program(f"export const handler = () => {n}") for n in range(12)]
    with ThreadPoolExecutor(6) as threads:
        assert [result.value for result in threads.map(lambda bot: call(pool, bot), bots)] == list(range(12))
    until(lambda: pool.state().spares == 1)
    until(lambda: len(children() - before) <= 3)


def test_calls_of_a_computing_bot_wait_for_its_process(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bots.sandbox.pool.PATIENCE", 60)
    source = "export const handler = () => { const end = Date.now() + 30; while (Date.now() < end); return process.pid }"
    pool, bot = make_pool(), program(source)
    with ThreadPoolExecutor(4) as threads:
        pids = {result.value for result in threads.map(lambda _: call(pool, bot), range(8))}
    assert len(pids) == 1


def test_a_call_that_has_waited_gets_a_process_of_its_own(make_pool: MakePool) -> None:
    pool = make_pool(size=2)
    bot = program(
        "export const handler = async (medplum, event) => { if (event.input === 'stay') await new Promise(() => {}); return 1 }"
    )
    with ThreadPoolExecutor(1) as other:
        staying = other.submit(pool.run, invocation(bot, "stay", timeout=100), no_answer)
        until(lambda: pool.state().processes == 1)
        assert call(pool, bot, "go").value == 1
        assert not staying.done()
        pool.close()


def test_calls_that_wait_for_the_host_run_side_by_side(make_pool: MakePool) -> None:
    together = threading.Barrier(3)

    def respond(request: HostRequest) -> HostResponse:
        together.wait()  # passes only when three calls are in their requests at once
        return HostResponse(200)

    pool = make_pool(size=3)
    bot = program(
        "export const handler = async () => { await fetch('https://example.com'); return process.pid }"
    )
    with ThreadPoolExecutor(3) as threads:
        results = list(threads.map(lambda _: pool.run(invocation(bot), respond), range(3)))
    assert len({result.value for result in results}) == 3


def test_calls_are_served_in_the_order_they_came(make_pool: MakePool) -> None:
    pool = make_pool(size=1)
    gate = threading.Event()
    order: list[int] = []

    def respond(request: HostRequest) -> HostResponse:
        gate.wait()
        return HostResponse(200)

    def numbered(number: int, bot: Program) -> None:
        call(pool, bot)
        order.append(number)

    first = program("export const handler = () => fetch('https://example.com').then(() => 1)")
    shared = program("export const handler = () => 1")
    with ThreadPoolExecutor(12) as threads:
        threads.submit(pool.run, invocation(first), respond)
        until(lambda: pool.state().processes == 1)
        for number in range(10):
            threads.submit(
                numbered, number, shared if number % 3 == 0 else program("export const handler = () => 1")
            )
            until(lambda number=number: pool.state().waiting == number + 1)  # type: ignore[misc]
        gate.set()
    # A call may overtake only where the process of its own program has just become free.
    assert [number for number in order if number % 3] == [1, 2, 4, 5, 7, 8]
    assert [number for number in order if number % 3 == 0] == [0, 3, 6, 9]
    assert order[0] == 0


def test_many_threads_get_their_own_results(make_pool: MakePool) -> None:
    pool = make_pool(size=3, spare=1)
    bots = [program(f"export const handler = async (m, e) => [{n}, e.input, (await fetch('https://x/' + e.input)).status]") for n in range(5)]  # fmt: skip

    def work(number: int) -> None:
        def respond(request: HostRequest) -> HostResponse:
            assert request.url == f"https://x/{number}"
            return HostResponse(200 + number % 3)

        bot = number % 5
        result = pool.run(invocation(bots[bot], number), respond)
        assert result.value == [bot, number, 200 + number % 3], result

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(50)))
    until(lambda: pool.state().idle == pool.state().processes <= 3)


def test_a_spare_that_died_is_replaced(make_pool: MakePool) -> None:
    before = children()
    pool = make_pool(spare=2)
    until(lambda: pool.state().spares == 2)
    spares = children() - before
    for pid in spares:
        os.kill(pid, signal.SIGKILL)
    until(lambda: not any(map(alive, spares)))
    assert call(pool, program("export const handler = () => 1")).value == 1
    until(lambda: pool.state().spares == 2)


def test_an_idle_process_that_died_is_replaced(make_pool: MakePool) -> None:
    pool, bot = make_pool(), program(PID)
    pid = call(pool, bot).value
    os.kill(pid, signal.SIGKILL)
    until(lambda: not alive(pid))
    again = call(pool, bot)
    assert (again.ok, again.warm) == (True, False)
    assert again.value != pid


def test_a_process_killed_during_a_call_is_a_crash(make_pool: MakePool) -> None:
    pool = make_pool()
    bot = program(
        "export const handler = async () => { console.log('x'); await fetch('https://x/' + process.pid) }"
    )

    def respond(request: HostRequest) -> HostResponse:
        os.kill(int(request.url.removeprefix("https://x/")), signal.SIGKILL)
        return HostResponse(200)

    result = pool.run(invocation(bot), respond)
    assert (result.failure, result.error) == (
        "crash",
        "The bot's process ended unexpectedly (signal SIGKILL).",
    )
    assert [line.text for line in result.log] == ["x"]
    assert call(pool, program("export const handler = () => 1")).ok


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux freezes and tells the state of a process")
def test_a_process_is_frozen_between_calls(make_pool: MakePool) -> None:
    pool, bot = make_pool(), program(PID)
    pid = call(pool, bot).value
    until(lambda: Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] == "T")


def test_a_closed_pool_leaves_nothing_behind(make_pool: MakePool) -> None:
    processes, threads, descriptors = children(), threading.active_count(), open_descriptors()
    pool = make_pool(size=2, spare=2)
    running = threading.Event()

    def respond(request: HostRequest) -> HostResponse:
        running.set()
        return HostResponse(200)

    endless = program(
        "export const handler = async () => { await fetch('https://x/'); await new Promise(() => {}) }"
    )
    until(lambda: pool.state().spares == 2)
    with ThreadPoolExecutor(4) as callers:
        calls: list[Future[Result]] = [
            callers.submit(pool.run, invocation(endless, timeout=100), respond) for _ in range(4)
        ]
        assert call(pool, program("export const handler = () => 1")).ok
        running.wait()
        until(lambda: pool.state().waiting >= 2)
        pool.close()
        failures = {future.result().failure for future in calls}
    assert failures == {"crash", "startup"}
    assert children() == processes
    assert threading.active_count() == threads
    assert open_descriptors() == descriptors
    assert call(pool, endless).error == "The sandbox is shut down."


HOST = """
import sys, threading
from pathlib import Path
from bots.sandbox.api import HostResponse, Invocation, Program, SandboxPool, deno_path
pool = SandboxPool(size=4, spare=2, deno=deno_path(), runtime=Path(sys.argv[1]))
def respond(request):
    print(request.url, flush=True)
    if request.url == "http://x/wait":
        threading.Event().wait()
    return HostResponse(200)
def start(name, rest):
    code = f"export const handler = async () => {{ await fetch('http://x/{name}'); {rest} }}"
    invocation = Invocation(Program((name,), code, "a.mjs"), {}, "http://x/", 60.0)
    threading.Thread(target=pool.run, args=(invocation, respond), daemon=True).start()
start("loop", "for (;;);")
start("sleep", "await new Promise(() => {})")
start("wait", "")
pool.run(Invocation(Program(("idle",), "export const handler = () => 1", "a.mjs"), {}, "http://x/", 60.0), respond)
print("ready", flush=True)
threading.Event().wait()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends the processes of a killed host")
def test_a_killed_host_takes_its_processes_with_it(runtime: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOST, str(runtime)], stdout=subprocess.PIPE, text=True
    ) as host:
        assert host.stdout
        lines = {host.stdout.readline().strip() for _ in range(4)}
        assert lines == {"ready", "http://x/loop", "http://x/sleep", "http://x/wait"}
        processes = children(host.pid)
        assert len(processes) >= 4
        host.kill()
    until(lambda: not any(map(alive, processes)))


def test_a_runtime_that_does_not_start_is_told(
    make_pool: MakePool, tmp_path: Path, open_folder: Path
) -> None:
    (tmp_path / "main.mjs").write_text("throw new Error('this runtime is broken')")
    (tmp_path / "imports.json").write_text("{}")
    (tmp_path / "cache").mkdir()
    with pytest.raises(OSError, match=r"The sandbox runtime does not start: (.|\n)*this runtime is broken"):
        make_pool(runtime=tmp_path)


def test_a_runtime_that_was_not_built_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"manage\.py assets"):
        SandboxPool(size=1, spare=0, deno=deno_path(), runtime=tmp_path)


def test_a_pool_is_not_used_after_a_fork(make_pool: MakePool) -> None:
    pool = make_pool()
    child = os.fork()
    if child == 0:
        try:
            call(pool, program(PID))
        except RuntimeError:
            os._exit(42)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 42
