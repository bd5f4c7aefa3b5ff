"""Every refusal says what is wrong: (request → status, outcome id, text)."""

from __future__ import annotations

import gzip
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from django.http import HttpResponse
from pytest_django import Settings

from tests.rest.conftest import FORM, Caller, smith, text_of

MISSING = "00000000-0000-4000-8000-000000000000"
DEEP = b'{"resourceType":"Patient","extension":' + b"[" * 500 + b"]" * 500 + b"}"

# method, path, body, options, status, outcome id, text
TABLE: list[tuple[str, str, Any, dict[str, str], int, str | None, str]] = [
    # what is not there
    ("GET", f"Patient/{MISSING}", None, {}, 404, "not-found", "Not found"),
    ("GET", "Patient/no-uuid", None, {}, 404, "not-found", "Not found"),
    ("GET", f"Patient/{MISSING}/_history", None, {}, 404, "not-found", "Not found"),
    ("GET", f"Patient/{MISSING}/_history/{MISSING}", None, {}, 404, "not-found", "Not found"),
    ("PUT", f"Patient/{MISSING}", smith(id=MISSING), {}, 404, "not-found", "Not found"),
    ("PATCH", f"Patient/{MISSING}", [], {}, 404, "not-found", "Not found"),
    ("DELETE", f"Patient/{MISSING}", None, {}, 404, "not-found", "Not found"),
    ("GET", f"Patient/{MISSING}/name", None, {}, 404, "not-found", "Not found"),
    ("GET", "Patien", None, {}, 404, "not-found", "Unknown resource type: Patien"),
    ("POST", "Patien", smith(), {}, 404, "not-found", "Unknown resource type: Patien"),
    ("GET", "Resource", None, {}, 404, "not-found", "Unknown resource type: Resource"),
    ("GET", "nothing", None, {}, 404, "not-found", "Not found"),
    ("GET", "Patient/$unheard", None, {}, 404, "not-found", "Unknown operation: $unheard"),
    ("GET", f"/projects/{MISSING}/fhir/R4/Patient", None, {}, 403, "forbidden", "Forbidden"),
    # methods
    ("PUT", "metadata", None, {}, 405, "method-not-allowed", "Method not allowed. Allowed: GET"),
    ("POST", f"Patient/{MISSING}", smith(), {}, 405, "method-not-allowed", "Method not allowed. Allowed: GET, PUT, PATCH, DELETE"),
    ("DELETE", f"Patient/{MISSING}/_history", None, {}, 405, "method-not-allowed", "Method not allowed. Allowed: GET"),
    ("GET", "Patient/_search", None, {}, 405, "method-not-allowed", "Method not allowed. Allowed: POST"),
    ("GET", "Patient/$validate", None, {}, 405, "method-not-allowed", "Method not allowed. Allowed: POST"),
    ("PUT", "", None, {}, 405, "method-not-allowed", "Method not allowed. Allowed: GET, POST"),
    ("GET", "", None, {}, 400, None, "A search across types needs _type, for example _type=Patient,Practitioner"),
    ("GET", "?_type=Patient&_sort=name", None, {}, 400, None, "A search across types can only be sorted by _lastUpdated"),
    ("GET", "?_type=Patient,Binary", None, {}, 400, None, "Cannot search on Binary resource type"),
    ("GET", "?_type=Patient,Observation&family=x", None, {}, 400, None, "Unknown search parameter: family"),
    ("GET", "?_type=Patient&_offset=1001", None, {}, 400, None, "Search offset exceeds maximum (got 1001, max 1000 across types); follow the next links"),
    ("POST", "$validate", smith(), {}, 400, None, "$validate cannot be called here; call it as {type}/$validate or {type}/{id}/$validate"),
    # bodies
    ("POST", "Patient", b"", {}, 400, None, "The request body is empty; expected JSON"),
    ("POST", "Patient", b"{", {}, 400, None, "The request body is not valid JSON: unexpected end of data: line 1 column 2 (char 1)"),
    ("POST", "Patient", b'{"resourceType":"Patient","active":NaN}', {}, 400, None, "The request body is not valid JSON: unexpected character, expected a JSON value: line 1 column 36 (char 35)"),
    ("POST", "Patient", b'{"resourceType":"Patient","x":"\xff"}', {}, 400, None, "The request body is not UTF-8 (byte 31)"),
    ("POST", "Patient", DEEP, {}, 400, None, "The JSON is nested too deeply: more than 100 levels"),
    ("POST", "Patient", b"[" * 5000, {}, 400, None, "The JSON is nested too deeply: more than 100 levels"),
    ("POST", "Patient", [smith()], {}, 400, None, "Expected a resource (a JSON object), found an array"),
    ("POST", "Patient", b'"x"', {}, 400, None, "Expected a resource (a JSON object), found a string"),
    ("POST", "Patient", b"null", {}, 400, None, "Expected a resource (a JSON object), found null"),
    ("POST", "Patient", b"17", {}, 400, None, "Expected a resource (a JSON object), found a number"),
    ("POST", "Patient", {}, {}, 400, None, "Incorrect resource type: expected Patient, but found <EMPTY>"),
    ("POST", "Patient", {"resourceType": "Observation"}, {}, 400, None, "Incorrect resource type: expected Patient, but found Observation"),
    ("POST", "Patient", {"resourceType": 5}, {}, 400, None, "Incorrect resource type: expected Patient, but found 5"),
    ("POST", "Patient", b"<Patient/>", {"content_type": "application/fhir+xml"}, 415, "unsupported-media-type", "Unsupported content type: application/fhir+xml. Send application/fhir+json"),
    ("POST", "Patient", "a=b", {"content_type": FORM}, 415, "unsupported-media-type", f"Unsupported content type: {FORM}. Send application/fhir+json"),
    ("POST", "Patient/_search", b"{}", {}, 415, "unsupported-media-type", f"Unsupported content type: application/fhir+json. Send {FORM}"),
    ("POST", "Patient", smith(), {"content_encoding": "br"}, 415, "unsupported-media-type", "Unsupported content encoding: br. Use gzip or deflate"),
    ("POST", "Patient", b"no gzip", {"content_encoding": "gzip"}, 400, None, "The request body is not valid gzip"),
    ("POST", "Patient", gzip.compress(b"{}" * 1000)[:-20], {"content_encoding": "gzip"}, 400, None, "The request body is not valid gzip"),
    ("PUT", f"Patient/{MISSING}", {"resourceType": "Observation", "id": MISSING}, {}, 400, None, "Incorrect resource type"),
    ("PUT", f"Patient/{MISSING}", smith(), {}, 400, None, "Incorrect resource ID"),
    ("PUT", f"Patient/{MISSING}", smith(id="x"), {}, 400, None, "Incorrect resource ID"),
    ("PATCH", f"Patient/{MISSING}", b"", {}, 400, None, "Empty patch body"),
    ("PATCH", f"Patient/{MISSING}", {}, {}, 400, None, "Invalid patch body"),
    ("PATCH", f"Patient/{MISSING}", ["x"], {}, 400, None, "Invalid patch body"),
    ("PATCH", f"Patient/{MISSING}", {"resourceType": "Parameters"}, {}, 400, None, "Invalid patch body: expected Parameters with operations"),
    # content
    ("POST", "Patient", smith(nmae=[]), {}, 400, None, 'Invalid additional property "nmae"'),
    ("POST", "Observation", {"resourceType": "Observation"}, {}, 400, None, "Missing required property"),
    # queries and conditions
    ("GET", "Patient?nmae=x", None, {}, 400, None, "Unknown search parameter: nmae"),
    ("GET", "Patient?_sort=nmae", None, {}, 400, None, "Unknown search parameter: nmae"),
    ("GET", "Binary", None, {}, 400, None, "Cannot search on Binary resource type"),
    ("GET", f"Patient/{MISSING}/_history?_count=x", None, {}, 400, None, "Invalid _count: expected a whole number"),
    ("GET", f"Patient/{MISSING}/_history?_offset=10001", None, {}, 400, None, "Search offset exceeds maximum (got 10001, max 10000)"),
    ("PUT", "Patient", smith(), {}, 400, None, "PUT on a type needs a condition: Patient?parameter=value"),
    ("DELETE", "Patient", None, {}, 400, None, "DELETE on a type needs a condition: Patient?parameter=value"),
    ("DELETE", "Patient?_count=1", None, {}, 400, None, "The condition names no search parameter"),
    ("POST", "Patient", smith(), {"if_none_exist": "nmae=x"}, 400, None, "Unknown search parameter: nmae"),
    # who asks
    ("GET", "Patient", None, {"authorization": ""}, 401, "unauthorized", "Unauthorized"),
    ("GET", "Patient", None, {"authorization": "Bearer x.y.z"}, 401, "unauthorized", "Unauthorized"),
    ("GET", "Patient", None, {"authorization": "Basic !!!"}, 401, "unauthorized", "Unauthorized"),
    ("GET", "Patient", None, {"authorization": "Digest x"}, 401, "unauthorized", "Unauthorized"),
    ("GET", "/auth/me", None, {"authorization": ""}, 401, "unauthorized", "Unauthorized"),
    ("GET", "Login", None, {}, 403, "forbidden", "Forbidden"),
    ("GET", "/admin/projects/x", None, {"authorization": ""}, 401, "unauthorized", "Unauthorized"),
    ("GET", f"/storage/{MISSING}/{MISSING}", None, {"authorization": ""}, 403, "forbidden", "The address is incomplete"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("method", "path", "body", "options", "status", "outcome_id", "text"),
    TABLE,
    ids=[f"{row[0]} {row[1]} {row[4]} {number}" for number, row in enumerate(TABLE)],
)
def test_refusal(
    home: Caller,
    method: str,
    path: str,
    body: Any,
    options: dict[str, str],
    status: int,
    outcome_id: str | None,
    text: str,
) -> None:
    answer = home.send(method, path, body, **options)
    outcome = answer.json()
    assert (answer.status_code, outcome.get("id"), text_of(answer)) == (status, outcome_id, text)
    assert outcome["resourceType"] == "OperationOutcome"
    assert outcome["issue"][0]["severity"] == "error"


def test_outcomes_carry_the_ids_of_request_and_trace(home: Caller) -> None:
    trace = str(uuid.uuid4())
    answer = home.send("GET", f"Patient/{MISSING}", x_trace_id=trace)
    assert trace_ids(answer)["traceId"] == trace
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    answer = home.send("GET", f"Patient/{MISSING}", traceparent=parent)
    assert trace_ids(answer)["traceId"] == "0af76519-16cd-43dd-8448-eb211c80319c"
    amazon = "Self=1-67891234-12456789abcdef012345678;Root=1-0af76519-16cd43dd8448eb211c80319c;Sampled=1"
    answer = home.send("GET", f"Patient/{MISSING}", x_amzn_trace_id=amazon)
    assert trace_ids(answer)["traceId"] == "0af76519-16cd-43dd-8448-eb211c80319c"
    answer = home.send("GET", f"Patient/{MISSING}", x_trace_id="'; drop table")
    assert uuid.UUID(trace_ids(answer)["traceId"])
    assert uuid.UUID(trace_ids(answer)["requestId"])


def trace_ids(answer: HttpResponse) -> dict[str, str]:
    """The ids in the tracing extension."""
    return {each["url"]: each["valueId"] for each in answer.json()["extension"][0]["extension"]}


def test_401_names_the_scheme_to_use(home: Caller) -> None:
    realm = 'realm="http://127.0.0.1:8000/"'
    assert home.send("GET", "Patient", authorization="")["www-authenticate"] == f"Bearer {realm}"
    assert home.send("GET", "Patient", authorization="Basic eDp5")["www-authenticate"] == f"Basic {realm}"
    prompt = home.send("GET", "Patient?_medplum-prompt-basic-auth", authorization="")
    assert prompt["www-authenticate"] == f"Basic {realm}"


def test_a_wrong_secret_is_unauthorized(home: Caller) -> None:
    wrong = Caller(home.project, home.client_id, "wrong", "", "")
    assert wrong.send("GET", "Patient").status_code == 401
    assert home.send("GET", "Patient").status_code == 200


@pytest.mark.parametrize(
    "pack", [lambda body: (body, {}), lambda body: (gzip.compress(body), {"content_encoding": "gzip"})]
)
def test_a_body_above_the_limit_is_refused(
    home: Caller, settings: Settings, pack: Callable[[bytes], tuple[bytes, dict[str, str]]]
) -> None:
    settings.MAX_JSON_BYTES = 1000
    body, headers = pack(b'{"resourceType":"Patient","x":"' + b"x" * 2000 + b'"}')
    answer = home.send("POST", "Patient", body, **headers)
    assert (answer.status_code, answer.json()["id"]) == (413, "content-too-large")
    assert text_of(answer) == "Request body too large: the limit is 1000 bytes"
    assert home.send("POST", "Binary", b"x" * 2000, content_type="text/plain").status_code == 201


def test_a_failure_of_ours_is_told_by_its_id_only(
    home: Caller, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    quoted = uuid.uuid4().hex

    def fail(*_: object) -> None:
        raise RuntimeError(quoted)

    monkeypatch.setattr("fhirstore.repository.Repository.read", fail)
    answer = home.send("GET", f"Patient/{MISSING}")
    assert (answer.status_code, text_of(answer)) == (500, "Internal server error")
    request_id = trace_ids(answer)["requestId"]
    assert answer.json()["issue"][0]["diagnostics"] == f"Request id {request_id}"
    assert request_id in caplog.text
    assert "RuntimeError" in caplog.text
    assert quoted not in caplog.text
    assert quoted not in answer.content.decode()
