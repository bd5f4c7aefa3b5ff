"""A project's own SearchParameters: checked when written, searched by, and brought to what is stored by a reindex."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from fhirstore import database, tables
from fhirstore.errors import FhirError
from fhirstore.reindex import reindex
from fhirstore.repository import Repository

EYES = "http://example.com/eyes"
CARER = "http://example.com/carer"


def parameter(code: str = "eyes", **elements: Any) -> dict[str, Any]:
    """A SearchParameter for an extension of Patient."""
    return {
        "resourceType": "SearchParameter",
        "url": f"http://example.com/SearchParameter/{code}",
        "name": code,
        "status": "active",
        "description": "x",
        "code": code,
        "base": ["Patient"],
        "type": "token",
        "expression": f"Patient.extension('{EYES}').value.ofType(code)",
        **elements,
    }


def patient(eyes: str, **elements: Any) -> dict[str, Any]:
    return {"resourceType": "Patient", "extension": [{"url": EYES, "valueCode": eyes}], **elements}


def search(repository: Repository, query: str, type: str = "Patient") -> list[str]:
    return sorted(stored.id for stored in repository.search_all(type, query))


def done(project: str, *types: str) -> tuple[int, int]:
    steps = list(reindex(project, types or None))
    return sum(step.seen for step in steps), sum(step.changed for step in steps)


def test_what_is_written_is_found_by_an_own_parameter(repository: Repository, stranger: Repository) -> None:
    repository.create(parameter())
    blue, brown = repository.create(patient("blue")), repository.create(patient("brown"))
    assert search(repository, "eyes=blue") == [blue.id]
    assert search(repository, "eyes:not=blue") == [brown.id]
    assert search(repository, "eyes:missing=false&_sort=-eyes") == sorted([blue.id, brown.id])
    assert search(repository, "_filter=eyes eq brown") == [brown.id]
    assert repository.matcher(blue.resource)(repository.parse("Patient", "eyes=blue"))
    repository.update({**blue.resource, "extension": [{"url": EYES, "valueCode": "green"}]})
    assert (search(repository, "eyes=blue"), search(repository, "eyes=green")) == ([], [blue.id])
    with pytest.raises(FhirError, match="Unknown search parameter: eyes"):
        stranger.search_all("Patient", "eyes=blue")


@pytest.mark.parametrize(
    ("kind", "expression", "value", "query"),
    [
        ("string", "value as string", {"valueString": "Dark Blue"}, "own=dark"),
        ("string", "value.ofType(string)", {"valueString": "Dark Blue"}, "own:contains=BLUE"),
        ("date", "value as date", {"valueDate": "2020-02-03"}, "own=sa2020-01"),
        ("number", "value as integer", {"valueInteger": 7}, "own=gt6"),
        ("quantity", "value as Quantity", {"valueQuantity": {"value": 7, "unit": "mm"}}, "own=7||mm"),
        ("uri", "value as uri", {"valueUri": "http://example.com/x"}, "own=http://example.com/x"),
        ("token", "value", {"valueCoding": {"system": "http://s", "code": "c"}}, "own=http://s|c"),
    ],
)
def test_every_type_of_parameter(
    repository: Repository, kind: str, expression: str, value: dict[str, Any], query: str
) -> None:
    repository.create(parameter("own", type=kind, expression=f"Patient.extension('{EYES}').{expression}"))
    found = repository.create({"resourceType": "Patient", "extension": [{"url": EYES, **value}]})
    repository.create({"resourceType": "Patient"})
    assert search(repository, query) == [found.id]


def test_an_own_reference_can_be_chained_and_included(repository: Repository) -> None:
    repository.create(
        parameter(
            "carer", type="reference", target=["Practitioner"],
            expression=f"Patient.extension('{CARER}').value.ofType(Reference)",
        )
    )  # fmt: skip
    doctor = repository.create({"resourceType": "Practitioner", "name": [{"family": "Who"}]})
    carer = {"url": CARER, "valueReference": {"reference": f"Practitioner/{doctor.id}"}}
    cared = repository.create({"resourceType": "Patient", "extension": [carer]})
    repository.create({"resourceType": "Patient"})
    assert search(repository, "carer.name=who") == [cared.id]
    assert search(repository, "_has:Patient:carer:_id=" + cared.id, "Practitioner") == [doctor.id]
    result = repository.search(repository.parse("Patient", "carer=" + doctor.id + "&_include=Patient:carer"))
    assert [stored.id for stored in result.included] == [doctor.id]


def test_a_reindex_brings_it_to_what_is_stored(repository: Repository, project: str) -> None:
    old = repository.create(patient("blue", name=[{"family": "Old"}]))
    gone = repository.create(patient("blue"))
    repository.delete("Patient", gone.id)
    own = repository.create(parameter())
    assert search(repository, "eyes=blue") == []
    versions = repository.history("Patient", old.id)[1]
    assert done(project, "Patient") == (1, 1)
    assert search(repository, "eyes=blue") == [old.id]
    assert done(project, "Patient") == (1, 0)
    assert repository.history("Patient", old.id)[1] == versions
    repository.update({**own.resource, "status": "retired"})
    assert done(project, "Patient") == (1, 1)
    with pytest.raises(FhirError, match="Unknown search parameter: eyes"):
        search(repository, "eyes=blue")


def test_a_reindex_repairs_every_kind_of_row(repository: Repository, project: str) -> None:
    """What an installation holds whose index was made by other rules."""
    organization = repository.create({"resourceType": "Organization", "name": "Clinic"}).id
    made = repository.create(
        patient(
            "blue",
            name=[{"family": "Smith"}],
            birthDate="1980",
            managingOrganization={"reference": f"Organization/{organization}"},
        )
    )
    weight = {"status": "final", "code": {"text": "w"}, "valueQuantity": {"value": 7.50, "unit": "kg"}}
    observation = repository.create({"resourceType": "Observation", **weight})
    with database.transaction() as connection:
        connection.execute(
            "UPDATE resource SET idx = '{}', ref_pid = '{}', ref_id = '{}', sort_pid = '{}', sort_value = '{}'"
            " WHERE project = %s",
            [project],
        )
        for table in ("string", "date", "number"):
            connection.execute(
                f"DELETE FROM value_{table} v USING resource r WHERE r.rid = v.rid AND r.project = %s",
                [project],
            )
    assert search(repository, "family=smith") == []
    assert done(project)[1] == 3
    for query in (
        "family=smith",
        "birthdate=1980",
        "organization.name=clinic",
        f"organization={organization}",
    ):
        assert search(repository, query) == [made.id], query
    assert search(repository, "value-quantity=7.5||kg", "Observation") == [observation.id]
    assert done(project)[1] == 0


def test_a_reindex_waits_for_a_writer_and_keeps_what_it_wrote(repository: Repository, project: str) -> None:
    ids = [repository.create(patient("blue")).id for _ in range(5)]
    repository.create(parameter())
    held, go = threading.Event(), threading.Event()

    def write() -> None:
        with repository.transaction():
            repository.update(patient("green", id=ids[2]))
            held.set()
            go.wait(30)

    writer = threading.Thread(target=write)
    writer.start()
    assert held.wait(30)
    steps = reindex(project, ["Patient"], batch=5)
    reader = threading.Thread(target=lambda: list(steps))
    reader.start()
    go.set()
    writer.join(30)
    reader.join(30)
    assert search(repository, "eyes=green") == [ids[2]]
    assert search(repository, "eyes=blue") == sorted(set(ids) - {ids[2]})


def test_a_reindex_stays_in_its_project(repository: Repository, stranger: Repository, project: str) -> None:
    stranger.create(patient("blue"))
    assert done(project) == (0, 0)
    assert tables.positions(project, "Patient", tables.BEFORE_ALL, 10) == []
    with pytest.raises(FhirError, match="Unknown resource type: Nobody"):
        reindex(project, ["Nobody"])


@pytest.mark.parametrize(
    ("elements", "where", "text"),
    [
        ({"expression": "Patient.nonsense"}, "expression", "cannot be indexed for Patient: Patient has no element nonsense"),
        ({"expression": "Patient.name.given.join(' ')"}, "expression", "cannot be indexed for Patient: function join()"),
        ({"expression": "Patient.name ("}, "expression", "cannot be indexed for Patient: unexpected"),
        ({"expression": "Patient.name"}, "expression", "cannot be indexed for Patient: no token values in data type HumanName"),
        ({"type": "special"}, "type", "special cannot be indexed"),
        ({"code": "_eyes"}, "code", "must be letters, digits, - and _, beginning with a letter"),
        ({"code": "gender"}, "code", "gender is a search parameter of Patient already, with another expression"),
        ({"base": ["Patient", "Organization"]}, "expression", "cannot be indexed for Organization: it leads to no element"),
        ({"expression": "(" * 1500 + "Patient.gender" + ")" * 1500}, "expression", "may have 4000 characters and 60 brackets"),
    ],
)  # fmt: skip
def test_what_cannot_be_indexed_is_refused(
    repository: Repository, elements: dict[str, Any], where: str, text: str
) -> None:
    with pytest.raises(FhirError) as refused:
        repository.create(parameter(**elements))
    (issue,) = refused.value.outcome["issue"]
    assert refused.value.status == 400
    assert issue["expression"] == [f"SearchParameter.{where}"]
    assert issue["details"]["text"].startswith(f"SearchParameter.{where} {text}")
    # A draft is nobody's concern yet.
    draft = repository.create(parameter(**elements, status="draft"))
    with pytest.raises(FhirError):
        repository.update({**draft.resource, "status": "active"})


def test_a_code_is_taken_once(repository: Repository) -> None:
    first = repository.create(parameter())
    with pytest.raises(FhirError, match="is taken by another active SearchParameter of Patient"):
        repository.create(parameter())
    repository.update({**first.resource, "description": "still mine"})
    repository.create(parameter(base=["Practitioner"], expression="Practitioner.gender"))
    # A copy of what the definitions say is welcome, and changes nothing.
    repository.create(parameter("gender", expression="Patient.gender"))
