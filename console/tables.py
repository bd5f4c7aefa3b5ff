"""Columns of resource lists, and FHIR values as short text. Pure, apart from the definitions."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlencode

from console.navigation import page_of
from console.timeline import instant
from fhirstore.api import search_parameters, structure

DEFAULT_FIELDS: Final[dict[str, tuple[str, ...]]] = {
    "AccessPolicy": ("name",),
    "AuditEvent": ("outcome", "recorded"),
    "Bot": ("name",),
    "ClientApplication": ("name", "description"),
    "Communication": ("status", "subject", "sent"),
    "Encounter": ("status", "subject", "period"),
    "Observation": ("status", "code", "subject", "effective"),
    "Organization": ("name",),
    "Patient": ("name", "birthDate", "gender"),
    "Practitioner": ("name",),
    "ProjectMembership": ("profile", "admin"),
    "Questionnaire": ("title", "status"),
    "Subscription": ("status", "criteria"),
    "Task": ("status", "code", "focus"),
}
"""Columns between `id` and `_lastUpdated` where nobody has chosen any."""

CONTROL_PARAMETERS: Final = frozenset({"_count", "_offset", "_fields", "_sort", "_total"})
"""Parameters of a list that are no filters."""

PEOPLE: Final = frozenset({"Patient", "Person", "Practitioner", "RelatedPerson", "PractitionerRole", "User"})
"""Types whose names stay out of page titles, toasts and addresses."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One value in a list. `moment` is shown as a time, `url` makes a link."""

    text: str
    label: str
    url: str = ""
    moment: str = ""
    mono: bool = False


@dataclass(frozen=True, slots=True)
class Column:
    """A column head. `sort` is `ascending`, `descending` or empty; `url` sorts by it, empty if it cannot be sorted by."""

    name: str
    url: str = ""
    sort: str = ""


def default_fields(resource_type: str) -> list[str]:
    """Columns of a type when the address names none."""
    chosen = DEFAULT_FIELDS.get(resource_type)
    if chosen is None:
        known = element_names(resource_type)
        chosen = tuple(name for name in ("name", "title", "status", "code", "subject") if name in known)[:3]
    return ["id", *chosen, "_lastUpdated"]


def element_names(resource_type: str) -> list[str]:
    """Names of the top-level elements of a type, choices without their type."""
    found = structure(resource_type)
    return [element.name for element in found.children()] if found else []


def unknown_fields(resource_type: str, fields: Sequence[str]) -> list[str]:
    """Names in `_fields` that are neither elements nor search parameters of the type."""
    known = {*element_names(resource_type), "id", "_id", "_lastUpdated", *search_parameters(resource_type)}
    return [name for name in fields if name not in known]


def columns(resource_type: str, fields: Sequence[str], query: Sequence[tuple[str, str]]) -> list[Column]:
    """Heads of the columns, with links that sort by them.

    Args:
        resource_type: the type of the list.
        fields: names of the columns.
        query: parameters of the present address.
    """
    sort = dict(query).get("_sort", "").split(",")[0]
    return [_column(resource_type, name, sort, query) for name in fields]


def row(resource: Mapping[str, Any], fields: Sequence[str]) -> list[Cell]:
    """The cells of one resource."""
    return [_cell(resource, name) for name in fields]


def offset_of(query: Mapping[str, str]) -> int:
    """`_offset` of an address: 0 unless it is a number the search takes (at most 10 000)."""
    text = query.get("_offset", "")
    return min(int(text), MAX_OFFSET) if re.fullmatch(r"[0-9]{1,9}", text) else 0


MAX_OFFSET: Final = 10_000
"""Of a search; who has more rows than that narrows the list."""


def pages(keep: Sequence[tuple[str, str]], offset: int, size: int, has_next: bool) -> dict[str, str]:
    """The links of a list's pager, empty where there is no such page; `pager_text` says so where rows cannot be reached by it.

    Args:
        keep: the other parameters of the address.
        offset: rows before this page.
        size: rows of a page.
        has_next: there are rows behind it.
    """
    is_end = has_next and offset + size > MAX_OFFSET
    return {
        "previous": f"?{with_parameters(keep, offset=max(offset - size, 0))}" if offset else "",
        "next": f"?{with_parameters(keep, offset=offset + size)}" if has_next and not is_end else "",
        "pager_text": f"Only the first {offset + size:,} are listed. Search to see others." if is_end else "",
    }


def search_text(text: str) -> str:
    """Text as one value of a search: its commas and bars stand for themselves."""
    return re.sub(r"([\\,|$])", r"\\\1", text)


