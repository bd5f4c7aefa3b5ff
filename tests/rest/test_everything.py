"""Patient/$everything: all that belongs to a patient, and nothing else."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.rest.conftest import Caller, smith, text_of


def references(bundle: dict[str, Any], mode: str = "match") -> list[str]:
    """The entries of a mode as ``Type/id``."""
    return [
        f"{entry['resource']['resourceType']}/{entry['resource']['id']}"
        for entry in bundle.get("entry", [])
        if entry["search"]["mode"] == mode
    ]


def make_record(home: Caller) -> dict[str, str]:
    """A patient with a little history; references by a word for each."""
    doctor = home.create({"resourceType": "Practitioner"})
    doctor_reference = {"reference": f"Practitioner/{doctor['id']}"}
    patient = home.create(smith(generalPractitioner=[doctor_reference]))
    subject = {"reference": f"Patient/{patient['id']}"}
    code = {"text": "x"}
    made = {
        "doctor": doctor,
        "patient": patient,
        "old": home.create(
            {
                "resourceType": "Observation",
                "status": "final",
                "code": code,
                "subject": subject,
                "effectiveDateTime": "2020-05-05",
            }
        ),
        "new": home.create(
            {
                "resourceType": "Observation",
                "status": "final",
                "code": code,
                "subject": subject,
                "effectiveDateTime": "2024-05-05",
            }
        ),
        "coverage": home.create(
            {"resourceType": "Coverage", "status": "active", "beneficiary": subject, "payor": [subject]}
        ),
        "message": home.create(
            {"resourceType": "Communication", "status": "completed", "recipient": [subject]}
        ),
        "linked": home.create(smith(link=[{"other": subject, "type": "seealso"}])),
    }
    home.create(smith())
    return {word: f"{each['resourceType']}/{each['id']}" for word, each in made.items()}


def test_the_whole_compartment_is_sent_with_the_patient_first(home: Caller) -> None:
    record = make_record(home)
    bundle = home.send("GET", f"{record['patient']}/$everything").json()
    found = references(bundle)
    assert found[0] == record["patient"]
    assert set(found) == {reference for word, reference in record.items() if word != "doctor"}
    assert len(found) == len(set(found))
    assert references(bundle, "include") == [record["doctor"]]
    assert bundle["entry"][0]["fullUrl"].endswith(f"/fhir/R4/{record['patient']}")
    assert "project" not in bundle["entry"][0]["resource"]["meta"]


def test_types_dates_and_changes_narrow_it(home: Caller) -> None:
    record = make_record(home)
    path = f"{record['patient']}/$everything"

    def ask(query: str) -> set[str]:
        return set(references(home.send("GET", f"{path}?{query}").json()))

    assert ask("_type=Observation,Coverage") == {record["old"], record["new"], record["coverage"]}
    assert ask("_type=Observation&start=2024-01-01") == {record["new"]}
    assert ask("_type=Observation&end=2020") == {record["old"]}
    assert ask("start=2019&end=2021-01-01") == {
        record[word] for word in ("patient", "old", "coverage", "linked")
    }
    assert ask("_since=2100-01-01T00:00:00Z") == {record["patient"]}
    body = {"resourceType": "Parameters", "parameter": [{"name": "_type", "valueCode": "Observation"}]}
    posted = home.send("POST", path, body).json()
    assert set(references(posted)) == {record["old"], record["new"]}


def test_pages_follow_each_other_without_loss(home: Caller) -> None:
    record = make_record(home)
    whole = references(home.send("GET", f"{record['patient']}/$everything").json())
    for count in (1, 2, 3, 6):
        url, found = f"{record['patient']}/$everything?_count={count}", []
        while url:
            bundle = home.send("GET", url).json()
            assert len(references(bundle)) <= count
            found += references(bundle)
            links = {link["relation"]: urlsplit(link["url"]) for link in bundle["link"]}
            url = f"{links['next'].path}?{links['next'].query}" if "next" in links else ""
        assert found == whole


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("_type=Potion", "Unknown resource type: Potion"),
        ("start=yesterday", "Invalid format for date search parameter: geyesterday"),
        ("_since=now", "Invalid format for date search parameter: genow"),
        ("_count=x", "Invalid _count: expected a whole number from 1 to 1000"),
        ("_offset=20000", "Search offset exceeds maximum (got 20000, max 10000)"),
    ],
)
def test_wrong_parameters_are_refused(home: Caller, query: str, text: str) -> None:
    patient = home.create(smith())
    answer = home.send("GET", f"Patient/{patient['id']}/$everything?{query}")
    assert (answer.status_code, text_of(answer)) == (400, text)


def test_a_patient_of_another_project_is_not_there(home: Caller, foreign: Caller) -> None:
    patient = home.create(smith())
    assert foreign.send("GET", f"Patient/{patient['id']}/$everything").status_code == 404
    reference = {"reference": f"Patient/{patient['id']}"}
    foreign.create({"resourceType": "Basic", "code": {"text": "x"}, "subject": reference})
    stray = {"resourceType": "Coverage", "status": "active", "beneficiary": reference, "payor": [reference]}
    foreign.create(stray)
    assert references(home.send("GET", f"Patient/{patient['id']}/$everything").json()) == [
        f"Patient/{patient['id']}"
    ]
