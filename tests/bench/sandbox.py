"""Times of the sandbox, with the ratio to the floor measured when it was designed: ``python -m tests.bench.sandbox``.

Each row is the median of all rounds with p50, p95 and p99 of the single calls; the floor is a prototype with a stub
backend on a 2-core machine (the numbers this design started from). Ratios below 1 are faster than that.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "console.settings")
django.setup()

from django.conf import settings  # noqa: E402 - after setup

from bots.sandbox.api import (  # noqa: E402
    HostRequest,
    HostResponse,
    Invocation,
    Program,
    Result,
    SandboxPool,
    Transpiled,
    confinement_report,
    deno_path,
    transpile,
)
from bots.sandbox.process import Launcher  # noqa: E402
from console.assets import build_assets, esbuild  # noqa: E402

NOOP = "export async function handler(medplum, event) { return event.input }"
READ_AND_CREATE = """
export async function handler(medplum, event) {
  console.log("reading", event.input);
  const patient = await medplum.readResource("Patient", "123");
  const task = await medplum.createResource({ resourceType: "Task", status: "requested", intent: "order", for: { reference: "Patient/123" } });
  console.log("created", task.id);
  return patient.id;
}"""
PY_NOOP = "async def handler(medplum, event):\n    return event.input\n"
PY_READ_AND_CREATE = """
async def handler(medplum, event):
    print("reading", event.input)
    patient = await medplum.read_resource("Patient", "123")
    task = {"resourceType": "Task", "status": "requested", "intent": "order", "for": {"reference": "Patient/123"}}
    print("created", (await medplum.create_resource(task))["id"])
    return patient["id"]
