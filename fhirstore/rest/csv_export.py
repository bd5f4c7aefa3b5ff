"""``/T/$csv``: matches of a search as a table for spreadsheets."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any, Final
from urllib.parse import parse_qsl

import orjson

from fhirstore.definitions import registry
from fhirstore.errors import bad_request
from fhirstore.operations import OperationRequest, register_operation
from fhirstore.rest.body import read_form
from fhirstore.rest.messages import FhirResponse
from fhirstore.rest.response import resource_json
from fhirstore.search import expressions
from fhirstore.search.parse import MAX_COUNT

Json = dict[str, Any]

MAX_COLUMNS: Final = 100
MAX_LENGTH: Final = 8000
"""Characters of all fields together."""
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")
"""A text that begins so is a formula to a spreadsheet (https://owasp.org/www-community/attacks/CSV_Injection)."""


def register() -> None:
    """Register the operation; called once at start-up."""
    register_operation("$csv", export_csv, type=True)


def export_csv(request: OperationRequest) -> FhirResponse:
    """``/T/$csv?_fields=a,b&…``: a column for each field, a row for each match, at most 1000.

    A field is a search parameter or a FHIRPath of those search parameters are made of; of several values the first counts.
    ``_count``, ``_offset``, ``_sort`` and all else are as in a search. POST takes a form as well.

    Raises:
        FhirError: 400 without ``_fields``, for a field that cannot be read, or a search that is not valid.
    """
    assert request.type is not None
    pairs = parse_qsl(request.query, keep_blank_values=True)
    if request.method == "POST":
        pairs += read_form(request)
    texts = [text for name, text in pairs if name == "_fields"]
    if sum(map(len, texts)) > MAX_LENGTH:
        raise bad_request(f"Too long _fields (max {MAX_LENGTH} characters)")
    fields = [field for text in texts for field in _split(text)]
    if not fields:
        raise bad_request("Missing _fields parameter")
    if len(fields) > MAX_COLUMNS:
        raise bad_request(f"Too many _fields (max {MAX_COLUMNS})")
    query = [pair for pair in pairs if pair[0] != "_fields"]
    search = request.repository.parse(request.type, query, base_url=f"{request.base_url}fhir/R4/")
    if not any(name == "_count" for name, _ in query):
        search = replace(search, count=MAX_COUNT)
    columns = [_column(request.type, field) for field in fields]
    lines = [",".join(_cell(field, quote=False) for field in fields)]
    for stored in request.repository.search(search).entries:
        resource = resource_json(request, stored)
        lines.append(",".join(_cell(_shown(next(column(resource), None))) for column in columns))
    headers = {
        "content-type": "text/csv; charset=utf-8",
        "content-disposition": "attachment; filename=export.csv",
    }
    # the byte order mark tells spreadsheets that it is UTF-8
    return FhirResponse(200, "\ufeff".encode() + "\n".join(lines).encode(errors="replace"), headers)


def _split(text: str) -> list[str]:
    """The fields of a comma list; commas in brackets or quotes belong to the field."""
    parts = re.findall(r"(?:'[^']*'|\((?:'[^']*'|[^')])*\)|[^,'(])+", text)
    return [part.strip() for part in parts if part.strip()]


# --- values ------------------------------------------------------------------------------------------------------------


def _column(type: str, field: str) -> Callable[[Json], Iterator[Any]]:
    """A function that yields the values of a field."""
    parameter = registry.search_parameter(type, field)
    try:
        paths = expressions.resolve(
            type, parameter.expression if parameter and parameter.expression else field, registry.structure
        )
    except (expressions.UnsupportedExpressionError, RecursionError):
        raise bad_request(f"Invalid FHIRPath expression in _fields: {field}") from None

    def values(resource: Json) -> Iterator[Any]:
        for path in paths:
            found: Iterable[Any] = [resource]
            for step in path.steps:
                found = [each for value in found for each in _step(value, step)]
            yield from found

    return values


def _step(value: Any, step: expressions.Step) -> Iterable[Any]:
    """What one step of a path leads to from a value."""
    match step:
        case expressions.Property(name, many, position):
            inner = value.get(name) if isinstance(value, dict) else None
            if many and isinstance(inner, list):
                items = inner if position is None else inner[position : position + 1]
                return [item for item in items if item is not None]
            return [] if inner is None else [inner]
        case expressions.Equals(name, wanted):
            return [value] if value.get(name) == wanted else []
        case expressions.Refers(type):
            return [value] if _target(value) == type else []
        case expressions.TargetType():
            return filter(None, [_target(value)])
        case expressions.Test(conditions):
            return [all(_holds(value, condition) for condition in conditions)]
        case expressions.Select(cases, default):
            return [next((chosen for condition, chosen in cases if _holds(value, condition)), default)]


def _holds(value: Json, condition: expressions.Condition) -> bool:
    found = [value.get(name) for name in condition.names]
    if condition.value is None:
        return any(each is not None for each in found)
    if condition.negated:
        return all(each != condition.value for each in found)
    return condition.value in found


def _target(reference: Json) -> str | None:
    """The resource type a Reference points to, as far as it tells."""
    parts = str(reference.get("reference", "")).partition("/_history/")[0].split("/")
    return parts[-2] if len(parts) >= 2 else reference.get("type")


# --- cells -------------------------------------------------------------------------------------------------------------


def _shown(value: Any) -> Any:
    """A value as people read it: text, number or boolean."""
    if not isinstance(value, dict):
        return value
    for fits, show in _WORDS:
        if fits in value:
            return show(value)
    return orjson.dumps(value).decode()


def _joined(*parts: Any) -> str:
    return " ".join(str(part) for part in parts if part not in (None, ""))


def _name(value: Json) -> str:
    return value.get("text") or _joined(
        *value.get("prefix", ()), *value.get("given", ()), value.get("family"), *value.get("suffix", ())
    )


def _address(value: Json) -> str:
    parts = [
        *value.get("line", ()),
        *(value.get(name) for name in ("city", "state", "postalCode", "country")),
    ]
    return value.get("text") or ", ".join(part for part in parts if part)


def _concept(value: Json) -> str:
    codings = value.get("coding") or [{}]
    return str(value.get("text") or codings[0].get("display") or codings[0].get("code") or "")


_WORDS: Final[tuple[tuple[str, Callable[[Json], Any]], ...]] = (
    ("family", _name),
    ("given", _name),
    ("city", _address),
    ("line", _address),
    ("coding", _concept),
    ("value", lambda value: _joined(value["value"], value.get("unit") or value.get("currency"))
        if isinstance(value["value"], (int, float)) else value["value"]),
    ("display", lambda value: value["display"]),
    ("code", lambda value: value["code"]),
    ("reference", lambda value: value["reference"]),
    ("start", lambda value: _joined(value["start"], "-", value.get("end"))),
    ("text", lambda value: value["text"]),
    ("url", lambda value: value["url"]),
)  # fmt: skip
"""How objects are shown, by a property they have; the first that fits."""


def _cell(value: Any, *, quote: bool = True) -> str:
    if value is None or value == "":
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str):
        return str(value)
    text = value.strip(" \n")
    if text.startswith(_FORMULA):
        text = f"'{text}"
    if quote or re.search(r'[",\r\n]', text):
        text = '"' + text.replace('"', '""') + '"'
    return text
