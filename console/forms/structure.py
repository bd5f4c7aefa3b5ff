"""A form made from a StructureDefinition: the resource itself is its state.

The page carries the resource as JSON; each request lays the controls over it and draws it again. So adding and removing
parts, changing a choice and switching to JSON are ordinary posts, and what no control can show is kept as it was.
Controls are called after the path of their value, with dots: ``name.0.given.1``; in HTML with ``r.`` in front.
"""

from __future__ import annotations

import copy
import itertools
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

import orjson

from console.forms.nodes import (
    NUMBERS,
    PRIMITIVES,
    Json,
    Node,
    Number,
    all_nodes,
    blank,
    choices_of,
    element_at,
    group_of,
    is_shown,
    names_of,
)
from fhirstore.api import FhirError, parse_json, structure

MAX_CONTROLS: Final = 1000
"""Controls of a form: drawing them takes a millisecond or two each. What needs more is edited as JSON."""
MAX_VALUES: Final = 2000
"""Values of a resource that a form is laid over."""


class StructureForm:
    """The form of one resource.

    Args:
        type: resource type.
        resource: where a new page starts from.
        data: what was posted, None for a new page.
        version: version of `resource`, sent back in `If-Match`.

    Attributes:
        resource: the resource as the form says it, without empty parts.
        messages: errors that belong to no control.
        view: ``form`` or ``json``; empty on a new page.
        is_submitted: *Create* or *Update* was pressed, and everything could be read.
        is_too_large: for a form, so that it is shown as JSON.
    """

    def __init__(
        self, type: str, resource: Json, data: Mapping[str, str] | None = None, *, version: str = ""
    ) -> None:
        self.type = type
        self.state: Json = copy.deepcopy(resource)
        self.version = version
        self.view = ""
        self.json_text = ""
        self.messages: list[str] = []
        self.errors: dict[str, str] = {}
        self.is_submitted = self.is_too_large = False
        if data is None:
            self._open_first()
        else:
            self._receive(data)

    @property
    def resource(self) -> Json:
        """The resource, without empty strings, lists and objects."""
        cleaned: Json = without_empty(_plain(self.state)) or {}
        return {"resourceType": self.type, **cleaned}

    @property
    def shortened(self) -> list[str]:
        """Paths of the numbers whose zeros at the end the store does not keep."""
        return [path for path, number in _numbers(self.state, self.type) if not number.is_kept_as_written]

    @property
    def is_refused(self) -> bool:
        """Something has to be corrected."""
        return bool(self.messages or self.errors)

    @property
    def base(self) -> str:
        """The state as the page carries it."""
        return _written(self.state)

    @property
    def text(self) -> str:
        """What stands in the *JSON* text box."""
        cleaned = without_empty(self.state) or {}
        return self.json_text or _written({"resourceType": self.type, **cleaned}, orjson.OPT_INDENT_2)

    @property
    def root(self) -> Node:
        """The form as a tree, with errors at their controls."""
        root = group_of(self.type, self.type, self.state, "", self.type)
        for node in root.controls():
            node.error = self.errors.get(node.name, "")
        return root

    @property
    def kept(self) -> list[str]:
        """Top-level elements that have a value but no control."""
        found = structure(self.type)
        shown = {name for e in (found.children() if found else ()) if is_shown(e) for name in names_of(e)}
        return [
            name for name in self.state if name not in shown and name not in ("resourceType", "id", "meta")
        ]

    def show(self, view: str) -> None:
        """Say how a new page is drawn, ``form`` or ``json``; what is too large for a form is drawn as JSON anyhow."""
        self.view = self.view or view
        if self.view != "json" and (
            _are_more(_values(self.state), MAX_VALUES) or _are_more(self.root.controls(), MAX_CONTROLS)
        ):
            self.view, self.is_too_large = "json", True

    def refuse(self, error: FhirError) -> None:
        """Put the issues of a refusal next to their controls, the rest on top."""
        names = [node.name for node in self.root.controls()] if self.view == "form" else []
        for issue in error.outcome.get("issue") or []:
            text = (issue.get("details") or {}).get("text") or issue.get("diagnostics") or "Not accepted"
            expressions = issue.get("expression") or [""]
            path = control_name(expressions[0])
            name = next((n for n in names if n == path or n == f"{path}.0"), None)
            if name is not None:
                self.errors[name] = text
            else:
                self.messages.append(f"{text} ({expressions[0]})" if expressions[0] else text)
        if not self.is_refused:
            self.messages.append(str(error))
        self.is_submitted = False

    def _open_first(self) -> None:
        """A new form starts with its names and its required parts open."""
        found = structure(self.type)
        for element in found.children() if found else ():
            code = element.types[0].code if element.types else ""
            wanted = element.min > 0 or code == "HumanName"
            if (
                wanted
                and not element.choice
                and code not in PRIMITIVES
                and is_shown(element)
                and not self.state.get("id")
            ):
                self.state.setdefault(element.name, [blank(code)] if element.array else blank(code))

    def _receive(self, data: Mapping[str, str]) -> None:
        self.version = data.get("version", self.version)
        self.view = "json" if data.get("mode") == "json" else "form"
        try:
            if self.view == "json":
                self.json_text = data.get("json", "")
                self.state = _read_object(self.json_text)
            else:
                self.state = _read_object(data.get("base", "{}"))
                if _are_more(_values(self.state), MAX_VALUES):
                    raise ValueError("This is too large for a form. Edit it as JSON.")
                self._lay_over(data)
        except ValueError as error:
            self.messages.append(str(error))
            return
        if name := data.get("add"):
            _add(self.type, self.state, name)
        elif name := data.get("drop"):
            _remove(self.state, name)
        elif data.get("switch") in ("form", "json"):
            self.view, self.json_text = data["switch"], ""
        else:
            self.is_submitted = data.get("action") == "save" and self._are_numbers_kept()

    def _are_numbers_kept(self) -> bool:
        """Refuse numbers that would be stored as others."""
        for path, number in _numbers(self.state, self.type):
            if not number.is_kept:
                text = "This number has more digits than the server keeps (about 16), or is too large. Shorten it."
                if self.view == "form":
                    self.errors[control_name(path)] = text
                else:
                    self.messages.append(f"{text} ({path})")
        return not self.is_refused

    def _lay_over(self, data: Mapping[str, str]) -> None:
        for choice in choices_of(self.root):
            _choose(self.state, choice, data.get(choice.field, choice.value))
        for node in self.root.controls():
            if node.field in data:
                _put(self.state, node.name, _typed(node, data[node.field].replace("\r\n", "\n")))
        _compact(self.state)


