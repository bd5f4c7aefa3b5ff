"""Searches that look at other resources: chains, ``_has``, composites, at two sizes (docs/benchmarks.md).

python -m tests.bench.search [observations]
"""

from __future__ import annotations

import os
import sys
import time
import uuid
from collections.abc import Callable
from typing import Any

from tests.bench.store import _fresh_database, measure

BATCH = 500


def _patient(number: int) -> dict[str, Any]:
    return {
        "resourceType": "Patient",
        "identifier": [{"system": "https://example.com/mrn", "value": f"MRN-{number:07}"}],
        "name": [{"family": f"Family{number % 1000}", "given": ["Jane"]}],
        "gender": ("female", "male")[number % 2],
        "birthDate": f"{1930 + number % 90}-01-01",
        "address": [{"city": f"City{number % 20}"}],
    }


def _observation(number: int, patient: str) -> dict[str, Any]:
    """One in 10,000 has the code ``rare``, half have ``bp`` with two components."""
    code = "rare" if number % 10_000 == 7 else "bp" if number % 2 else f"c{number % 50}"
    made: dict[str, Any] = {
        "resourceType": "Observation",
        "status": "final",
        "code": {"coding": [{"system": "http://loinc.org", "code": code}]},
        "subject": {"reference": f"Patient/{patient}"},
        "effectiveDateTime": f"2024-{1 + number % 12:02}-{1 + number % 28:02}",
    }
    if code == "bp":
        made["component"] = [
            {
                "code": {"coding": [{"system": "http://loinc.org", "code": part}]},
                "valueQuantity": {"value": base + number * 7 % 80, "unit": "mmHg"},
            }
            for part, base in (("sys", 90), ("dia", 50))
        ]
    else:
        made["valueQuantity"] = {"value": number % 200, "unit": "kg"}
    return made


SEARCHES = [
    ("Observation", "code=c4&_count=20", "plain: code=c4"),
    ("Observation", "patient.identifier=https://example.com/mrn|MRN-0000042", "chain to 1 Patient"),
    ("Observation", "subject:Patient.family=Family7", "chain to 1 in 9 Patients"),
    ("Observation", "patient.address-city=City3", "chain to 1 in 20 Patients"),
    ("Observation", "patient.gender=female", "chain to every second Patient"),
    ("Observation", "patient.gender=female&code=c4", "the same, with a code"),
    ("Observation", "patient.gender=female&code=rare", "the same, with a rare code"),
    ("Observation", "patient.gender=female&patient.family=Family7", "two chains, one of them rare"),
    ("Observation", "patient.gender=other", "chain to nobody"),
    ("Patient", "_has:Observation:patient:code=rare", "_has with a rare code"),
    ("Patient", "_has:Observation:patient:code=bp", "_has with the code of every second"),
    ("Patient", "_has:Observation:patient:code=c4&gender=female", "_has with a code of 1 in 50, gender"),
    ("Patient", "_has:Observation:patient:code=bp&family=Family7", "_has common, family rare"),
    ("Patient", "_has:Observation:patient:code=none", "_has with a code nobody has"),
    ("Patient", '_filter=family eq "Family7" or (gender eq male and birthdate ge 2019)', "_filter with or"),
    ("Observation", "component-code-value-quantity=sys$gt168", "composite: 1 in 80"),
    ("Observation", "component-code-value-quantity=sys$gt100", "composite: common"),
    ("Observation", "combo-code-value-quantity=sys$gt168&patient.family=Family7", "combo and a chain"),
    ("Observation", "patient.family=Family7&_total=accurate", "chain with _total=accurate"),
    ("Patient", "_has:Observation:patient:code=c4&_total=accurate", "_has with _total=accurate"),
]


def main() -> None:
    """Print one row per search."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "console.settings")
    import django

    django.setup()
    from fhirstore import database, tables
    from fhirstore.identity import system_identity
    from fhirstore.reindex import reindex
    from fhirstore.repository import Repository

    observations = int(sys.argv[1]) if len(sys.argv) > 1 else 180_000
    patients = observations // 9

    with _fresh_database():
        project = str(uuid.uuid4())
        repository = Repository(system_identity(project))
        ids: list[str] = []

        def load(count: int, make: Callable[[int], dict[str, Any]]) -> None:
            for start in range(0, count, BATCH):
                with repository.transaction():
                    made = [repository.create(make(n)).id for n in range(start, min(start + BATCH, count))]
                if make is _patient:
                    ids.extend(made)

        start = time.perf_counter()
        load(patients, _patient)
        load(observations, lambda number: _observation(number, ids[number * 31 % patients]))
        with database.connection() as connection:
            connection.execute("DELETE FROM change")
            connection.execute("VACUUM ANALYZE")
        tables.forget()
        seconds = time.perf_counter() - start
        print(f"{patients:,} Patients and {observations:,} Observations in {seconds:.0f} s")
        for type_, query, name in SEARCHES:
            request = repository.parse(type_, query)
            result = repository.search(request)
            measure(
                f"{name} ({len(result.entries)})", lambda _, request=request: repository.search(request), 40
            )  # type: ignore[misc]  # a default binds it
        start = time.perf_counter()
        seen = sum(step.seen for step in reindex(project, ["Patient"]))
        print(f"reindex: {seen / (time.perf_counter() - start):,.0f} Patients/s, all unchanged")


if __name__ == "__main__":
    main()
