"""FHIR operations (``$name``): a registry that the layers above fill at start-up.

An operation is called on the system (``/$name``), a type (``/Bot/$name``) or an instance (``/Bot/{id}/$name``). What no
registered operation answers goes to the fallback, one function that may resolve names at run time.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from fhirstore import database
from fhirstore.errors import FhirError, bad_request, issue, method_not_allowed, outcome
from fhirstore.repository import Stored
from fhirstore.rest.messages import FhirRequest, FhirResponse


@dataclass(slots=True, kw_only=True)
class OperationRequest(FhirRequest):
    """A request for an operation.

    Attributes:
        name: with its ``$``.
        type: the resource type it is called on, None for the system.
        id: the instance it is called on.
        extra_path: what follows the name in the path, without leading slash.
    """

    name: str
    type: str | None = None
    id: str | None = None
    extra_path: str = ""


Answer = FhirResponse | Mapping[str, Any] | Stored
Handler = Callable[[OperationRequest], Answer]
"""Carries out an operation. A mapping is sent as JSON: an OperationOutcome with the status of its id, all else with 200."""

Level = Literal["system", "type", "instance"]


@dataclass(frozen=True, slots=True)
class Operation:
    """A registered operation; `types` None means every type, `atomic` that it can be part of a transaction."""

    name: str
    handler: Handler
    types: frozenset[str] | None
    levels: frozenset[Level]
    methods: tuple[str, ...]
    extra_path: bool
    atomic: bool = True

    def is_on(self, request: OperationRequest) -> bool:
        """True if it may be called where the request calls it."""
        return _level(request) in self.levels and (
            self.types is None or request.type is None or request.type in self.types
        )


_operations: dict[str, list[Operation]] = {}
_fallback: Callable[[OperationRequest], Answer | None] | None = None


def register_operation(
    name: str,
    handler: Handler,
    *,
    types: Collection[str] | None = None,
    system: bool = False,
    type: bool = False,
    instance: bool = False,
    methods: Collection[str] = ("GET", "POST"),
    extra_path: bool = False,
    atomic: bool = True,
) -> None:
    """Register an operation.

    Args:
        name: with its ``$``, for example ``$execute``.
        handler: carries it out.
        types: resource types it is defined on; None for all.
        system, type, instance: the levels it may be called on.
        methods: the HTTP methods it takes.
        extra_path: it also takes paths that go on behind its name.
        atomic: it can be part of a transaction; what another process does for it cannot.
    """
    levels: dict[Level, bool] = {"system": system, "type": type, "instance": instance}
    operation = Operation(
        name,
        handler,
        None if types is None else frozenset(types),
        frozenset(level for level, wanted in levels.items() if wanted),
        tuple(methods),
        extra_path,
        atomic,
    )
    _operations.setdefault(name, []).append(operation)


def register_fallback(resolver: Callable[[OperationRequest], Answer | None]) -> None:
    """Register the one function that is asked about operations nobody registered; it returns None for unknown ones."""
    global _fallback
    _fallback = resolver


def has_operation(name: str) -> bool:
    """True if an operation of this name (with its ``$``) is registered anywhere."""
    return name in _operations


def operations_of(type: str | None) -> list[Operation]:
    """The registered operations that can be called on a type (or its instances), or with None on the system."""
    found = []
    for operation in (each for several in _operations.values() for each in several):
        if type is None:
            if "system" in operation.levels:
                found.append(operation)
        elif operation.levels - {"system"} and (operation.types is None or type in operation.types):
            found.append(operation)
    return found


def run_operation(
    request: FhirRequest, *, type: str | None, id: str | None, name: str, extra_path: str
) -> Answer:
    """Find and carry out an operation.

    Raises:
        FhirError: 404 for an unknown operation, 405 for a method it does not take, 400 on the wrong level, and whatever
            the operation raises.
    """
    values = {each.name: getattr(request, each.name) for each in fields(FhirRequest)}
    call = OperationRequest(**values, type=type, id=id, name=name, extra_path=extra_path)
    here = [
        operation
        for operation in _operations.get(name, ())
        if operation.is_on(call) and (operation.extra_path or not extra_path)
    ]
    for operation in here:
        if call.method in operation.methods:
            _check_atomic(name, atomic=operation.atomic)
            return operation.handler(call)
    if here:
        raise method_not_allowed(here[0].methods)
    _check_atomic(name, atomic=False)
    if _fallback is not None and (answer := _fallback(call)) is not None:
        return answer
    raise _unknown(name, type)


def _check_atomic(name: str, *, atomic: bool) -> None:
    if not atomic and database.in_transaction():
        raise bad_request(f"{name} cannot be part of a transaction; call it by itself or in a batch")


def _unknown(name: str, type: str | None) -> FhirError:
    elsewhere = _operations.get(name)
    if not elsewhere:
        return FhirError(outcome("not-found", [issue(f"Unknown operation: {name}", code="not-found")]))
    paths = sorted(
        {
            {"system": "", "type": f"{each_type}/", "instance": f"{each_type}/{{id}}/"}[level] + name
            for operation in elsewhere
            for level in operation.levels
            for each_type in sorted(operation.types or {type or "{type}"})
        }
    )
    return bad_request(f"{name} cannot be called here; call it as {' or '.join(paths)}")


def _level(request: OperationRequest) -> Level:
    if request.type is None:
        return "system"
    return "type" if request.id is None else "instance"