def control_name(expression: str) -> str:
    """``Patient.name[0].given[1]`` → ``name.0.given.1``."""
    path = re.sub(r"\[(\d+)\]", r".\1", expression)
    return path.partition(".")[2]


def without_empty(value: Any) -> Any:
    """A JSON value without empty strings, lists, objects and nulls; None if nothing is left."""
    if isinstance(value, dict):
        kept = {name: part for name, raw in value.items() if (part := without_empty(raw)) is not None}
        return kept or None
    if isinstance(value, list):
        return [part for raw in value if (part := without_empty(raw)) is not None] or None
    return None if value in ("", None) else value


def _values(value: Any) -> Iterator[Any]:
    """Every value inside a JSON value."""
    waiting = [value]
    while waiting:
        each = waiting.pop()
        yield each
        if isinstance(each, dict | list):
            waiting.extend(each.values() if isinstance(each, dict) else each)


def _are_more(things: Iterator[Any], limit: int) -> bool:
    return sum(1 for _ in itertools.islice(things, limit + 1)) > limit


def read_exactly(text: bytes | str) -> Any:
    """A JSON value whose numbers keep their digits."""
    return json.loads(text, parse_float=Number, parse_int=_integer)


def _integer(text: str) -> int | Number:
    # JSON of 64 bits is what the store reads as an integer; Python limits the digits of longer ones.
    return int(text) if len(text) < 19 else Number(text)


def _written(value: Any, option: int = 0) -> str:
    """JSON with numbers as they were written."""
    return orjson.dumps(value, default=lambda number: orjson.Fragment(str(number)), option=option).decode()


