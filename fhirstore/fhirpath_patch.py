"""FHIRPath Patch (https://hl7.org/fhir/R4/fhirpatch.html): changes as Parameters, their places as FHIRPath."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from fhirstore import errors
from fhirstore.definitions import registry
from fhirstore.definitions.registry import Element, Structure
from fhirstore.fhirpath import locate

Json = dict[str, Any]
Pointer = tuple[str | int, ...]

_GROUPS: Final = frozenset({"BackboneElement", "Element"})
_LAST_NAME: Final = re.compile(r"(.+)\.([A-Za-z][A-Za-z0-9]*)")


def apply_fhirpath_patch(resource: Json, parameters: Sequence[Mapping[str, Any]]) -> Json:
    """Apply the operations ``add``, ``insert``, ``delete``, ``replace`` and ``move`` in place, and return the resource.

    Args:
        resource: what is changed; of no use any more after a refusal.
        parameters: ``Parameters.parameter``, each an ``operation`` with its parts.

    Raises:
        FhirError: 400 at the first operation that cannot be applied, with its expression.
    """
    for number, parameter in enumerate(parameters):
        try:
            _Operation(parameter).apply(resource)
        except errors.FhirError as error:
            for issue in error.outcome["issue"]:
                issue.setdefault("expression", [f"Parameters.parameter[{number}]"])
            raise
    return resource


class _Operation:
    """One operation: its parts by name."""

    def __init__(self, parameter: Mapping[str, Any]) -> None:
        parts = parameter.get("part")
        if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
            raise errors.bad_request("Invalid patch body: an operation is a parameter with parts")
        self._parts = {part.get("name"): part for part in parts}
        self._kind = self._plain("type")
        self._path = str(self._plain("path"))

    def apply(self, resource: Json) -> None:
        apply = {
            "add": self._add,
            "insert": self._insert,
            "delete": self._delete,
            "replace": self._replace,
            "move": self._move,
        }.get(str(self._kind))
        if apply is None:
            raise errors.bad_request(f"Invalid operation: {self._kind}")
        apply(resource)

    # --- parts ---

    def _plain(self, name: str) -> Any:
        part = self._parts.get(name) or {}
        value = next((value for key, value in part.items() if key.startswith("value")), None)
        if value is None:
            raise errors.bad_request(f"A FHIRPath Patch operation needs the part {name}")
        return value

    def _index(self, name: str, highest: int) -> int:
        value = self._plain(name)
        if type(value) is not int or not 0 <= value <= highest:
            raise errors.bad_request(f"Invalid {name} for {self._kind} at {self._path}: {value}")
        return value

    def _value(self, element: _Definition) -> tuple[Any, str]:
        """The value and the end of the name it has in a choice (``Quantity``; "" for a group of parts)."""
        part = self._parts.get("value")
        if part is None:
            raise errors.bad_request("A FHIRPath Patch operation needs the part value")
        return _value_of(part, element)

    # --- places ---

    def _single(self, resource: Json) -> Pointer:
        found = locate(self._path, resource)
        if len(found) != 1:
            raise errors.bad_request(
                f"The path of {self._kind} must lead to one element, but {self._path} leads to {len(found)}"
            )
        return found[0]

    def _list(self, resource: Json) -> tuple[Any, str, int]:
        """The list a path leads to: its holder, its name, its length."""
        found = locate(self._path, resource)
        places = {pointer[:-1] for pointer in found}
        if len(places) != 1 or not isinstance(found[0][-1], int):
            raise errors.bad_request(
                f"The path of {self._kind} must lead to a list, but {self._path} does not"
            )
        *above, name, _ = found[0]
        holder = _at(resource, above)
        assert isinstance(name, str)
        # A path with a filter may leave some out; positions count in the whole list.
        return holder, name, max(len(holder.get(key) or ()) for key in (name, f"_{name}"))

    # --- operations ---

    def _add(self, resource: Json) -> None:
        self._add_at(resource, self._single(resource), str(self._plain("name")))

    def _add_at(self, resource: Json, pointer: Pointer, name: str) -> None:
        definition = _place(resource, pointer).child(name.removesuffix("[x]"))
        value, suffix = self._value(definition)
        element = definition.element
        holder = _at(resource, pointer)
        key = element.name + suffix if element.choice else element.name
        if element.array:
            holder.setdefault(key, []).append(value)
        else:
            # As in Medplum, adding what is there already replaces it.
            for other in _keys(element):
                holder.pop(other, None)
            holder[key] = value

    def _insert(self, resource: Json) -> None:
        if not locate(self._path, resource):
            # Into a list that is not there: it is made.
            self._index("index", 0)
            split = _LAST_NAME.fullmatch(self._path)
            above = locate(split[1], resource) if split else []
            if split is None or len(above) != 1:
                raise errors.bad_request(f"The path of insert leads nowhere: {self._path}")
            self._add_at(resource, above[0], split[2])
            return
        holder, name, length = self._list(resource)
        index = self._index("index", length)
        value, _ = self._value(_place(resource, locate(self._path, resource)[0]))
        for key, items in _twins(holder, name, length):
            items.insert(index, value if key == name else None)

    def _delete(self, resource: Json) -> None:
        if not locate(self._path, resource):
            return  # nothing to delete is no failure
        *above, last = self._single(resource) or (None,)
        if last is None:
            raise errors.bad_request("The resource itself cannot be deleted by a patch")
        if isinstance(last, int):
            *above, name = above
            assert isinstance(name, str)
            for _, items in _twins(_at(resource, above), name, last + 1):
                del items[last]
        else:
            holder = _at(resource, above)
            for key in (last, f"_{last}"):
                holder.pop(key, None)

    def _replace(self, resource: Json) -> None:
        *above, last = self._single(resource) or (None,)
        if last is None:
            raise errors.bad_request("The resource itself cannot be replaced by a patch")
        definition = _place(resource, (*above, last))
        value, suffix = self._value(definition)
        holder = _at(resource, above)
        element = definition.element
        if not isinstance(last, int) and element.choice:
            for key in _keys(element):
                holder.pop(key, None)
            last = element.name + suffix
        holder[last] = value

    def _move(self, resource: Json) -> None:
        holder, name, length = self._list(resource)
        source, destination = (self._index(part, length - 1) for part in ("source", "destination"))
        for _, items in _twins(holder, name, length):
            items.insert(destination, items.pop(source))


def _value_of(part: Mapping[str, Any], definition: _Definition) -> tuple[Any, str]:
    for key, value in part.items():
        if key.startswith("value") and len(key) > len("value"):
            return value, key.removeprefix("value")
    if "resource" in part:
        return part["resource"], ""
    inner = part.get("part")
    if not isinstance(inner, list) or not inner:
        raise errors.bad_request("The part value of a FHIRPath Patch operation has no value")
    group: Json = {}
    for each in inner:
        if not isinstance(each, dict):
            raise errors.bad_request("Invalid patch body: a part is an object")
        child = definition.child(str(each.get("name")).removesuffix("[x]"))
        value, suffix = _value_of(each, child)
        name = child.element.name + (suffix if child.element.choice else "")
        if child.element.array:
            group.setdefault(name, []).append(value)
        else:
            group[name] = value
    return group, ""


def _at(resource: Any, pointer: Sequence[str | int]) -> Any:
    for step in pointer:
        resource = resource[step]
    return resource


def _twins(holder: Json, name: str, length: int) -> list[tuple[str, list[Any]]]:
    """The list and, for primitives with extensions, the list beside it; both at least ``length`` long."""
    found = []
    for key in (name, f"_{name}"):
        if isinstance(items := holder.get(key), list):
            items.extend([None] * (length - len(items)))
            found.append((key, items))
    return found


# --- definitions ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Definition:
    """An element and the type in which it is defined; without element that type as a whole."""

    structure: Structure | None
    optional_element: Element | None = None
    type: str = ""

    @property
    def element(self) -> Element:
        assert self.optional_element is not None
        return self.optional_element

    def child(self, name: str, value: Any = None) -> _Definition:
        """The element with this name in JSON, or the choice with this bare name.

        Raises:
            FhirError: 400 if there is none.
        """
        structure = self.structure
        elements: Sequence[Element] = ()
        if self.optional_element is None:
            elements = structure.children() if structure else ()
        elif self.element.content and structure:
            elements = structure.children(self.element.content)
        elif self.type in _GROUPS and structure:
            elements = structure.children(self.element.path)
        else:
            structure = registry.structure(self.type)
            elements = structure.children() if structure else ()
        for element in elements:
            for each in element.types:
                if element.property_name(each.code) == name:
                    return _Definition(structure, element, _type_of(value, each.code))
            if element.name == name:
                return _Definition(structure, element, element.types[0].code if element.types else "")
        raise errors.bad_request(f"Unknown element: {name}")


def _type_of(value: Any, code: str) -> str:
    """The type of a value: that of its element, but a resource says it itself."""
    inner = value[0] if isinstance(value, list) and value else value
    if isinstance(inner, dict) and isinstance(inner.get("resourceType"), str):
        return str(inner["resourceType"])
    return code


def _place(resource: Json, pointer: Sequence[str | int]) -> _Definition:
    """The definition of what stands at ``pointer``."""
    definition = _Definition(registry.structure(resource["resourceType"]))
    node: Any = resource
    for step in pointer:
        node = node[step]
        if isinstance(step, str):
            definition = definition.child(step, node)
    return definition


def _keys(element: Element) -> list[str]:
    """The names an element may have in JSON."""
    return [element.property_name(type.code) for type in element.types] or [element.name]
