"""FHIRPath: one engine for invariants, profiles, policies, Subscription criteria and patches.

    evaluate("name.where(use = 'official').given", patient)             -> ["Ada"]
    is_true("%previous.status != 'final' and status = 'final'", new, {"previous": old})

Expressions are compiled once and kept. What one evaluation may cost is bounded whoever wrote the expression: it looks at
a limited number of elements, its regular expressions run in linear time (RE2), its texts and numbers cannot grow without
end. Everything that can be wrong with an expression is a FhirError 400.

Meaning: https://hl7.org/fhirpath/N1/ with FHIR's functions; where R4's own invariants need it, more lenient:
``as`` filters collections, ``Boolean`` also means FHIR's boolean, and what an element does not have is empty.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from functools import lru_cache
from typing import Any, Final

from fhirstore import errors
from fhirstore.fhirpath.evaluation import Closure, Collection, Env, Resolver, Run, compile_tree, truth
from fhirstore.fhirpath.parser import parse
from fhirstore.fhirpath.values import FhirPathError, Node, Quantity, Temporal, Value, root_node

__all__ = ["FhirPathError", "Resolver", "compile_expression", "evaluate", "is_true", "locate"]

Json = dict[str, Any]


SHORT: Final = 500
"""Characters of an expression that is kept among thousands; of longer ones, which take up to half a megabyte, few are."""


def _compile(expression: str) -> Closure | str:
    """The compiled expression, or why it is none."""
    try:
        return compile_tree(parse(expression))
    except FhirPathError as error:
        return str(error)
    except RecursionError:
        return "too long a chain"


_compiled_short = lru_cache(maxsize=4096)(_compile)
_compiled_long = lru_cache(maxsize=256)(_compile)


def compile_expression(expression: str) -> Closure:
    """Compile an expression, or get it from those compiled before.

    Raises:
        FhirError: 400, it is no FHIRPath; the text says where.
    """
    compiled = (_compiled_short if len(expression) <= SHORT else _compiled_long)(expression)
    if isinstance(compiled, str):
        raise errors.bad_request(f"Invalid FHIRPath expression: {compiled}")
    return compiled


def evaluate(
    expression: str,
    resource: Json | None,
    variables: Mapping[str, Any] | None = None,
    *,
    resolver: Resolver | None = None,
) -> list[Any]:
    """Evaluate an expression.

    Args:
        expression: FHIRPath.
        resource: what it is applied to; None for nothing.
        variables: values of ``%name`` by name without ``%``: JSON, lists as collections, None as empty. ``%resource``,
            ``%rootResource``, ``%context``, ``%ucum``, ``%sct`` and ``%loinc`` are there anyway.
        resolver: what ``resolve()`` asks for references that lead out of the resource; None for unknown ones. Without
            a resolver such a reference resolves to a resource with nothing but its type and id.

    Returns:
        JSON values: parts of ``resource`` (not copies), texts, numbers, booleans; dates as texts, quantities as objects.

    Raises:
        FhirError: 400, the expression is invalid, cannot be applied, or takes too long.
    """
    values = [_json(value) for value in _run(expression, resource, variables, resolver)]
    return [
        value for value in values if value is not None
    ]  # elements that have only extensions have no value


def is_true(
    expression: str,
    resource: Json | None,
    variables: Mapping[str, Any] | None = None,
    *,
    resolver: Resolver | None = None,
) -> bool:
    """True if the expression holds: it gives ``true``, or one value that is no Boolean. Arguments as :func:`evaluate`.

    Raises:
        FhirError: as :func:`evaluate`, also for several values.
    """
    try:
        return truth(_run(expression, resource, variables, resolver)) is True
    except FhirPathError as error:
        raise _refused(error) from None


def locate(
    expression: str, resource: Json, variables: Mapping[str, Any] | None = None
) -> list[tuple[str | int, ...]]:
    """Evaluate an expression and return where in the resource the elements stand, as the steps of a JSON Pointer.

    ``Patient.name[0].given`` gives ``("name", 0, "given", 0), …``, the resource itself ``()``.

    Raises:
        FhirError: as :func:`evaluate`, also if a value is no element of the resource.
    """
    found = []
    for value in _run(expression, resource, variables, None):
        if not isinstance(value, Node) or _root_of(value).value is not resource:
            raise errors.bad_request("The FHIRPath expression leads to no element of the resource")
        found.append(value.pointer())
    return found


def _run(
    expression: str,
    resource: Json | None,
    variables: Mapping[str, Any] | None,
    resolver: Resolver | None,
) -> Collection:
    closure = compile_expression(expression)
    try:
        root = [] if resource is None else [root_node(resource)]
        run = Run(root, variables or {}, resolver)
        return closure(Env(run, root))
    except FhirPathError as error:
        raise _refused(error) from None
    except RecursionError:
        raise _refused(FhirPathError("too long a chain")) from None


def _refused(error: FhirPathError) -> errors.FhirError:
    return errors.bad_request(f"Cannot evaluate FHIRPath expression: {error}")


def _root_of(node: Node) -> Node:
    while node.parent is not None:
        node = node.parent
    return node


def _json(value: Value) -> Any:
    match value:
        case Node():
            return value.value
        case Decimal():
            return int(value) if value == value.to_integral_value() and abs(value) < 2**53 else float(value)
        case Temporal():
            return str(value)
        case Quantity():
            return {
                "value": _json(value.value),
                "unit": value.unit,
                "system": "http://unitsofmeasure.org",
                "code": value.unit,
            }
    return value
