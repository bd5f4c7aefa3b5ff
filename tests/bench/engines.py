"""`python -m tests.bench.engines`: how fast a resource is validated and indexed, a query parsed and matched.

One thread, no database; the median of several rounds.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "console.settings")

from fhirstore.definitions import registry
from fhirstore.search.index import index
from fhirstore.search.match import match
from fhirstore.search.parse import parse
from fhirstore.validation import strip_nulls, validate
from tests.engines.samples import OBSERVATION, PATIENT

ROUNDS = 7
SECONDS_PER_ROUND = 0.1


def measure(work: Callable[[], Any]) -> float:
    """Return the median seconds one call takes."""
    work()
    started = time.perf_counter()
    work()
    calls = max(1, int(SECONDS_PER_ROUND / max(time.perf_counter() - started, 1e-9)))
    rounds = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        for _ in range(calls):
            work()
        rounds.append((time.perf_counter() - started) / calls)
    return statistics.median(rounds)


def main() -> None:
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    folder = registry.default_folder()
    started = time.perf_counter()
    registry.load(folder)
    print(f"{'load the definitions, once':<48}{(time.perf_counter() - started) * 1e3:7.1f} ms")
    query = "family=Smith&_count=20&_sort=-_lastUpdated"
    request = parse("Patient", "gender=male&name=jose&birthdate=ge1970")
    values = index(PATIENT)
    for name, work in {
        "validate a Patient": lambda: validate(PATIENT),
        "validate an Observation": lambda: validate(OBSERVATION),
        "strip nulls of a Patient (none there)": lambda: strip_nulls(PATIENT),
        "index a Patient": lambda: index(PATIENT),
        "index an Observation": lambda: index(OBSERVATION),
        f"parse {query}": lambda: parse("Patient", query),
        "match three clauses": lambda: match(request, values),
    }.items():
        seconds = measure(work)
        print(f"{name:<48}{seconds * 1e6:7.1f} µs{1 / seconds:12,.0f} /s")


if __name__ == "__main__":
    main()
