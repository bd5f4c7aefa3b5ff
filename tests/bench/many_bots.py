"""Many Bots on one machine with a pool that has room for few of them: ``python -m tests.bench.many_bots``.

Every Bot is called once (all cold), then some far more often than others (Zipf, as projects do), from several threads at the same
time. Printed are calls per second, percentiles, how many calls found a warm process, and what all processes hold together.
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import random
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "console.settings")
django.setup()

from django.conf import settings  # noqa: E402 - after setup

from bots.sandbox.api import HostRequest, HostResponse, Invocation, Program, SandboxPool, deno_path  # noqa: E402
from console.assets import build_assets  # noqa: E402

SOURCE = """
const { createReference } = require("@medplum/core");
exports.handler = async (medplum, event) => [%d, createReference({ resourceType: "Patient", id: event.input }).reference];
"""


def respond(request: HostRequest) -> HostResponse:
    """Nothing is asked here."""
    return HostResponse(error="nothing is expected")


def call(pool: SandboxPool, number: int) -> tuple[float, bool]:
    """Milliseconds of a call of Bot ``number``, and whether its process was warm."""
    program = Program((f"bot-{number}",), SOURCE % number, "index.js", "javascript", "commonjs")
    started = time.perf_counter()
    result = pool.run(Invocation(program, {"input": str(number)}, "http://localhost:8000/", 60.0), respond)
    assert result.value == [number, f"Patient/{number}"], result
    return (time.perf_counter() - started) * 1000, result.warm


def measure(what: str, pool: SandboxPool, numbers: Sequence[int], threads: int) -> None:
    """Call these Bots and print how it went."""
    started = time.perf_counter()
    with ThreadPoolExecutor(threads) as executor:
        found = list(executor.map(call, itertools.repeat(pool), numbers))
    seconds = time.perf_counter() - started
    cuts = statistics.quantiles([ms for ms, _ in found], n=100)
    warm = sum(is_warm for _, is_warm in found) / len(found)
    print(
        f"{what:32} {len(found) / seconds:8.0f}/s  p50 {cuts[49]:7.2f}  p95 {cuts[94]:7.2f}  p99 {cuts[98]:7.2f} ms  warm {warm:4.0%}"
    )


def memory() -> tuple[int, float]:
    """Number and MB (PSS) of the processes this one has started."""
    total, count = 0, 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(path.read_text().rpartition(")")[2].split()[1]) == os.getpid():
                rollup = (path.parent / "smaps_rollup").read_text()
                total += int(rollup.partition("\nPss:")[2].split()[0])
                count += 1
        except OSError:
            continue  # it has ended meanwhile
    return count, total / 1024


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bots", type=int, default=1000)
    parser.add_argument("--size", type=int, default=64, help="places of the pool")
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--calls", type=int, default=5000)
    options = parser.parse_args()
    build_assets()
    print(
        f"{platform.platform()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; {options.bots} Bots, pool of {options.size}, {options.threads} threads"
    )
    chance = random.Random(1)
    weights = [1 / (rank + 1) for rank in range(options.bots)]
    with SandboxPool(
        size=options.size, spare=4, deno=deno_path(), runtime=Path(settings.ASSETS_DIR) / "runtime"
    ) as pool:
        measure("each Bot once", pool, range(options.bots), options.threads)
        measure(
            "some more often (Zipf)",
            pool,
            chance.choices(range(options.bots), weights, k=options.calls),
            options.threads,
        )
        state = pool.state()
        assert state.processes <= options.size
        if platform.system() == "Linux":
            count, megabytes = memory()
            print(
                f"{count} processes hold {megabytes:.0f} MB, {megabytes / count:.1f} MB each; {state.processes} with a Bot, {state.spares} ready"
            )


if __name__ == "__main__":
    main()
