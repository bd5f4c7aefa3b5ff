"""Patches: JSON Patch (RFC 6902) with Medplum's leniency and Medplum's words, on which bots rely; FHIRPath Patch."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import jsonpatch
import orjson
from jsonpointer import JsonPointer, JsonPointerException

from fhirstore import errors
from fhirstore.fhirpath_patch import apply_fhirpath_patch

Json = dict[str, Any]
Change = Callable[[Json], Json]
"""Gets a resource, changes it in place and returns it; raises FhirError (400)."""

_OPERATIONS = frozenset({"add", "remove", "replace", "move", "copy", "test"})
_NEED_VALUE = frozenset({"add", "replace", "test"})


def read_patch(body: Any) -> Change:
    """Return what the body of a patch does to a resource.

    Args:
        body: a JSON Patch array, or Parameters with the parts of a JSON Patch (``op``, ``path``, …) or of a FHIRPath Patch
            (``type``, ``path``, …).

    Raises:
        FhirError: 400 for anything else.
    """
    if isinstance(body, dict) and body.get("resourceType") == "Parameters":
        parameters = body.get("parameter")
        if not isinstance(parameters, list) or not all(isinstance(each, dict) for each in parameters):
            raise errors.bad_request("Invalid patch body: expected Parameters with operations")
        operations = [_json_operation(each) for each in parameters]
        if any(operation is None for operation in operations):
            return partial(apply_fhirpath_patch, parameters=parameters)
        return partial(apply_patch, operations=operations)
    if not isinstance(body, list) or not all(isinstance(operation, dict) for operation in body):
        raise errors.bad_request("Invalid patch body")
    return partial(apply_patch, operations=body)


def _json_operation(parameter: Mapping[str, Any]) -> Json | None:
    """The operation of a JSON Patch that a parameter holds in parts; None if it is none."""
    parts = parameter.get("part")
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        return None
    values = {
        part.get("name"): value for part in parts for key, value in part.items() if key.startswith("value")
    }
    if "op" not in values:
        return None
    if isinstance(values.get("value"), str):
        # Medplum sends the value as JSON text; any other text stands for itself.
        with suppress(orjson.JSONDecodeError):
            values["value"] = orjson.loads(values["value"])
    return values


def apply_patch(resource: Json, operations: Any) -> Json:
    """Apply the operations, a list as it came from the client, to ``resource`` in place and return it.

    Other than RFC 6902: ``add /list/-`` makes a missing list; lists and objects left empty are removed, since FHIR has
    none.

    Raises:
        FhirError: 400 at the first operation that cannot be applied; ``resource`` is then of no use any more.
    """
    if not isinstance(operations, list) or not all(isinstance(operation, dict) for operation in operations):
        raise errors.bad_request("Invalid patch body")
    for operation in operations:
        _apply(resource, operation)
    _drop_empty(resource)
    return resource


def _apply(resource: Json, operation: Json) -> None:
    name, path = operation.get("op"), operation.get("path")
    if name not in _OPERATIONS:
        raise errors.bad_request(f"Invalid operation: {name}")
    if not isinstance(path, str) or not path:
        raise errors.bad_request("Invalid patch body: each operation needs the path of an element")
    if name in _NEED_VALUE and "value" not in operation:
        raise errors.bad_request(f"Value required for operation: {name} {path}")
    try:
        if name == "test":
            _test(resource, path, operation["value"])
            return
        if name in ("move", "copy"):
            source = operation.get("from")
            if not isinstance(source, str):
                raise errors.bad_request(f"Path required in from: {name} {path}")
            _require(resource, source)
        elif name in ("remove", "replace"):
            _require(resource, path)
        if path.endswith("/-"):
            _require_list(resource, path.removesuffix("/-"))
        jsonpatch.JsonPatch([operation]).apply(resource, in_place=True)
    except (JsonPointerException, jsonpatch.JsonPatchException):
        # What is left are paths that lead nowhere.
        raise errors.bad_request(f"Value required at path: {path}") from None


def _require(resource: Json, path: str) -> None:
    missing = object()
    try:
        found = missing if path.endswith("/-") else JsonPointer(path).resolve(resource, missing)
    except JsonPointerException:
        found = missing
    if found is missing:
        raise errors.bad_request(f"Value required at path: {path}")


def _require_list(resource: Json, path: str) -> None:
    """Make the list at ``path`` if nothing is there."""
    pointer = JsonPointer(path)
    holder, key = pointer.to_last(resource)
    found = pointer.walk(holder, key) if key is not None and _holds(holder, key) else None
    if found is None and isinstance(holder, dict):
        holder[key] = []
    elif not isinstance(found, list):
        raise errors.bad_request(f"Not an array at path: {path}")


def _holds(holder: Any, key: Any) -> bool:
    return key in holder if isinstance(holder, dict) else isinstance(key, int) and key < len(holder)


def _test(resource: Json, path: str, expected: Any) -> None:
    try:
        actual = JsonPointer(path).resolve(resource)
    except JsonPointerException:
        raise errors.bad_request(f"Test failed: undefined != {_text(expected)}") from None
    # Compared as JSON: to Python true is 1, and 1.0 is 1 in both.
    if json.dumps(actual, sort_keys=True) != json.dumps(expected, sort_keys=True):
        raise errors.bad_request(f"Test failed: {_text(actual)} != {_text(expected)}")


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _drop_empty(value: Any) -> None:
    if isinstance(value, dict):
        for key in list(value):
            _drop_empty(value[key])
            if value[key] in ({}, []):
                del value[key]
    elif isinstance(value, list):
        for item in value:
            _drop_empty(item)
