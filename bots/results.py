"""From what a handler did to the HTTP answer (shared/medplum/execute.md §6). Pure: nothing is read or written here."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any, Final

import orjson

from bots.inputs import HL7
from bots.sandbox.api import Result
from fhirstore.api import (
    TOO_DEEP,
    Outcome,
    all_ok,
    bad_request,
    is_deep,
    is_ok,
    is_resource_type,
    issue,
    outcome,
    status_of,
)

FHIR_JSON: Final = "application/fhir+json"
MIRRORED: Final = frozenset({"text/plain", HL7})
"""Request content types that the answer takes over, if they are exactly these."""

NOT_THE_BOTS: Final = frozenset(
    {
        "cache-control",
        "clear-site-data",
        "connection",
        "content-encoding",
        "content-length",
        "content-security-policy",
        "date",
        "expires",
        "keep-alive",
        "pragma",
        "ratelimit",
        "referrer-policy",
        "server",
        "service-worker-allowed",
        "set-cookie",
        "strict-transport-security",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "x-content-type-options",
        "x-frame-options",
    }
)
"""Headers a Bot cannot set: of the connection, and those that protect the console on the same origin."""
NOT_THE_BOTS_PREFIXES: Final = ("access-control-", "cross-origin-", "proxy-", "sec-")
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9a-z-]+")
_HEADER = re.compile(r"[\t\x20-\x7e\x80-\xff]*")

NOT_AGAIN: Final = '"bot";r=0;t=3'
"""``RateLimit`` of answers with 429 or 5xx: the client gives up at once when it would have to wait for more than two seconds."""

Binary = tuple[str, bytes]
"""Content type and bytes of a stored Binary."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer; ``content_type`` stands apart from the other headers."""

    status: int
    content_type: str
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


def bounded(run: Result) -> Result:
    """The run, as a failed one if it returned or threw JSON that nests deeper than the API takes: what handles it recurses."""
    if is_deep(run.value, run.value_json) or is_deep(run.outcome):
        return replace(
            run,
            ok=False,
            failure="output",
            value=None,
            value_json=b"",
            value_kind="undefined",
            outcome=None,
            error=f"The result cannot be sent as JSON: it is {TOO_DEEP}.",
            stack=None,
        )
    return run


def returned_outcome(run: Result) -> Outcome | None:
    """The OperationOutcome the handler returned or threw, if it did."""
    if run.outcome is not None:
        return run.outcome
    if isinstance(run.value, dict) and run.value.get("resourceType") == "OperationOutcome":
        return run.value
    return None


def failure_of(run: Result) -> str | None:
    """The kind of failure of a run; ``outcome`` where the handler ended well but said that something is wrong."""
    if run.failure is not None:
        return run.failure
    said = returned_outcome(run)
    if (run.response_status or 200) >= 400:
        return "outcome"
    return None if run.ok and (said is None or is_ok(said)) else "outcome"


def is_forbidden(run: Result) -> bool:
    """True if the run failed because the Bot may not do what it tried."""
    said = returned_outcome(run)
    return said is not None and said.get("id") == "forbidden"


def answer_to(
    run: Result,
    *,
    content_type: str | None,
    log_text: str,
    binary: Callable[[str], Binary],
    presign: Callable[[bytes], bytes],
) -> Answer:
    """Return the answer for a finished run.

    Args:
        content_type: of the request, exactly as received; None on GET.
        log_text: text for a failure that has no better words.
        binary: reads a stored Binary by its id; raises FhirError as the Repository does.
        presign: gives the attachments of a resource addresses that open without login, where the Bot may read them.
    """
    said = returned_outcome(run)
    if said is not None:
        return outcome_answer(said)
    if run.failure == "code" and run.error:
        return refusal(run.error)
    if not run.ok:
        return refusal(log_text)
    if run.value_kind == "response":
        return _own_answer(run)
    if run.value_kind == "undefined":
        return outcome_answer(all_ok())
    if isinstance(run.value, dict) and is_resource_type(str(run.value.get("resourceType"))):
        if run.value["resourceType"] == "Binary":
            return _binary_answer(run.value, binary)
        return Answer(200, FHIR_JSON, presign(orjson.dumps(run.value)), _version_headers(run.value))
    return _value_answer(run, content_type)


def value_as_json(run: Result, *, presign: Callable[[bytes], bytes]) -> Answer:
    """What a handler returned, as JSON whatever it is; an empty body if it returned nothing."""
    if run.value_kind == "undefined":
        return Answer(200, "application/json", b"")
    value = run.value
    if run.value_kind == "response":
        try:
            value = orjson.loads(run.value) if run.value else None
        except orjson.JSONDecodeError:
            value = run.value.decode("utf-8", "replace")
        if is_deep(value, run.value):
            value = run.value.decode("utf-8", "replace")
    elif run.value_kind == "binary":
        value = base64.b64encode(run.value).decode()
    content = orjson.dumps(value)
    return Answer(200, "application/json", presign(content) if isinstance(value, dict) else content)


