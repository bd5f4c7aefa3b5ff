"""The table of shared/medplum/execute.md §6: what a handler did, and the HTTP answer."""

from __future__ import annotations

import base64
from typing import Any

import orjson
import pytest

from bots.inputs import HL7
from bots.results import Answer, answer_to, failure_of
from bots.sandbox.api import Result
from fhirstore.api import STATUS_BY_ID

FHIR = "application/fhir+json"
PATIENT = {
    "resourceType": "Patient",
    "id": "4f9f3d2c-7a1b-4f0e-9b6a-6f1c2b3a4d5e",
    "meta": {"versionId": "0d9b7f5e-1111-4222-8333-444455556666", "lastUpdated": "2026-11-21T07:05:00.123Z"},
}


def answer(run: Result, content_type: str | None = "application/json") -> Answer:
    def binary(id: str) -> tuple[str, bytes]:
        assert id == "b1"
        return "image/png", b"\x89PNG"

    return answer_to(
        run, content_type=content_type, log_text="line one\nline two", binary=binary, presign=bytes
    )


def returned(value: Any, kind: str, **more: Any) -> Result:
    return Result(ok=True, value=value, value_kind=kind, **more)  # type: ignore[arg-type]


def outcome(id: str | None, code: str = "invalid") -> dict[str, Any]:
    found = {
        "resourceType": "OperationOutcome",
        "issue": [{"severity": "error", "code": code, "details": {"text": "why"}}],
    }
    return found | ({"id": id} if id else {})


@pytest.mark.parametrize(
    ("value", "kind", "request_type", "content_type", "body"),
    [
        ({"a": [1, None]}, "object", "application/json", "application/json", b'{"a":[1,null]}'),
        ([1, 2], "object", "application/json", "application/json", b"[1,2]"),
        ({"resourceType": "Unknown"}, "object", None, "application/json", b'{"resourceType":"Unknown"}'),
        (True, "boolean", "application/json", "application/json", b"true"),
        (False, "boolean", "text/plain", "text/plain", b"false"),
        (42, "number", "application/json", "application/json", b"42"),
        (1.5, "number", "application/json; charset=utf-8", "application/json", b"1.5"),
        ("hello there", "string", "application/json", "text/plain", b"hello there"),
        ("hello there", "string", "text/plain", "text/plain", b"hello there"),
        ('{"a": 1}', "string", "application/json", "application/json", b'{"a": 1}'),
        ('"quoted"', "string", "application/fhir+json", "application/json", b'"quoted"'),
        ('{"a": 1}', "string", "text/plain", "text/plain", b'{"a": 1}'),
        ("", "string", "text/plain; charset=utf-8", "text/plain", b""),
        ("grüß", "string", None, "text/plain", "grüß".encode()),
        (None, "null", "application/json", "application/json", b""),
        (None, "null", "text/plain", "text/plain", b""),
        ("MSH|^~\\&|", "hl7", HL7, HL7, b"MSH|^~\\&|"),
        ("MSH|^~\\&|", "string", HL7, HL7, b"MSH|^~\\&|"),
        (b"\x00\xff", "binary", "application/json", "application/octet-stream", b"\x00\xff"),
    ],
)
def test_value_becomes_the_body(
    value: object, kind: str, request_type: str | None, content_type: str, body: bytes
) -> None:
    run = returned(value, kind)
    assert answer(run, request_type) == Answer(200, content_type, body)
    assert failure_of(run) is None


def test_nothing_returned_is_all_ok() -> None:
    found = answer(returned(None, "undefined"))
    assert (found.status, found.content_type) == (200, FHIR)
    assert orjson.loads(found.body) == {
        "resourceType": "OperationOutcome",
        "id": "ok",
        "issue": [{"severity": "information", "code": "informational", "details": {"text": "All OK"}}],
    }


def test_resource_is_sent_with_its_version() -> None:
    found = answer(returned(PATIENT, "object"))
    assert (found.status, found.content_type, orjson.loads(found.body)) == (200, FHIR, PATIENT)
    assert found.headers == {
        "ETag": 'W/"0d9b7f5e-1111-4222-8333-444455556666"',
        "Last-Modified": "Sat, 21 Nov 2026 07:05:00 GMT",
    }


def test_resource_may_carry_a_made_up_meta() -> None:
    strange = {"resourceType": "Patient", "meta": {"versionId": 7, "lastUpdated": "yesterday"}}
    assert answer(returned(strange, "object")).headers == {}
    assert answer(returned({"resourceType": "Patient", "meta": "?"}, "object")).status == 200


def test_binary_is_sent_as_its_bytes() -> None:
    data = {"resourceType": "Binary", "contentType": "text/csv", "data": base64.b64encode(b"a,b").decode()}
    assert answer(returned(data, "object")) == Answer(200, "text/csv", b"a,b")
    assert answer(returned({"resourceType": "Binary", "id": "b1"}, "object")) == Answer(
        200, "image/png", b"\x89PNG"
    )
    broken = answer(returned({"resourceType": "Binary", "contentType": "x/y", "data": "§"}, "object"))
    assert broken.status == 400


def test_what_no_header_can_say_is_left_out() -> None:
    binary = {"resourceType": "Binary", "contentType": "text/html\r\nSet-Cookie: a=b", "data": "aGk="}
    assert answer(returned(binary, "object")).content_type == "application/octet-stream"
    made_up = PATIENT | {"meta": {"versionId": "1\n2"}}
    assert answer(returned(made_up, "object")).headers == {}
    pairs = (("x-a", "1"), ("x b", "1"), ("x\r\nc", "1"), ("ü", "1"), ("", "1"), ("x-d", "1\n2"))
    own = answer(returned(b"hi", "response", response_status=200, response_headers=pairs))
    assert own.headers == {"x-a": "1"}


@pytest.mark.parametrize("id", [*STATUS_BY_ID, None, "made-up"])
def test_outcome_has_the_status_of_its_id(id: str | None) -> None:
    run = returned(outcome(id), "object")
    found = answer(run)
    assert (found.status, found.content_type) == (STATUS_BY_ID.get(id or "", 400), FHIR)
    assert orjson.loads(found.body) == outcome(id)
    assert failure_of(run) == (None if id in {"ok", "created", "accepted", "not-modified"} else "outcome")


def test_exception_outcome_is_the_only_server_error() -> None:
    assert answer(returned(outcome(None, "exception"), "object")).status == 500


def test_thrown_outcome_is_sent() -> None:
    run = Result(
        ok=False,
        failure="code",
        outcome=outcome("forbidden"),
        error="why",
        stack="OperationOutcomeError: why",
    )
    assert (answer(run).status, orjson.loads(answer(run).body)) == (403, outcome("forbidden"))
    assert failure_of(run) == "code"


def test_thrown_error_is_400_with_its_message() -> None:
    found = answer(
        Result(ok=False, failure="code", error="no such thing", stack="Error: no such thing\n at x.js:1:1")
    )
    assert (found.status, found.content_type) == (400, FHIR)
    issue = orjson.loads(found.body)["issue"][0]
    assert (issue["severity"], issue["code"], issue["details"]["text"]) == (
        "error",
        "invalid",
        "no such thing",
    )


@pytest.mark.parametrize("failure", ["timeout", "memory", "startup", "crash", "input", "output"])
def test_other_failures_are_400_with_the_log(failure: Any) -> None:
    found = answer(Result(ok=False, failure=failure, error="one sentence"))
    assert found.status == 400
    assert orjson.loads(found.body)["issue"][0]["details"]["text"] == "line one\nline two"
