"""``/T/$csv``: a search as a table."""

from __future__ import annotations

import csv
import io
from typing import Any
from urllib.parse import quote

import pytest

from tests.rest.conftest import Caller, new_caller, smith, text_of


@pytest.fixture(scope="module")
def clinic(database: None) -> Caller:
    """A project with three patients."""
    caller = new_caller()
    caller.create(
        smith(
            gender="female",
            birthDate="1980-01-01",
            active=True,
            identifier=[{"system": "x:mrn", "value": "7"}, {"system": "x:other", "value": "8"}],
            address=[{"line": ["Main 1"], "city": 'The "Hub"'}],
            telecom=[{"system": "phone", "value": "+1 555"}, {"system": "email", "value": "j@x.org"}],
            maritalStatus={"coding": [{"code": "M", "display": "Married"}]},
            multipleBirthInteger=-2,
        )
    )
    caller.create({"resourceType": "Patient", "name": [{"family": "=HYPERLINK(1)", "given": ["Ann", "Bea"]}]})
    caller.create({"resourceType": "Patient", "name": [{"family": "Zoé"}], "gender": "male"})
    return caller


def table(caller: Caller, query: str, method: str = "GET", body: str | None = None) -> list[list[str]]:
    form = "application/x-www-form-urlencoded"
    answer = caller.send(method, f"Patient/$csv?{query}", body, content_type=form)
    assert answer.status_code == 200, answer.content
    assert answer["content-type"] == "text/csv; charset=utf-8"
    assert answer["content-disposition"] == "attachment; filename=export.csv"
    text = answer.content.decode()
    assert text[0] == "\ufeff"
    return list(csv.reader(io.StringIO(text[1:])))


def test_rows_follow_the_search_and_columns_the_fields(clinic: Caller) -> None:
    rows = table(clinic, "_fields=name.family,birthDate,gender&_sort=family&family=smith,zo")
    assert rows == [
        ["name.family", "birthDate", "gender"],
        ["Smith", "1980-01-01", "female"],
        ["Zoé", "", "male"],
    ]
    assert len(table(clinic, "_fields=id&_count=2")) == 3
    assert table(clinic, "", "POST", "_fields=gender&family=Zo") == [["gender"], ["male"]]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "Jane Smith"),
        ("family", "Smith"),
        ("active", "true"),
        ("address", 'Main 1, The "Hub"'),
        ("maritalStatus", "Married"),
        ("identifier", "7"),
        ("identifier.where(system='x:other').value", "8"),
        ("phone", "'+1 555"),
        ("email", "j@x.org"),
        ("Patient.name.given", "Jane"),
        ("multipleBirth", "-2"),
    ],
)
def test_values_are_shown_as_people_read_them(clinic: Caller, field: str, value: str) -> None:
    assert table(clinic, f"_fields={quote(field)}&family=smith")[1:] == [[value]]


def test_formulas_become_text(clinic: Caller) -> None:
    assert table(clinic, "_fields=family,name.given&given=Ann")[1:] == [["'=HYPERLINK(1)", "Ann"]]


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("", "Missing _fields parameter"),
        ("_fields=", "Missing _fields parameter"),
        ("_fields=potion", "Invalid FHIRPath expression in _fields: potion"),
        ("_fields=name.all($this)", "Invalid FHIRPath expression in _fields: name.all($this)"),
        ("_fields=id&potion=1", "Unknown search parameter: potion"),
        ("_fields=" + "id," * 101, "Too many _fields (max 100)"),
    ],
)
def test_wrong_questions_are_refused(clinic: Caller, query: str, text: str) -> None:
    answer: Any = clinic.send("GET", f"Patient/$csv?{query}")
    assert (answer.status_code, text_of(answer)) == (400, text)


def test_another_project_is_not_in_the_table(clinic: Caller, foreign: Caller) -> None:
    assert table(foreign, "_fields=family&family=smith") == [["family"]]


def test_fields_have_a_length(home: Caller) -> None:
    refused = home.send(
        "POST", "Patient/$csv", "_fields=" + "(" * 8001, content_type="application/x-www-form-urlencoded"
    )
    assert (refused.status_code, text_of(refused)) == (400, "Too long _fields (max 8000 characters)")