def job_output(run: Result, answer: Answer) -> list[dict[str, Any]]:
    """The parameters of an AsyncJob's output (shared/medplum/execute.md §7): what the handler returned, or the outcome."""
    said = returned_outcome(run)
    if said is not None:
        return outcome_output(said)
    if not run.ok:
        return outcome_output(orjson.loads(answer.body))
    if (run.response_status or 200) >= 400:
        return outcome_output(
            refusal_of(f"The Bot answered with status {run.response_status}", code="processing")
        )
    if run.value_kind == "boolean":
        return [{"name": "responseBody", "valueBoolean": run.value}]
    if run.value_kind == "response" and _is_text(answer):
        name, text = "valueString", answer.body.decode()
    elif run.value_kind in ("binary", "response"):
        name, text = "valueBase64Binary", base64.b64encode(run.value).decode()
    elif run.value_kind in ("string", "hl7"):
        name, text = "valueString", str(run.value)
    else:
        name, text = "valueString", run.value_json.decode()
    # Nothing (undefined) is text too; and no element of FHIR may be empty.
    return [{"name": "responseBody", name: text}] if text else outcome_output(all_ok())


def _is_text(answer: Answer) -> bool:
    try:
        answer.body.decode()
    except UnicodeDecodeError:
        return False
    return True


def outcome_output(said: Outcome) -> list[dict[str, Any]]:
    """The parameters of the output of a job that ended with an outcome."""
    return [{"name": "outcome", "resource": said}]


def outcome_answer(said: Outcome) -> Answer:
    """An OperationOutcome with the status that belongs to its id."""
    return Answer(status_of(said), FHIR_JSON, orjson.dumps(said))


def refusal(text: str) -> Answer:
    """400 with this text. Never a 5xx: the client would send the request again, and the Bot would run twice."""
    return outcome_answer(bad_request(text or "The Bot failed without a message").outcome)


def refusal_of(text: str, *, code: str) -> Outcome:
    """The outcome of :func:`refusal` with another issue code."""
    return outcome(None, [issue(text, code=code)])


def _own_answer(run: Result) -> Answer:
    """The HTTP answer a handler has made itself, without headers that are the server's affair."""
    headers = allowed_headers(run.response_headers)
    content_type = headers.pop("content-type", "application/octet-stream" if run.value else "text/plain")
    return Answer(run.response_status or 200, content_type, bytes(run.value or b""), headers)


def allowed_headers(given_headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    """What a Bot may say in the headers of its answer, by lower-case name."""
    headers: dict[str, str] = {}
    for given, value in given_headers:
        name = given.lower()
        if name in NOT_THE_BOTS or name.startswith(NOT_THE_BOTS_PREFIXES):
            continue
        if not _NAME.fullmatch(name) or not _HEADER.fullmatch(value):
            continue
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


def unrepeated(status: int, headers: dict[str, str]) -> dict[str, str]:
    """Headers that keep MedplumClient from sending a request again on its own: the Bot would run up to three times."""
    return {**headers, "RateLimit": NOT_AGAIN} if status >= 500 or status == 429 else headers


def _binary_answer(resource: dict[str, Any], binary: Callable[[str], Binary]) -> Answer:
    data = resource.get("data")
    if data is None and resource.get("id"):
        return Answer(200, *binary(str(resource["id"])))
    try:
        content = base64.b64decode(data or "", validate=True)
    except (binascii.Error, TypeError, ValueError):
        return refusal("The Bot returned a Binary whose data is not base64")
    return Answer(200, type_of_binary(resource), content)


def type_of_binary(resource: dict[str, Any]) -> str:
    """The content type a Binary names, if a header can say it."""
    named = str(resource.get("contentType") or "")
    return named if named and _HEADER.fullmatch(named) else "application/octet-stream"


def _version_headers(resource: dict[str, Any]) -> dict[str, str]:
    """ETag and Last-Modified, as far as ``meta`` tells."""
    meta = resource.get("meta")
    headers: dict[str, str] = {}
    if isinstance(meta, dict):
        if isinstance(meta.get("versionId"), str) and _HEADER.fullmatch(meta["versionId"]):
            headers["ETag"] = f'W/"{meta["versionId"]}"'
        try:
            moment = datetime.fromisoformat(meta["lastUpdated"]).astimezone(UTC)
            headers["Last-Modified"] = format_datetime(moment, usegmt=True)
        except (KeyError, TypeError, ValueError):
            pass  # a resource the Bot made up: it may say anything there
    return headers


def _value_answer(run: Result, content_type: str | None) -> Answer:
    mirrored = content_type if content_type in MIRRORED else None
    if run.value_kind == "hl7":
        return Answer(200, HL7 if content_type == HL7 else mirrored or "text/plain", str(run.value).encode())
    if run.value_kind == "binary":
        return Answer(200, "application/octet-stream", bytes(run.value))
    if run.value_kind == "null":
        return Answer(200, mirrored or "application/json", b"")
    if run.value_kind == "string":
        text = str(run.value).encode("utf-8", "replace")
        return Answer(200, mirrored or _type_of_text(text), text)
    return Answer(200, mirrored or "application/json", orjson.dumps(run.value))


def _type_of_text(text: bytes) -> str:
    """A string that is no JSON must not be called JSON: the client would fail to parse it (execute.md §6)."""
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        return "text/plain"
    return "application/json"
