"""Resources created together are stored as each by itself would be."""

from __future__ import annotations

import uuid
from typing import Any

import orjson
import pytest

from fhirstore import tables
from fhirstore.database import connection, transaction
from fhirstore.errors import FhirError
from fhirstore.repository import Repository
from fhirstore.search.index import index
from fhirstore.search.terms import rows
from tests.engines.samples import OBSERVATION, PATIENT
from tests.fhirstore.conftest import patient

SAMPLES: list[dict[str, Any]] = [
    PATIENT,
    OBSERVATION,
    patient('Quo"ted \\ {braces}, and commas', birthDate="1980"),
    patient("x" * 300),
    {
        "resourceType": "RiskAssessment",
        "status": "final",
        "subject": {"reference": f"Patient/{uuid.uuid4()}"},
    },
    {"resourceType": "Basic", "code": {"text": "NULL"}},
    {"resourceType": "Organization", "name": "nothing else"},
]

ROW = """
SELECT r.type, r.deleted, r.idx, r.ref_pid, r.ref_id, r.sort_pid, r.sort_value, v.interaction, r.version_id = v.version_id,
    (SELECT array_agg((s.param, s.whole, s.value, s.tail)::text ORDER BY s::text) FROM value_string s WHERE s.rid = r.rid),
    (SELECT array_agg((s.param, s.low, s.high)::text ORDER BY s::text) FROM value_date s WHERE s.rid = r.rid),
    (SELECT array_agg((s.param, s.low, s.high, s.system, s.code, s.unit)::text ORDER BY s::text)
        FROM value_number s WHERE s.rid = r.rid),
    (SELECT array_agg((c.interaction, c.type, c.author, c.previous_version_id)::text) FROM change c WHERE c.rid = r.rid)
FROM resource r JOIN version v ON v.rid = r.rid WHERE r.id = %s
"""


def rows_of(id: str) -> list[Any]:
    """All that is stored of a resource but what names it and its time (both differ from write to write)."""
    with connection() as session:
        (row,) = session.execute(ROW, [id]).fetchall()
    return list(row)


def test_the_rows_are_the_same(database: None, project: str) -> None:
    origin = tables.Origin("Practitioner/x", None, 2)
    made = []
    for resource in SAMPLES:
        type = resource["resourceType"]
        values = rows(tables.hasher(), project, type, index(resource))
        moment = tables.Moment.now()
        one, other = (
            tables.Stored(
                type,
                tables.new_id(),
                moment.version_id,
                moment.last_updated,
                orjson.dumps(resource),
                interaction="create",
            )
            for _ in range(2)
        )
        tables.write(project, one, values, origin)
        made.append((one, other, values))
    with transaction(), tables.creates_together():
        for _, other, values in made:
            tables.write(project, other, values, origin)
    for one, other, _ in made:
        assert rows_of(one.id) == rows_of(other.id)
        for each in (one, other):
            found = tables.find(project, each.type, each.id)
            assert found is not None
            assert found.stored == each


def test_what_was_created_is_seen_by_whatever_follows(repository: Repository) -> None:
    with repository.bulk():
        family = uuid.uuid4().hex
        made = [repository.create(patient(family)) for _ in range(3)]
        assert repository.read("Patient", made[0].id) == made[0]
        assert len(repository.search_all("Patient", f"family={family}")) == 3
        last = repository.create(patient(family))
        repository.update({**made[1].resource, "gender": "male"})
        repository.delete("Patient", made[2].id)
        assert len(repository.search_all("Patient", f"family={family}")) == 3
    assert repository.read("Patient", last.id) == last
    assert repository.read("Patient", made[1].id).resource["gender"] == "male"


def test_nothing_is_left_of_what_failed(repository: Repository) -> None:
    taken = repository.create(patient())
    made: list[str] = []

    def create(*resources: dict[str, Any], id: str | None = None) -> None:
        with repository.bulk():
            made.extend(repository.create(each).id for each in resources)
            if id is not None:
                repository.create(patient(), id=id)

    with pytest.raises(FhirError):
        create(patient(), patient(), patient(nmae=[]))
    with pytest.raises(FhirError) as refused:
        create(patient(), id=taken.id)
    assert refused.value.status == 409
    assert len(made) == 3
    for id in made:
        with pytest.raises(FhirError):
            repository.read("Patient", id)
    assert repository.read("Patient", taken.id) == taken


def test_changes_follow_in_order(repository: Repository) -> None:
    with repository.bulk():
        made = [repository.create(patient()) for _ in range(250)]
    with connection() as session:
        found = session.execute(
            "SELECT resource_id::text FROM change WHERE project = %s ORDER BY id",
            [repository.identity.project],
        ).fetchall()
    assert [id for (id,) in found] == [each.id for each in made]
