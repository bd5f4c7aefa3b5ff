"""From an HTTP request to ``event.input`` (shared/medplum/execute.md §3)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final
from urllib.parse import parse_qsl

import orjson

from bots.request import InputKind
from fhirstore.api import TOO_DEEP, bad_request, is_deep

HL7: Final = "x-application/hl7-v2+er7"


def parse_input(
    *, method: str, content_type: str | None, body: bytes, query: str, raw_body: bool = False
) -> tuple[InputKind, Any]:
    """Return how the input is handed over and the input itself.

    Args:
        method: on ``GET`` the input is the query, ``identifier`` included; on ``POST`` the query never matters.
        content_type: as received, with parameters.
        body: raw.
        query: raw query string.
        raw_body: ``Bot.rawBody``: JSON stays the text it was.

    Raises FhirError(400) when the body is not what its type says.
    """
    if method == "GET":
        return "json", _fields(query)
    media_type = (content_type or "").partition(";")[0].strip().lower()
    if not body:
        return "json", {}
    if media_type == "application/json" or media_type.endswith("+json"):
        value = _json(body)
        return ("text", _text(body)) if raw_body else ("json", value)
    if media_type == "application/x-www-form-urlencoded":
        return "json", _fields(_text(body))
    if media_type == "text/plain":
        return "text", _text(body)
    if media_type == HL7:
        return ("hl7" if content_type == HL7 else "text"), _text(body)
    return "json", {}


def _json(body: bytes) -> Any:
    """An object or an array: Medplum takes no bare values either."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        value = None
    if not isinstance(value, dict | list):
        raise bad_request("Content could not be parsed")
    if is_deep(value, body):
        raise bad_request(f"Content could not be parsed: it is {TOO_DEEP}")
    return value


def _text(body: bytes) -> str:
    try:
        return body.decode()
    except UnicodeDecodeError:
        raise bad_request("Content could not be parsed: it is not UTF-8 text") from None


def _fields(encoded: str) -> dict[str, str | list[str]]:
    """A flat map; a repeated key becomes a list."""
    fields: dict[str, str | list[str]] = {}
    for name, value in _pairs(encoded):
        known = fields.get(name)
        if known is None:
            fields[name] = value
        elif isinstance(known, list):
            known.append(value)
        else:
            fields[name] = [known, value]
    return fields


def _pairs(encoded: str) -> Iterable[tuple[str, str]]:
    try:
        return parse_qsl(encoded, keep_blank_values=True, max_num_fields=10_000)
    except ValueError:
        raise bad_request("Content could not be parsed: too many fields") from None
