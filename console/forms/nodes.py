"""Draws the form of a resource: its elements as a tree of controls (`structure.py` says how the form works)."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final

from fhirstore.api import structure, value_set_codes

Json = dict[str, Any]


class Number(float):
    """A number as it is written: FHIR's decimals mean their precision, ``1.10`` is not ``1.1``.

    Attributes:
        text: its digits.
    """

    text: str

    def __new__(cls, text: str) -> Number:
        """Read a number in JSON's notation."""
        number = super().__new__(cls, text)
        number.text = text
        return number

    def __str__(self) -> str:
        return self.text

    @property
    def is_kept(self) -> bool:
        """The store, which reads numbers as 64-bit floats, keeps its value."""
        return math.isfinite(self) and Decimal(float.__repr__(self)) == Decimal(self.text)

    @property
    def is_kept_as_written(self) -> bool:
        """The store keeps its precision too: no zeros at the end go."""
        return self.is_kept and Decimal(float.__repr__(self)).as_tuple() == Decimal(self.text).as_tuple()


NUMBERS: Final = frozenset({"decimal", "integer", "positiveInt", "unsignedInt"})
TEXTS: Final = frozenset(
    {"base64Binary", "canonical", "code", "id", "markdown", "oid", "string", "uri", "url", "uuid"}
)
TIMES: Final = frozenset({"date", "dateTime", "instant", "time"})
PRIMITIVES: Final = NUMBERS | TEXTS | TIMES | {"boolean", "http://hl7.org/fhirpath/System.String"}
PLACEHOLDERS: Final = {  # by type, or by path
    "date": "YYYY, YYYY-MM or YYYY-MM-DD",
    "dateTime": "YYYY-MM-DD or YYYY-MM-DDThh:mm:ss+zz:zz",
    "instant": "YYYY-MM-DDThh:mm:ss+zz:zz",
    "time": "hh:mm:ss",
    "Reference.reference": "Type/id",
}
KEPT_TYPES: Final = frozenset({"Narrative", "Extension", "Meta", "Resource", "xhtml"})
"""Types without a control: such parts of a resource are kept unchanged."""
KEPT_NAMES: Final = frozenset({"id", "implicitRules", "language"})
REFERENCE_PARTS: Final = frozenset({"reference", "display"})
BLANK: Final = "\N{EN DASH}"
"""Text of an option that stands for no value."""
MAX_OPTIONS: Final = 150
MAX_HINT: Final = 90


@dataclass
class Node:
    """One part of the form.

    `kind` is ``text``, ``area``, ``select`` (controls) or ``group``, ``choice`` (which hold `nodes`).
    """

    kind: str
    name: str
    label: str
    hint: str = ""
    required: bool = False
    value: str = ""
    type: str = ""
    placeholder: str = ""
    options: list[tuple[str, str]] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    additions: list[tuple[str, str]] = field(default_factory=list)
    """Parts that may be added here: (name, label)."""
    removable: bool = False
    error: str = ""

    @property
    def field(self) -> str:
        """HTML name of the control: no element's name alone, which could hide a method of the form (`remove`, `submit`)."""
        return f"r.{self.name}"

    @property
    def id(self) -> str:
        """HTML id of the control."""
        return "f-" + re.sub(r"[^\w]", "-", self.name)

    def controls(self) -> Iterator[Node]:
        """All controls below, in order."""
        if self.kind in ("text", "area", "select"):
            yield self
        for node in self.nodes:
            yield from node.controls()


def group_of(type: str, path: str, holder: Json, prefix: str, label: str) -> Node:
    """The controls of an object.

    Args:
        type: the type whose structure describes it.
        path: of the element whose children it has: the type itself, or a group inside it (``Patient.contact``).
        holder: the object.
        prefix: of the names of its controls, with a dot behind, or empty.
        label: what the group is called.
    """
    found = structure(type)
    group = Node("group", prefix.rstrip("."), label)
    for element in found.children(path) if found else ():
        if not is_shown(element) or (type == "Reference" and element.name not in REFERENCE_PARTS):
            continue
        if element.choice and len(element.types) > 1:
            group.nodes.append(_choice(element, holder, prefix))
        else:
            _element(group, element, holder, prefix)
    return group