def _plain(value: Any) -> Any:
    """A JSON value as the store takes it."""
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    return float(value) if isinstance(value, Number) else value


def _numbers(value: Any, path: str) -> Iterator[tuple[str, Number]]:
    """The numbers with a fraction or an exponent, with their paths."""
    if isinstance(value, dict):
        for name, part in value.items():
            yield from _numbers(part, f"{path}.{name}")
    elif isinstance(value, list):
        for place, part in enumerate(value):
            yield from _numbers(part, f"{path}[{place}]")
    elif isinstance(value, Number):
        yield path, value


# --- changing the state -----------------------------------------------------------------------------------------


def _read_object(text: str) -> Json:
    try:
        parse_json(text.encode())
    except FhirError as error:
        raise ValueError(f"{error}.".replace("The request body", "The text")) from None
    value = read_exactly(text)
    if not isinstance(value, dict):
        raise ValueError("A resource is a JSON object.")
    return value


_NUMBER: Final = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")


def _typed(node: Node, text: str) -> Any:
    """The JSON value of a control's text. What is no number stays text: validation says so at the control."""
    if node.type == "boolean":
        return {"true": True, "false": False}.get(text, "")
    if node.type in NUMBERS:
        text = text.strip()
        return read_exactly(text) if _NUMBER.fullmatch(text) else text
    return text if node.kind == "area" else text.strip()


def _walk(state: Any, parts: list[str]) -> Any:
    """The container of the last part of a path, None if the path does not exist."""
    for part in parts[:-1]:
        if isinstance(state, list):
            state = state[int(part)] if part.isdecimal() and int(part) < len(state) else None
        elif isinstance(state, dict):
            state = state.get(part)
        else:
            return None
    return state


def _put(state: Json, name: str, value: Any) -> None:
    parts = name.split(".")
    if parts[-1].isdecimal():
        owner = _walk(state, parts[:-1])
        if not isinstance(owner, dict):
            return
        values = owner.setdefault(parts[-2], [])
        index = int(parts[-1])
        if isinstance(values, list):
            values[index : index + 1] = [value]
        return
    owner = _walk(state, parts)
    if not isinstance(owner, dict):
        return
    if value == "" and parts[-1] not in owner:
        return
    owner[parts[-1]] = value


def _choose(state: Json, choice: Node, code: str) -> None:
    """Change the type of a choice: the old value goes, an empty one of the new type comes."""
    if code == choice.value or code not in dict(choice.options):
        return
    stem = choice.name.removesuffix("[x]")
    owner = _walk(state, stem.split("."))
    if not isinstance(owner, dict):
        return
    name = stem.rpartition(".")[2]
    if choice.value:
        owner.pop(name + choice.value[0].upper() + choice.value[1:], None)
    if code:
        owner[name + code[0].upper() + code[1:]] = "" if code in PRIMITIVES else {}


def _add(type: str, state: Json, name: str) -> None:
    """Open a part the form offers, and nothing else."""
    offered = {
        added for node in all_nodes(group_of(type, type, state, "", type)) for added, _label in node.additions
    }
    if name not in offered:
        return
    parts = name.split(".")
    owner = _walk(state, parts)
    if not isinstance(owner, dict):
        return
    element = element_at(type, state, name)
    code = element.types[0].code if element and element.types else ""
    if element is not None and element.array:
        present = owner.get(parts[-1])
        owner[parts[-1]] = [*(present if isinstance(present, list) else []), blank(code)]
    else:
        owner[parts[-1]] = blank(code)


def _remove(state: Json, name: str) -> None:
    parts = name.split(".")
    owner = _walk(state, parts)
    if isinstance(owner, list) and parts[-1].isdecimal() and int(parts[-1]) < len(owner):
        del owner[int(parts[-1])]
    elif isinstance(owner, dict):
        owner.pop(parts[-1], None)


def _compact(value: Any) -> None:
    """Drop the empty entries of lists of primitives; the form draws one blank at their end anyway."""
    parts = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    if isinstance(value, list):
        value[:] = [part for part in value if part != ""]
    for part in parts:
        _compact(part)