"""
COMMONJS = "exports.handler = async (medplum, event) => event.input"
PATIENT = b'{"resourceType":"Patient","id":"123","name":[{"family":"Smith","given":["Anna"]}]}'

Measured = tuple[str, float | None, list[float]]
"""A row: what, the floor in ms (None if there is none), the single times in ms."""


def respond(request: HostRequest) -> HostResponse:
    """The stub backend."""
    return HostResponse(
        200 if request.method == "GET" else 201, {"content-type": "application/fhir+json"}, PATIENT
    )


def program(name: str, source: str, filename: str = "index.ts") -> Program:
    made = transpile(source, filename, esbuild())
    assert isinstance(made, Transpiled)
    return Program((name,), made.code, filename, "javascript", made.module)


def python_program(name: str, source: str, native: bool = False) -> Program:
    return Program((name, str(native)), source, "index.py", "python", native=native)


def run(pool: SandboxPool, of: Program, input: Any = "x") -> Result:
    result = pool.run(Invocation(of, {"input": input}, "http://localhost:8000/", 30.0), respond)
    assert result.ok, result
    return result


def times(count: int, work: Callable[[int], object]) -> list[float]:
    """Milliseconds of each of `count` runs."""
    found = []
    for number in range(count):
        start = time.perf_counter()
        work(number)
        found.append((time.perf_counter() - start) * 1000)
    return found


def spawn(launcher: Launcher, count: int) -> Measured:
    def once(_: int) -> None:
        process = launcher.start(128)
        process.wake()
        started.append(process)

    started: list[Any] = []
    row = times(count, once)
    for process in started:
        process.close()
    return "spawn to ready, all layers", 72.0, row


def first_calls(
    pool: SandboxPool, what: str, floor: float, source: str, filename: str, count: int
) -> Measured:
    programs = [program(f"first-{filename}-{number}", source, filename) for number in range(count)]
    found = []
    for of in programs:
        while pool.state().spares < 2:
            time.sleep(0.02)
        time.sleep(0.15)  # the spare has loaded its runtime, and the next one as well
        found += times(1, lambda _, of=of: run(pool, of))
    return what, floor, found


def warm_calls(
    pool: SandboxPool, what: str, floor: float, source: str, count: int, of: Program | None = None
) -> Measured:
    of = of or program(what, source)
    for _ in range(200):
        run(pool, of)
    return what, floor, times(count, lambda _: run(pool, of))


def python_rows(runtime: Path, starts: int, calls: int) -> list[Measured]:
    """The rows of Python, in Pyodide and in CPython."""
    python = Path(settings.ASSETS_DIR) / "python"
    rows: list[Measured] = []
    with SandboxPool(size=64, spare=1, deno=deno_path(), runtime=runtime, python=python) as pool:
        for native, name, first, noop, work in (
            (False, "Pyodide", 26.0, 0.31, 0.95),
            (True, "CPython", None, 0.08, 0.35),
        ):
            run(pool, python_program("spare", PY_NOOP, native))
            found = []
            for number in range(starts):
                time.sleep(3.0)  # the spare has started, also on a machine that has other work
                of = python_program(f"first-{number}", PY_NOOP, native)
                found += times(1, lambda _, of=of: run(pool, of))
            rows.append((f"{name}: pre-warmed first call", first, found))
            for what, floor, source in (
                ("no-op", noop, PY_NOOP),
                ("read + create + two lines", work, PY_READ_AND_CREATE),
            ):
                of = python_program(what, source, native)
                rows.append(warm_calls(pool, f"{name}: warm call, {what}", floor, source, calls, of))
    return rows


def in_turn(runtime: Path, bots: int, size: int, calls: int, floor: float) -> tuple[str, float, float]:
    """Calls per second of many bots, one after the other."""
    with SandboxPool(size=size, spare=2, deno=deno_path(), runtime=runtime) as pool:
        programs = [program(f"turn-{number}", NOOP) for number in range(bots)]
        if size >= bots:
            for of in programs:
                run(pool, of)
        start = time.perf_counter()
        for number in range(calls):
            run(pool, programs[number % bots])
        rate = calls / (time.perf_counter() - start)
    return f"{bots} bots in turn, pool of {size}", floor, rate


def memory(runtime: Path, count: int = 16) -> list[float]:
    """Proportional memory (PSS) in MB of each of many warm processes."""
    if platform.system() != "Linux":
        return []
    with SandboxPool(size=count, spare=0, deno=deno_path(), runtime=runtime) as pool:
        source = "export const handler = () => process.pid"
        pids = [run(pool, program(f"memory-{number}", source)).value for number in range(count)]
        found = []
        for pid in pids:
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
            found.append(int(text.partition("\nPss:")[2].split()[0]) / 1024)
    return found


def print_times(rows: list[Measured]) -> None:
    print(f"{'ms':42} {'p50':>8} {'p95':>8} {'p99':>8} {'floor':>8} {'ratio':>6}")
    for what, floor, found in rows:
        cuts = statistics.quantiles(found, n=100)
        median = statistics.median(found)
        ratio = f"{median / floor:6.2f}" if floor else ""
        print(f"{what:42} {median:8.3f} {cuts[94]:8.3f} {cuts[98]:8.3f} {floor or '':>8} {ratio}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=2000, help="number of warm calls")
    parser.add_argument("--starts", type=int, default=15, help="number of processes started")
    options = parser.parse_args()
    build_assets()
    runtime = Path(settings.ASSETS_DIR) / "runtime"
    deno = subprocess.run(
        [str(deno_path()), "--version"], capture_output=True, text=True, check=True
    ).stdout.split()[1]
    load = os.getloadavg()[0]
    print(
        f"{platform.platform()}, {os.cpu_count()} cores, load {load:.1f}, Python {platform.python_version()}, Deno {deno}"
    )
    rows = [spawn(Launcher(deno_path(), runtime), options.starts)]
    with SandboxPool(size=max(options.starts * 2, 8), spare=2, deno=deno_path(), runtime=runtime) as pool:
        print(
            "layers:",
            ", ".join(layer.name if layer.active else f"NOT {layer.name}" for layer in confinement_report()),
        )
        rows += [
            first_calls(pool, "pre-warmed first call, TypeScript", 5.5, NOOP, "index.ts", options.starts),
            first_calls(pool, "pre-warmed first call, CommonJS", 4.0, COMMONJS, "index.js", options.starts),
            warm_calls(pool, "warm call, no-op", 0.165, NOOP, options.calls),
            warm_calls(
                pool, "warm call, read + create + two log lines", 0.56, READ_AND_CREATE, options.calls
            ),
        ]
    rows += python_rows(runtime, options.starts, options.calls)
    print_times(rows)
    for what, floor, rate in (
        in_turn(runtime, 50, 54, 2000, 528.0),
        in_turn(runtime, 50, 16, 100, 22.0),
    ):
        print(f"{what:42} {rate:8.0f} calls/s, floor {floor:.0f}, ratio {floor / rate:.2f}")
    pss = memory(runtime)
    if pss:
        print(
            f"memory of each of {len(pss)} warm processes (PSS)  {statistics.median(pss):5.1f} MB, floor 17.5, ratio {statistics.median(pss) / 17.5:.2f}"
        )


if __name__ == "__main__":
    main()
