"""The registry of operations: who answers a ``$name``, where, and by which method."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from fhirstore import operations
from fhirstore.api import (
    FhirResponse,
    OperationRequest,
    all_ok,
    bad_request,
    register_fallback,
    register_operation,
)
from fhirstore.errors import accepted
from tests.rest.conftest import Caller, smith, text_of


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A registry of its own for each test."""
    monkeypatch.setattr(operations, "_operations", dict(operations._operations))
    monkeypatch.setattr(operations, "_fallback", None)
    return


def describe(request: OperationRequest) -> dict[str, Any]:
    """Answer with how it was called."""
    values = {"type": request.type, "id": request.id, "extra": request.extra_path, "method": request.method}
    parts = [{"name": name, "valueString": value} for name, value in values.items() if value]
    return {
        "resourceType": "Parameters",
        "parameter": [*parts, {"name": "name", "valueString": request.name}],
    }


def parts_of(answer: Any) -> dict[str, str]:
    """What :func:`describe` said."""
    return {each["name"]: each["valueString"] for each in answer.json()["parameter"]}


def test_an_operation_is_called_where_it_was_registered(home: Caller) -> None:
    register_operation("$where", describe, types=["Bot"], system=True, type=True, instance=True)
    assert parts_of(home.send("GET", "$where")) == {"name": "$where", "method": "GET"}
    assert parts_of(home.send("POST", "Bot/$where", {})) == {
        "name": "$where",
        "method": "POST",
        "type": "Bot",
    }
    assert parts_of(home.send("GET", "Bot/7/$where"))["id"] == "7"
    wrong = home.send("GET", "Patient/$where")
    assert wrong.status_code == 400
    assert (
        text_of(wrong) == "$where cannot be called here; call it as $where or Bot/$where or Bot/{id}/$where"
    )
    assert home.send("PUT", "$where", {})["allow"] == "GET, POST"


def test_extra_paths_are_for_those_who_take_them(home: Caller) -> None:
    register_operation("$exact", describe, system=True)
    register_operation("$open", describe, system=True, extra_path=True)
    assert parts_of(home.send("GET", "$open/a/b"))["extra"] == "a/b"
    assert home.send("GET", "$exact/a").status_code == 400


def test_the_fallback_is_asked_last(home: Caller) -> None:
    register_operation("$known", describe, system=True)
    asked = []

    def resolve(request: OperationRequest) -> Any:
        asked.append(request.name)
        return describe(request) if request.name == "$custom" else None

    register_fallback(resolve)
    assert parts_of(home.send("GET", "Patient/7/$custom/more"))["extra"] == "more"
    assert home.send("GET", "$known").status_code == 200
    assert home.send("GET", "$nobody").status_code == 404
    assert asked == ["$custom", "$nobody"]


@pytest.mark.parametrize(
    ("answer", "status", "content_type"),
    [
        (all_ok(), 200, "application/fhir+json; charset=utf-8"),
        (accepted("http://x"), 202, "application/fhir+json; charset=utf-8"),
        (bad_request("no").outcome, 400, "application/fhir+json; charset=utf-8"),
        (smith(), 200, "application/fhir+json; charset=utf-8"),
        (FhirResponse(201, b"text", {"content-type": "text/plain"}), 201, "text/plain"),
    ],
)
def test_answers_of_every_kind_are_sent(home: Caller, answer: Any, status: int, content_type: str) -> None:
    register_operation("$answer", lambda _: answer, system=True)
    sent = home.send("GET", "$answer")
    assert (sent.status_code, sent["content-type"]) == (status, content_type)


def test_a_stored_resource_is_sent_with_its_version(home: Caller) -> None:
    stored = home.repository.create(smith())
    register_operation("$stored", lambda _: stored, system=True)
    assert home.send("GET", "$stored")["etag"] == f'W/"{stored.version_id}"'


def test_operations_work_inside_a_batch(home: Caller) -> None:
    register_operation(
        "$text", lambda _: FhirResponse(200, b"hello", {"content-type": "text/plain"}), system=True
    )
    entries = [
        {"request": {"method": "POST", "url": "$text"}},
        {"request": {"method": "GET", "url": "$nobody"}},
    ]
    answer = home.send("POST", "", {"resourceType": "Bundle", "type": "batch", "entry": entries}).json()[
        "entry"
    ]
    assert answer[0]["resource"] == {
        "resourceType": "Binary",
        "contentType": "text/plain",
        "data": "aGVsbG8=",
    }
    assert answer[1]["response"]["status"] == "404"
