"""A project's own search parameters: active SearchParameter resources, next to those of the definitions.

Their expressions must lie in the subset of :mod:`fhirstore.search.expressions`, like those of the definitions. What is stored
before a parameter becomes active is found by it after a reindex (:mod:`fhirstore.reindex`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from fhirstore import errors
from fhirstore.definitions import registry
from fhirstore.search import expressions
from fhirstore.search.index import indexed_paths
from fhirstore.search.model import Kind, Parameter

Json = dict[str, Any]

EVERY_TYPE: Final = frozenset({"Resource", "DomainResource"})
"""Bases that stand for all types."""

MAX_EXPRESSION: Final = 4_000
"""Characters of an expression."""
MAX_BRACKETS: Final = 60
"""Brackets it opens: deeper ones would exhaust the stack of the parser."""
_CODE: Final = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
_KINDS: Final = frozenset(Kind) - {Kind.COMPOSITE, Kind.SPECIAL}


def compile_parameter(resource: Json) -> dict[str, Parameter]:
    """Compile a SearchParameter resource.

    Returns:
        The parameter by the type it is for, as ``base`` names them; without those that the definitions have alike.

    Raises:
        FhirError: 400 with the element that cannot be used, and why.
    """
    code, kind, expression = resource.get("code"), resource.get("type"), resource.get("expression")
    if not isinstance(code, str) or not _CODE.fullmatch(code):
        raise _refuse("code", "must be letters, digits, - and _, beginning with a letter")
    if kind not in _KINDS:
        raise _refuse("type", f"{kind} cannot be indexed: one of {', '.join(sorted(_KINDS))} can")
    if not isinstance(expression, str):
        raise _refuse("expression", "is missing: without it nothing can be indexed")
    if len(expression) > MAX_EXPRESSION or expression.count("(") > MAX_BRACKETS:
        raise _refuse(
            "expression", f"may have {MAX_EXPRESSION} characters and {MAX_BRACKETS} brackets, not more"
        )
    targets = tuple(target for target in resource.get("target") or () if registry.is_resource_type(target))
    compiled: dict[str, Parameter] = {}
    for base in resource.get("base") or ():
        if base not in EVERY_TYPE and not registry.is_resource_type(base):
            raise _refuse("base", f"{base} is no resource type")
        type = "Patient" if base in EVERY_TYPE else base
        try:
            paths = expressions.resolve(type, expression, registry.structure)
            indexed_paths(Kind(kind), paths)
        except expressions.UnsupportedExpressionError as error:
            raise _refuse("expression", f"cannot be indexed for {base}: {error}") from None
        known = registry.search_parameter(type, code)
        if known is None:
            compiled[base] = Parameter(code, Kind(kind), targets, expressions.part_for(type, expression))
        elif not known.expression or expressions.resolve(type, known.expression, registry.structure) != paths:
            raise _refuse("code", f"{code} is a search parameter of {base} already, with another expression")
    return compiled


def _refuse(element: str, reason: str) -> errors.FhirError:
    where = f"SearchParameter.{element}"
    return errors.bad_request(f"{where} {reason}", where)


def merge(resources: Iterable[Json]) -> Mapping[str, Mapping[str, Parameter]]:
    """The parameters of several SearchParameters by base and code; one that cannot be used is left out."""
    merged: dict[str, dict[str, Parameter]] = {}
    for resource in resources:
        try:
            compiled = compile_parameter(resource)
        except errors.FhirError:
            continue  # stored before newer definitions took its code
        for base, parameter in compiled.items():
            merged.setdefault(base, {}).setdefault(parameter.code, parameter)
    return merged


def of_type(parameters: Mapping[str, Mapping[str, Parameter]], type: str) -> Mapping[str, Parameter]:
    """Those of :func:`merge` that are for one type."""
    found: dict[str, Parameter] = {}
    for base in (type, *EVERY_TYPE):
        found |= parameters.get(base, {})
    return found