def with_parameters(query: Sequence[tuple[str, str]], **changes: str | int | None) -> str:
    """Return a query string with parameters replaced (None removes); underscores of the keywords become `_`-prefixes."""
    names = {f"_{name}": value for name, value in changes.items()}
    kept = [(name, value) for name, value in query if name not in names]
    added = [(name, str(value)) for name, value in names.items() if value is not None]
    return urlencode([*kept, *added], safe=",/|:")


def resource_name(resource: Mapping[str, Any]) -> str:
    """A name for people: of the resource, else its type and the end of its id."""
    for element in ("name", "title", "code", "criteria"):
        text = text_of(resource.get(element))
        if text:
            return text
    return f"{resource.get('resourceType', 'Resource')} {short_id(resource)}"


def short_id(resource: Mapping[str, Any]) -> str:
    """The end of the id: ids made in the same minute begin alike."""
    return str(resource.get("id") or "")[-8:]


def page_title(resource: Mapping[str, Any]) -> str:
    """What may stand in a browser's history: names of things, never of people."""
    if resource.get("resourceType") in PEOPLE:
        return f"{resource['resourceType']} {short_id(resource)}"
    return resource_name(resource)[:80]


def text_of(value: Any) -> str:
    """A FHIR value as one line of text; empty if it has nothing to show."""
    if value is None or value == "":
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str | int | float):
        return str(value)
    if isinstance(value, list):
        return ", ".join(text for part in value[:3] if (text := text_of(part))) + (
            " …" if len(value) > 3 else ""
        )
    if isinstance(value, Mapping):
        return _text_of_object(value)
    return ""


def _text_of_object(value: Mapping[str, Any]) -> str:
    """HumanName, CodeableConcept, Coding, Reference, Identifier, Quantity, Period, Address, ContactPoint, Attachment."""
    if "family" in value or "given" in value:
        parts = [*value.get("prefix", []), *value.get("given", []), value.get("family", "")]
        return " ".join(str(part) for part in parts if part)
    for plain in ("text", "display", "reference"):
        if isinstance(value.get(plain), str):
            return str(value[plain])
    if "coding" in value:
        return text_of(value["coding"])
    if "value" in value:
        unit = value.get("unit") or value.get("code") or ""
        return f"{value['value']} {unit}".strip()
    if "start" in value or "end" in value:
        return f"{value.get('start', '…')} to {value.get('end', '…')}"
    if "line" in value or "city" in value:
        return ", ".join(
            [*value.get("line", []), *(value[k] for k in ("postalCode", "city", "country") if k in value)]
        )
    for plain in ("code", "title", "url"):
        if isinstance(value.get(plain), str):
            return str(value[plain])
    return ""


def _cell(resource: Mapping[str, Any], name: str) -> Cell:
    own = f"/{resource['resourceType']}/{resource['id']}"
    if name in ("id", "_id"):
        return Cell(resource["id"], name, url=own, mono=True)
    if name == "_lastUpdated":
        return Cell("", name, moment=(resource.get("meta") or {}).get("lastUpdated") or "")
    value = _element(resource, name)
    text = text_of(value)
    if isinstance(value, Mapping) and isinstance(value.get("reference"), str):
        return Cell(text, name, url=page_of(value["reference"]))
    if instant(value):
        return Cell(text, name, moment=value)
    return Cell(text, name, url=own if name in ("name", "title") and text else "")


def _element(resource: Mapping[str, Any], name: str) -> Any:
    """The value of an element by its name, a choice by its stem, a search parameter by the element it is called after."""
    camel = re.sub(r"-([a-z])", lambda found: found.group(1).upper(), name)
    for wanted in (name, camel):
        if wanted in resource:
            return resource[wanted]
    choice = re.compile(rf"{re.escape(camel)}[A-Z]\w*")
    for key, value in resource.items():
        if choice.fullmatch(key) or key.lower() == name.lower():
            return value
    return None


def _column(resource_type: str, name: str, sort: str, query: Sequence[tuple[str, str]]) -> Column:
    codes = search_parameters(resource_type)
    kebab = re.sub(r"([A-Z])", lambda found: f"-{found.group(1).lower()}", name).lstrip("-")
    wanted = ("_id" if name == "id" else name, name.lower(), kebab)
    code = next((c for c in wanted if c in codes), None)
    if code is None:
        return Column(name)
    now = {code: "ascending", f"-{code}": "descending"}.get(sort, "")
    target = code if now == "descending" else f"-{code}"
    return Column(name, f"?{with_parameters(query, sort=target, offset=0)}", now)
