"""Reading request bodies: JSON and forms, with a clear refusal for everything else."""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import parse_qsl

import orjson

from fhirstore.errors import bad_request, unsupported_media_type
from fhirstore.rest.messages import FhirRequest

MAX_DEPTH: Final = 100
"""Levels of objects and arrays a body may nest: far above any FHIR resource, far below Python's recursion limit."""
TOO_DEEP: Final = f"nested too deeply: more than {MAX_DEPTH} levels"


def media_type(request: FhirRequest) -> str:
    """The Content-Type without parameters, in lower case; empty if there is none."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def read_json(request: FhirRequest) -> Any:
    """Return the body as JSON.

    Raises:
        FhirError: 415 for a content type other than JSON, 400 for an empty or malformed body.
    """
    kind = media_type(request)
    if kind and not (kind == "application/json" or kind.endswith("+json")):
        raise unsupported_media_type(f"Unsupported content type: {kind}. Send application/fhir+json")
    return parse_json(request.body)


def parse_json(body: bytes) -> Any:
    """Return bytes as JSON.

    Raises:
        FhirError: 400, saying what is wrong and where.
    """
    if not body or body.isspace():
        raise bad_request("The request body is empty; expected JSON")
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise bad_request(_json_fault(body, error)) from None
    if is_deep(value, body):
        raise bad_request(f"The JSON is {TOO_DEEP}")
    return value


def read_resource(request: FhirRequest) -> dict[str, Any]:
    """Return the body as a JSON object; raises FhirError as :func:`read_json`, and 400 for anything but an object."""
    value = read_json(request)
    if not isinstance(value, dict):
        raise bad_request(f"Expected a resource (a JSON object), found {_kind(value)}")
    return value


def read_form(request: FhirRequest) -> list[tuple[str, str]]:
    """Return the pairs of a form body (``application/x-www-form-urlencoded``).

    Raises:
        FhirError: 415 for another content type, 400 for bytes that are no UTF-8.
    """
    kind = media_type(request)
    if not request.body:
        return []
    if kind != "application/x-www-form-urlencoded":
        raise unsupported_media_type(
            f"Unsupported content type: {kind or 'none'}. Send application/x-www-form-urlencoded"
        )
    try:
        return parse_qsl(request.body.decode(), keep_blank_values=True, errors="strict", max_num_fields=1000)
    except ValueError:
        raise bad_request("The form is not valid: it must be UTF-8, with at most 1000 fields") from None


def _json_fault(body: bytes, error: orjson.JSONDecodeError) -> str:
    """Say what is wrong with a body without quoting it: it may hold patient data."""
    try:
        body.decode()
    except UnicodeDecodeError as fault:
        return f"The request body is not UTF-8 (byte {fault.start})"
    if "depth limit" in error.msg or "ecursion" in error.msg:
        return f"The JSON is {TOO_DEEP}"
    return f"The request body is not valid JSON: {error}"


def is_deep(value: Any, text: bytes = b"") -> bool:
    """True if a JSON value nests more than :data:`MAX_DEPTH` levels; walks level by level, so without recursion.

    Args:
        text: what the value was read from, if at hand: with few brackets it spares the walk.
    """
    if text and text.count(b"{") + text.count(b"[") <= MAX_DEPTH:
        return False
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for each in level
            for child in (each.values() if isinstance(each, dict) else each if isinstance(each, list) else ())
            if isinstance(child, (dict, list))
        ]
        if not level:
            return False
    return True


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    names = {list: "an array", str: "a string", bool: "a boolean"}
    return names.get(type(value), "a number")