def _element(group: Node, element: Any, holder: Json, prefix: str) -> None:
    type = element.types[0] if element.types else None
    code = type.code if type else ""
    key = element.property_name(code)
    name = f"{prefix}{key}"
    if code in PRIMITIVES:
        values = holder.get(key)
        if not element.array:
            group.nodes.append(_control(element, code, name, values))
            return
        for index, value in enumerate([*(values if isinstance(values, list) else []), ""]):
            node = _control(element, code, f"{name}.{index}", value)
            node.required = node.required and index == 0
            group.nodes.append(node)
        return
    present = holder.get(key)
    parts = present if isinstance(present, list) else [present] if present is not None else []
    for index, part in enumerate(parts):
        own = f"{name}.{index}" if element.array else name
        label = f"{element.name} {index + 1}" if element.array and len(parts) > 1 else element.name
        node = _object(element, type, part if isinstance(part, dict) else {}, own, label)
        node.removable = index + 1 > element.min
        group.nodes.append(node)
    if (element.array and (element.max is None or len(parts) < element.max)) or not parts:
        group.additions.append((name, element.name))


def _object(element: Any, type: Any, value: Json, name: str, label: str) -> Node:
    """A complex value as a group: its own structure, or that of the group it stands for."""
    if element.content or type is None or type.code in ("BackboneElement", "Element"):
        path = element.content or element.path
        node = group_of(path.partition(".")[0], path, value, f"{name}.", label)
    else:
        node = group_of(type.code, type.code, value, f"{name}.", label)
    node.hint = _hint(element.short)
    if type is not None and type.code == "Reference" and type.targets:
        node.hint = f"{', '.join(type.targets[:4])}{' …' if len(type.targets) > 4 else ''}"
    node.name = name
    return node


def _choice(element: Any, holder: Json, prefix: str) -> Node:
    chosen = next((t for t in element.types if element.property_name(t.code) in holder), None)
    node = Node(
        "choice", f"{prefix}{element.name}[x]", element.name, _hint(element.short), required=element.min > 0
    )
    node.value = chosen.code if chosen else ""
    node.options = [("", BLANK), *((t.code, t.code) for t in element.types if t.code not in KEPT_TYPES)]
    if chosen is not None:
        key = element.property_name(chosen.code)
        if chosen.code in PRIMITIVES:
            control = _control(element, chosen.code, f"{prefix}{key}", holder.get(key))
            control.label = key
            node.nodes.append(control)
        else:
            node.nodes.append(_object(element, chosen, holder[key], f"{prefix}{key}", key))
    return node


def _control(element: Any, code: str, name: str, value: Any) -> Node:
    node = Node("text", name, element.name, _hint(element.short), required=element.min > 0, type=code)
    node.placeholder = PLACEHOLDERS.get(element.path) or PLACEHOLDERS.get(code, "")
    if code == "boolean":
        node.kind, node.options = "select", [("", BLANK), ("true", "yes"), ("false", "no")]
        node.value = "" if value in (None, "") else str(value).lower()
        return node
    node.value = "" if value is None else str(value)
    codes = (
        value_set_codes(element.value_set) if element.binding == "required" and element.value_set else None
    )
    if codes and len(codes) <= MAX_OPTIONS:
        node.kind = "select"
        node.options = [("", BLANK), *((c.code, c.code) for c in codes)]
        if node.value and node.value not in dict(node.options):
            node.options.append((node.value, f"{node.value} (not in the value set)"))
    elif code == "markdown" or len(node.value) > 120 or "\n" in node.value:
        node.kind = "area"
    return node


def is_shown(element: Any) -> bool:
    """An element that gets a control; all others are kept unchanged."""
    code = element.types[0].code if element.types else ""
    return code not in KEPT_TYPES and element.name not in KEPT_NAMES


def names_of(element: Any) -> list[str]:
    """Names an element may have in JSON: one for each type of a choice."""
    return [element.property_name(t.code) for t in element.types] or [element.name]


def _hint(short: str) -> str:
    return short if len(short) <= MAX_HINT else f"{short[: MAX_HINT - 1]}…"


def choices_of(node: Node) -> list[Node]:
    """All choices of a type below a node."""
    return ([node] if node.kind == "choice" else []) + [
        found for part in node.nodes for found in choices_of(part)
    ]


def element_at(type: str, state: Json, name: str) -> Any:
    """The element a path leads to."""
    structure_name, path, found = type, type, None
    for part in (p for p in name.split(".") if not p.isdecimal()):
        described = structure(structure_name)
        children = described.children(path) if described else ()
        found = next((e for e in children if part in names_of(e)), None)
        if found is None:
            return None
        chosen = next((t for t in found.types if found.property_name(t.code) == part), None)
        if found.content or chosen is None or chosen.code in ("BackboneElement", "Element"):
            path = found.content or found.path
            structure_name = path.partition(".")[0]
        else:
            structure_name = path = chosen.code
    return found


def all_nodes(node: Node) -> Iterator[Node]:
    """A node and everything below it."""
    yield node
    for part in node.nodes:
        yield from all_nodes(part)


def blank(code: str) -> Json:
    """A new value; a CodeableConcept begins with one coding to fill in."""
    return {"coding": [{}]} if code == "CodeableConcept" else {}
