"""Is a resource what its type says? Checks compiled once per type from the element definitions.

A check is a closure that takes a JSON value and returns None, or the list of problems below that value; paths are put
together only on the way back, so a valid resource costs no more than looking at it. Texts and paths are Medplum's:
``Missing required property`` at ``Observation.status``, an element of a choice as ``Observation.value[x]``.

Checked: invariants (:mod:`fhirstore.invariants`), known resource type, unknown properties, lists and single values, cardinality, choices (only one type),
JSON types and formats of primitives, empty values, ``_field`` companions, contained resources, extensions, required
bindings whose value set can be listed, and the types References point to. Medplum's own types (Bot, ClientApplication, …)
may stand where FHIR, which does not know them, names other targets.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import date
from functools import cache
from itertools import zip_longest
from typing import Any, Final

from fhirstore import errors
from fhirstore.definitions import registry
from fhirstore.definitions.registry import Element, Structure
from fhirstore.invariants import Test, compile_invariant

Problem = tuple[str, str]
"""Where, relative to the value checked (``.name[0]``, empty for the value itself), and what is wrong."""

Check = Callable[[Any], list[Problem] | None]


class _Broken(str):
    """The text about a broken invariant: the code of its issue is another one."""

    __slots__ = ()


class _Local(str):
    """In place of a text: the id a reference to a contained resource names; whoever contains it knows if it is there."""

    __slots__ = ()


_GROUPS: Final = ("BackboneElement", "Element")
_MAX_STRING: Final = 1024 * 1024
"""Characters a string may have (https://hl7.org/fhir/R4/datatypes.html#string)."""
_MAX_DEPTH: Final = 200
"""Objects and lists inside each other; no real resource comes near, and the JSON writer ends at 254."""


def validate(resource: dict[str, Any]) -> list[dict[str, Any]]:
    """Check a resource against the definition of its type.

    Args:
        resource: the resource without nulls (:func:`strip_nulls`).

    Returns:
        OperationOutcome issues of severity ``error``, each with its ``expression``; none if the resource is valid.
    """
    try:
        problems = _resource(resource)
    except RecursionError:
        problems = [("", "Resource is nested too deeply")]
    if not problems:
        return []
    name = resource.get("resourceType")
    root = name if isinstance(name, str) and registry.is_resource_type(name) else "Resource"
    return [
        errors.issue(
            text, code="invariant" if isinstance(text, _Broken) else "structure", expression=root + path
        )
        for path, text in problems
    ]


def strip_nulls(resource: dict[str, Any]) -> dict[str, Any]:
    """Return the resource without null properties and null items, as Medplum strips them before it validates.

    Nulls in a list of primitives stay where a ``_field`` list stands beside it: they keep both in step.

    Raises:
        FhirError: 400, the resource is nested too deeply.
    """
    return _without_nulls(resource, _MAX_DEPTH) if _has_null(resource, _MAX_DEPTH) else resource


_CONTAINERS: Final = (dict, list)


def _deeper(room: int) -> int:
    if not room:
        raise errors.bad_request("Resource is nested too deeply")
    return room - 1


def _has_null(value: dict[str, Any] | list[Any], room: int) -> bool:
    room = _deeper(room)
    for item in value.values() if type(value) is dict else value:
        if item is None or (isinstance(item, _CONTAINERS) and _has_null(item, room)):
            return True
    return False


def _without_nulls(value: Any, room: int) -> Any:
    if isinstance(value, list):
        room = _deeper(room)
        return [_without_nulls(item, room) for item in value if item is not None]
    if not isinstance(value, dict):
        return value
    room = _deeper(room)
    stripped = {}
    for name, item in value.items():
        if item is None:
            continue
        companion = value.get(name[1:] if name.startswith("_") else f"_{name}")
        if isinstance(item, list) and isinstance(companion, list):
            stripped[name] = [None if entry is None else _without_nulls(entry, room) for entry in item]
        else:
            stripped[name] = _without_nulls(item, room)
    return stripped


# --- primitives -------------------------------------------------------------------------------------------

_JSON_TYPES: Final[dict[type, str]] = {
    str: "string",
    bool: "boolean",
    int: "number",
    float: "number",
    dict: "object",
    list: "array",
    type(None): "null",
}


def _wrong_type(expected: str, value: Any) -> list[Problem]:
    return [
        ("", f"Invalid JSON type: expected {expected}, but got {_JSON_TYPES.get(type(value), 'unknown')}")
    ]


_YEAR: Final = "([0-9]([0-9]([0-9][1-9]|[1-9]0)|[1-9]00)|[1-9]000)"
_ZONE: Final = r"(Z|[+-]((0[0-9]|1[0-3]):[0-5][0-9]|14:00))"
_TIME: Final = r"([01][0-9]|2[0-3]):[0-5][0-9]:([0-5][0-9]|60)(\.[0-9]+)?"
_DAY: Final = "(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])"

_FORMATS: Final[dict[str, str]] = {
    "canonical": r"\S*",
    "code": r"[^\s]+(\s[^\s]+)*",
    "date": rf"{_YEAR}(-(0[1-9]|1[0-2])|-{_DAY})?",
    "dateTime": rf"{_YEAR}(-(0[1-9]|1[0-2])|-{_DAY}(T{_TIME}{_ZONE})?)?",
    "id": r"[A-Za-z0-9\-.]{1,64}",
    "instant": rf"{_YEAR}-{_DAY}T{_TIME}{_ZONE}",
    "markdown": r"[^\x00-\x08\x0b\x0c\x0e-\x1f]+",
    "oid": r"urn:oid:[0-2](\.(0|[1-9][0-9]*))+",
    "string": r"[^\x00-\x08\x0b\x0c\x0e-\x1f]+",
    "time": _TIME,
    "uri": r"\S*",
    "url": r"\S*",
    "uuid": r"urn:uuid:[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
}
"""Formats of primitives that are strings in JSON (https://hl7.org/fhir/R4/datatypes.html#primitive)."""

_DAYS: Final = ("date", "dateTime", "instant")
"""Types whose day must exist: the format lets 31 February pass."""

_LEAST: Final = {"integer": -(2**31), "unsignedInt": 0, "positiveInt": 1}


def _string_check(type_code: str) -> Check:
    matches = re.compile(_FORMATS[type_code]).fullmatch
    has_day = type_code in _DAYS

    def check(value: Any) -> list[Problem] | None:
        if type(value) is not str:
            return _wrong_type("string", value)
        if matches(value) and not value.isspace() and value:
            if len(value) > _MAX_STRING:
                return [("", "String cannot be larger than 1 MB")]
            if has_day and len(value) >= 10:
                try:
                    date.fromisoformat(value[:10])
                except ValueError:
                    return [("", f"Invalid {type_code} format")]
            return None
        if not value:
            return [("", "Invalid empty value")]
        if value.isspace():
            return [("", "String must contain non-whitespace content")]
        return [("", f"Invalid {type_code} format")]

    return check


def _base64(value: Any) -> list[Problem] | None:
    if type(value) is not str:
        return _wrong_type("string", value)
    if not value:
        return [("", "Invalid empty value")]
    try:
        # white space is allowed, but seldom there
        binascii.a2b_base64(
            value if " " not in value and "\n" not in value else "".join(value.split()), strict_mode=True
        )
    except ValueError:
        return [("", "Invalid base64Binary format")]
    return None


def _xhtml(value: Any) -> list[Problem] | None:
    return None if type(value) is str and value else _wrong_type("string", value)


def _boolean(value: Any) -> list[Problem] | None:
    return None if type(value) is bool else _wrong_type("boolean", value)


def _decimal(value: Any) -> list[Problem] | None:
    return None if type(value) in (int, float) else _wrong_type("number", value)


def _integer_check(type_code: str) -> Check:
    least = _LEAST[type_code]

    def check(value: Any) -> list[Problem] | None:
        if type(value) is not int and not (type(value) is float and value.is_integer()):
            if type(value) is float:
                return [("", f"Invalid {type_code} value")]
            return _wrong_type("number", value)
        return None if least <= value <= 2**31 - 1 else [("", f"Invalid {type_code} value")]

    return check


_PRIMITIVES: Final[dict[str, Check]] = {
    **{code: _string_check(code) for code in _FORMATS},
    **{code: _integer_check(code) for code in _LEAST},
    "base64Binary": _base64,
    "boolean": _boolean,
    "decimal": _decimal,
    "integer64": _string_check("string"),
    "xhtml": _xhtml,
}


# --- values of one element --------------------------------------------------------------------------------


def _single(check: Check) -> Check:
    """The value of an element that does not repeat."""

    def check_single(value: Any) -> list[Problem] | None:
        if type(value) is list:
            return [("", "Expected single value for property")]
        return check(value)

    return check_single


def _many(check: Check, low: int, high: int | None) -> Check:
    """The values of an element that repeats."""

    def check_many(value: Any) -> list[Problem] | None:
        if type(value) is not list:
            return [("", "Expected array of values for property")]
        if not value:
            return [("", "Invalid empty value")]
        problems: list[Problem] = []
        if len(value) < low or (high is not None and len(value) > high):
            expected = f"{low}..{'*' if high is None else high}"
            problems.append(("", f"Invalid number of values: expected {expected}, but found {len(value)}"))
        for position, item in enumerate(value):
            found = check(item)
            if found:
                problems += [(f"[{position}]{path}", text) for path, text in found]
        return problems

    return check_many


def _nullable(check: Check) -> Check:
    """Items of a list of primitives, where null stands for "see the companion list" (:func:`_in_step`)."""

    def check_nullable(value: Any) -> list[Problem] | None:
        return None if value is None else check(value)

    return check_nullable


def _both(first: Check, second: Check) -> Check:
    """The second check, too, when the first finds nothing."""

    def check_both(value: Any) -> list[Problem] | None:
        return first(value) or second(value)

    return check_both


def _bound(url: str, type_code: str) -> Check | None:
    """A required binding; None when the value set cannot be listed or the type has no codes."""
    codings = registry.value_set_codes(url)
    if codings is None:
        return None
    codes = frozenset(coding.code for coding in codings)
    pairs = frozenset((coding.system, coding.code) for coding in codings)

    def problem(code: Any) -> list[Problem]:
        return [("", f'Value "{code}" did not satisfy terminology binding {url}')]

    def check_code(value: Any) -> list[Problem] | None:
        return None if value in codes else problem(value)

    def check_coding(value: Any) -> list[Problem] | None:
        return None if (value.get("system"), value.get("code")) in pairs else problem(value.get("code"))

    def check_concept(value: Any) -> list[Problem] | None:
        codings = value.get("coding", ())
        if any((coding.get("system"), coding.get("code")) in pairs for coding in codings):
            return None
        return problem(codings[0].get("code") if codings else value.get("text", ""))

    return {"code": check_code, "Coding": check_coding, "CodeableConcept": check_concept}.get(type_code)


def _points_to(targets: Iterable[str]) -> Check:
    """The type of a literal reference; what cannot be told from its text passes."""
    allowed = frozenset(targets)
    expected = '", "'.join(sorted(allowed))

    def check(value: Any) -> list[Problem] | None:
        reference = value.get("reference")
        if reference is None or reference[:1] == "#":
            return None
        name = reference.partition("?")[0].partition("/")[0]
        if name in allowed or name not in _fhir_types():
            return None
        return [("", f'Invalid reference: got "{name}", expected "{expected}"')]

    return check


@cache
def _fhir_types() -> frozenset[str]:
    """Resource types FHIR knows: only they can be wrong as the target of a reference FHIR defines."""
    return frozenset(name for name in registry.resource_types() if name not in registry.get().medplum_types)


# --- objects ----------------------------------------------------------------------------------------------


def _resource(value: Any) -> list[Problem] | None:
    """An inline resource of any type, in a Bundle or at the top."""
    problems = _contained(value)
    if type(value) is not dict:
        return problems
    if "contained" in value:
        problems = [*(problems or ()), *_broken_containment(value)]
    if problems:
        contained = value.get("contained")
        ids = (
            {each.get("id") for each in contained if type(each) is dict} if type(contained) is list else set()
        )
        return [
            (path, _LOST_REFERENCE if type(text) is _Local else text)
            for path, text in problems
            if type(text) is not _Local or text not in ids
        ]
    return problems


_LOST_REFERENCE: Final = _Broken(
    "Constraint ref-1 not met: SHALL have a contained resource if a local reference is provided"
)


def _contained(value: Any) -> list[Problem] | None:
    """A resource contained in another one, to whose contained resources it may refer."""
    if type(value) is not dict:
        return _wrong_type("object", value)
    name = value.get("resourceType")
    if name is None:
        return [(".resourceType", "Missing required property")]
    if type(name) is not str or not registry.is_resource_type(name):
        return [(".resourceType", "Invalid resource type")]
    return _type_check(name)(value)


def _broken_containment(value: Mapping[str, Any]) -> Iterator[Problem]:
    """The invariants about contained resources (dom-2, dom-4, dom-5)."""
    contained = value["contained"]
    for each in contained if type(contained) is list else ():
        if type(each) is not dict:
            continue
        meta = each.get("meta")
        meta = meta if type(meta) is dict else {}
        if "contained" in each:
            yield (
                "",
                _Broken(
                    "Constraint dom-2 not met: If the resource is contained in another resource, it SHALL NOT contain "
                    "nested Resources"
                ),
            )
        if "versionId" in meta or "lastUpdated" in meta:
            yield (
                "",
                _Broken(
                    "Constraint dom-4 not met: If a resource is contained in another resource, it SHALL NOT have a "
                    "meta.versionId or a meta.lastUpdated"
                ),
            )
        if "security" in meta:
            yield (
                "",
                _Broken(
                    "Constraint dom-5 not met: If a resource is contained in another resource, it SHALL NOT have a "
                    "security label"
                ),
            )


# --- invariants -------------------------------------------------------------------------------------------

_ELSEWHERE: Final = frozenset({"dom-2", "dom-4", "dom-5", "ref-1", "sdf-8", "sdf-8a"})
"""Invariants that ask for more than the element they belong to; checked by code of their own, or at the resource."""

_LEFT_OUT: Final = frozenset({"axp-3", "dom-3", "org-1"})
"""Invariants that do not refuse a write, see ``docs/validation.md``."""

_AT_THE_RESOURCE: Final = {
    "StructureDefinition": (
        ("StructureDefinition.snapshot", "sdf-8", "snapshot"),
        ("StructureDefinition.differential", "sdf-8a", "differential"),
    )
}
"""Invariants with ``%resource``, evaluated for the whole resource: path, key, the element they are about."""


def _invariants(path: str, type_: str) -> list[tuple[_Broken, Test]]:
    """The tests of the invariants with severity ``error`` at a path, about values of a type, each with what to say."""
    found = [
        (rule, rule.expression)
        for rule in registry.invariants(path)
        if rule.severity == "error" and rule.key not in _ELSEWHERE and rule.key not in _LEFT_OUT
    ]
    for at, key, name in _AT_THE_RESOURCE.get(path, ()):
        found += [
            (rule, f"{name}.all({rule.expression})") for rule in registry.invariants(at) if rule.key == key
        ]
    return [
        (_Broken(f"Constraint {rule.key} not met: {rule.text}"), compile_invariant(expression, type_))
        for rule, expression in found
    ]


def _holding(check: Check, invariants: Sequence[tuple[_Broken, Test]]) -> Check:
    """A check, and if that finds nothing, the invariants."""
    if not invariants:
        return check

    def check_invariants(value: Any) -> list[Problem] | None:
        return check(value) or [("", text) for text, holds in invariants if holds(value) is False]

    return check_invariants


@cache
def _type_check(name: str) -> Check:
    """The check of a resource type or complex data type."""
    structure = registry.structure(name)
    if structure is None:
        raise LookupError(f"no definition of type {name}")
    return _group_check(structure, name)


def _late(name: str, path: str | None = None) -> Check:
    """The check of a type or group that is compiled when first needed, as types refer to each other in circles."""
    found: Check | None = None

    def check(value: Any) -> list[Problem] | None:
        nonlocal found
        if found is None:
            found = _group(name, path) if path else _type_check(name)
        return found(value)

    return check


@cache
def _group(name: str, path: str) -> Check:
    """The check of a group of elements written in place: ``Patient.contact``."""
    structure = registry.structure(name)
    if structure is None:
        raise LookupError(f"no definition of type {name}")
    return _group_check(structure, path)


def _value_check(structure: Structure, element: Element, type_code: str) -> Check:
    """The check of one value of an element that has the given type."""
    if element.content:
        return _late(structure.type, element.content)
    if type_code in _GROUPS and structure.children(element.path):
        return _late(structure.type, element.path)
    if type_code == "Resource":
        return _contained if element.path.endswith(".contained") else _resource
    check = _PRIMITIVES.get(type_code) or _late(type_code)
    if element.path.count(".") == 1 and element.name == "id" and structure.kind == "resource":
        check = _PRIMITIVES["id"]
    if element.binding == "required" and element.value_set:
        bound = _bound(element.value_set, type_code)
        if bound:
            check = _both(check, bound)
    targets = next((type.targets for type in element.types if type.code == type_code), ())
    if type_code == "Reference" and targets:
        check = _both(check, _points_to(targets))
    return _holding(check, _invariants(element.path, type_code))


def _group_check(structure: Structure, path: str) -> Check:
    """Compile the check of an object with the children of ``path``."""
    members: dict[str, tuple[str, Check]] = {}
    rules: list[Rule] = []
    for element in structure.children(path):
        shown = "." + element.path.rpartition(".")[2]
        names: list[str] = []
        companions: list[str] = []
        for type_code in [type.code for type in element.types] or [""]:
            name = element.property_name(type_code) if type_code else element.name
            names.append(name)
            primitive = type_code in _PRIMITIVES
            members[name] = (
                shown,
                _values(element, _value_check(structure, element, type_code), nulls=primitive),
            )
            if primitive:
                companions.append(f"_{name}")
                members[f"_{name}"] = shown, _values(element, _late("Element"), nulls=True)
                if element.array:
                    rules.append(_in_step(shown, name, f"_{name}"))
        if element.min:
            rules.append(_required(shown, names, companions))
        if element.choice:
            rules.append(_exclusive(shown, names))
    if path == structure.type and structure.kind == "resource":
        members["resourceType"] = "", _anything  # looked at before this check was chosen
    rules += _own_rules(structure, path)
    return _holding(_object_check(members, rules), _invariants(path, path))


def _own_rules(structure: Structure, path: str) -> list[Rule]:
    """Invariants that are written as code."""
    if path == "Extension":
        return [_extension]
    if path == "Reference":
        return [_local]
    return [] if path == "Element" or structure.kind == "resource" else [_not_only_id]


def _anything(value: Any) -> None:
    """Accept any value."""


def _values(element: Element, check: Check, *, nulls: bool) -> Check:
    """The check of all values of an element; ``nulls`` may stand among those of a list (see :func:`_in_step`)."""
    if not element.array:
        return _single(check)
    return _many(_nullable(check) if nulls else check, element.min, element.max)


Rule = Callable[[Mapping[str, Any]], Problem | None]
"""Checks how the properties of an object fit together."""


def _required(shown: str, names: Sequence[str], companions: Sequence[str]) -> Rule:
    """One of the properties, or the companion of one, must be there."""
    first, *others = [*names, *companions]

    def rule(value: Mapping[str, Any]) -> Problem | None:
        if first in value or any(other in value for other in others):
            return None
        return shown, "Missing required property"

    return rule


def _extension(value: Mapping[str, Any]) -> Problem | None:
    """ext-1: an extension has either a value or extensions of its own."""
    has_value = any(name[:5] == "value" or name[:6] == "_value" for name in value)
    if has_value is not ("extension" in value):
        return None
    return "", _Broken("Constraint ext-1 not met: Must have either extensions or value[x], not both")


def _local(value: Mapping[str, Any]) -> Problem | None:
    """ref-1 as a question to the resource: is there a contained resource with this id?"""
    reference = value.get("reference")
    if type(reference) is str and reference[:1] == "#" and reference != "#":
        return "", _Local(reference[1:])
    return _not_only_id(value)


def _not_only_id(value: Mapping[str, Any]) -> Problem | None:
    """ele-1: an element has a value or children."""
    if len(value) == 1 and "id" in value:
        return "", _Broken("Constraint ele-1 not met: All FHIR elements must have a @value or children")
    return None


def _exclusive(shown: str, names: Iterable[str]) -> Rule:
    """At most one of the properties of a choice may be there."""
    choice = frozenset(names)

    def rule(value: Mapping[str, Any]) -> Problem | None:
        if len(choice & value.keys()) <= 1:
            return None
        return shown, "Conflicting choice of types: only one may be present"

    return rule


def _in_step(shown: str, name: str, companion: str) -> Rule:
    """A null in a list of primitives stands for a value that has only a companion, or the other way round."""

    def rule(value: Mapping[str, Any]) -> Problem | None:
        lists = [entry for entry in (value.get(name), value.get(companion)) if type(entry) is list]
        if not any(None in entry for entry in lists):
            return None
        if any(not any(item is not None for item in place) for place in zip_longest(*lists)):
            return shown, "Invalid null value"
        return None

    return rule


def _object_check(members: Mapping[str, tuple[str, Check]], rules: Sequence[Rule]) -> Check:
    """Build the check of an object from its members (property name → path to show, check) and rules."""
    member = members.get

    def check(value: Any) -> list[Problem] | None:
        if type(value) is not dict:
            return _wrong_type("object", value)
        if not value:
            return [("", "Invalid empty value")]
        problems: list[Problem] = []
        for name, item in value.items():
            known = member(name)
            if known is None:
                problems.append((f".{name}", f'Invalid additional property "{name}"'))
                continue
            found = known[1](item)
            if found:
                problems += [(known[0] + path, text) for path, text in found]
        for rule in rules:
            broken = rule(value)
            if broken:
                problems.append(broken)
        return problems

    return check
