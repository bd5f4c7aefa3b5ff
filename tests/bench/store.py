"""Measure the store without HTTP: ``python -m tests.bench.store [patients]``.

Works in a test database of its own beside that of DATABASE_URL, with 10,000 patients, of whom one in a hundred is called
Smith. Prints the median, the 95th and 99th percentile of each kind of work, what it comes to per second, and the
floor: one bare ``SELECT 1`` through the same pool.
"""

from __future__ import annotations

import os
import platform
import statistics
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

PATIENTS = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000

_FAMILIES = (
    "Garcia",
    "Jones",
    "Müller",
    "Nguyen",
    "Rossi",
    "Okafor",
    "Ivanova",
    "Tanaka",
    "Haddad",
    "Dubois",
)
_GIVEN = ("Jane", "Ali", "Mei", "Otto", "Zoë", "Ravi", "Ines", "Noah", "Amara", "Lea")


def patient(number: int) -> dict[str, Any]:
    """A patient of usual size; one in a hundred is called Smith."""
    smith = number % 100 == 0
    return {
        "resourceType": "Patient",
        "identifier": [{"system": "https://example.com/mrn", "value": f"MRN-{number:07}"}],
        "active": True,
        "name": [
            {
                "use": "official",
                "family": "Smith" if smith else f"{_FAMILIES[number % 10]}{number % 377}",
                "given": [_GIVEN[number % 7], _GIVEN[number % 10]],
            }
        ],
        "telecom": [
            {"system": "phone", "value": f"+41 44 {number:07}"},
            {"system": "email", "value": f"patient{number}@example.com"},
        ],
        "gender": ("female", "male", "other", "unknown")[number % 4],
        "birthDate": f"{1930 + number % 90}-{1 + number % 12:02}-{1 + number % 28:02}",
        "address": [
            {"line": [f"{number % 200} Main Street"], "city": "Zürich", "postalCode": "8001", "country": "CH"}
        ],
    }


@contextmanager
def _fresh_database() -> Iterator[None]:
    """A migrated database that goes afterwards, whoever is still connected."""
    import psycopg
    from django.db import connection
    from psycopg import sql

    from fhirstore import database

    name = connection.creation.create_test_db(verbosity=0, autoclobber=True, serialize=False)
    try:
        yield
    finally:
        database.close()
        connection.close()
        parameters = database.connection_parameters() | {"dbname": "postgres"}
        with psycopg.connect(**parameters) as server:
            server.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def measure(name: str, work: Callable[[int], object], times: int) -> None:
    """Run ``work`` with ascending numbers and print a row."""
    taken = []
    for number in range(times):
        start = time.perf_counter()
        work(number)
        taken.append((time.perf_counter() - start) * 1000)
    cuts = statistics.quantiles(taken, n=100)
    print(
        f"{name:44} {1000 / statistics.fmean(taken):8.0f} /s"
        f"   p50 {cuts[49]:7.3f}   p95 {cuts[94]:7.3f}   p99 {cuts[98]:7.3f} ms"
    )


def main() -> None:
    """Print one row per kind of work."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "console.settings")
    import django

    django.setup()
    from fhirstore import database
    from fhirstore.identity import system_identity
    from fhirstore.repository import Repository
    from fhirstore.search.parse import parse

    with _fresh_database():
        repository = Repository(system_identity(str(uuid.uuid4())))
        with database.connection() as connection:
            version = connection.execute("SHOW server_version").fetchone()
        print(
            f"{platform.platform()}, {os.cpu_count()} CPUs, Python {platform.python_version()}, PostgreSQL {version}"
        )

        def bare(_: int) -> None:
            with database.connection() as connection:
                connection.execute("SELECT 1", prepare=True).fetchone()

        measure("floor: SELECT 1 through the pool", bare, 3000)
        ids: list[str] = []
        measure("create Patient", lambda n: ids.append(repository.create(patient(n)).id), PATIENTS)

        def search(query: str, expected: int | None = None) -> Callable[[int], object]:
            def run(_: int) -> None:
                found = repository.search(parse("Patient", query)).entries
                assert expected is None or len(found) == expected, (query, len(found))

            return run

        searches = [
            (search("family=Smith&_count=20", 20), f"family=Smith&_count=20 (20 of {PATIENTS // 100:,})"),
            (search("identifier=https://example.com/mrn|MRN-0004711", 1), "identifier=system|value (1)"),
            (search("gender=female&_sort=-_lastUpdated", 20), "gender=female&_sort=-_lastUpdated (1 in 4)"),
            (search("gender=female&birthdate=ge2015", 20), "gender=female&birthdate=ge2015"),
            (search("gender=female&_sort=birthdate", 20), "gender=female&_sort=birthdate"),
            (search("name:contains=mit", 20), "name:contains=mit"),
            (search("family=Smith&_total=accurate", 20), "family=Smith&_total=accurate"),
        ]
        for state in ("before ANALYZE", "after ANALYZE"):
            print(f"--- {state}")
            measure("read Patient", lambda n: repository.read("Patient", ids[n * 7 % PATIENTS]), 5000)
            for work, name in searches:
                measure(name, work, 300)
            with database.connection() as connection:
                connection.execute("VACUUM ANALYZE")
        print("--- updates")
        measure(
            "update Patient (one element)",
            lambda n: repository.update(
                {**patient(n), "id": ids[n], "active": False, "meta": {"tag": [{"code": str(n)}]}}
            ),
            1000,
        )
        measure(
            "patch Patient",
            lambda n: repository.patch(
                "Patient", ids[n], [{"op": "replace", "path": "/birthDate", "value": "2001-01-01"}]
            ),
            1000,
        )
        measure("delete Patient", lambda n: repository.delete("Patient", ids[n]), 1000)
        with repository.transaction():
            measure("create Patient inside one transaction", lambda n: repository.create(patient(n)), 1000)


if __name__ == "__main__":
    main()
