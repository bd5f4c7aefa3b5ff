"""Modifiers that stand for many values: ``:in`` a ValueSet, ``:above`` and ``:below`` a code or a part of a whole.

Before a search is compared with anything, such a clause is replaced by one that lists what it stands for; so SQL and the
matcher need not know of terminology.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import Final, Literal, Protocol, cast

from fhirstore import errors
from fhirstore.search.match import EXPANDED
from fhirstore.search.model import (
    AllOf,
    AnyOf,
    Chain,
    Clause,
    Condition,
    Has,
    Kind,
    Not,
    ReferenceValue,
    TokenValue,
    UriValue,
    Value,
)

MAX_VALUES: Final = 10_000
"""A clause that stands for more is refused."""

Direction = Literal["above", "below"]


class Lookup(Protocol):
    """What has to be looked up."""

    def codes(self, value_set: str) -> Collection[tuple[str, str]]:
        """System and code of all in a ValueSet, named by its canonical URL or as ``ValueSet/id``; FhirError if unknown."""

    def related_codes(self, system: str, code: str, direction: Direction) -> Collection[str]:
        """The codes above or below a code, without itself; FhirError if it cannot be told."""

    def related_resources(self, type: str, id: str, direction: Direction) -> Collection[str]:
        """The ids of what a resource is part of, or what is part of it, at any distance, without itself."""


def expand(conditions: Iterable[Condition], lookup: Lookup) -> tuple[Condition, ...]:
    """Replace all clauses that stand for many values, also behind chains.

    Raises:
        FhirError: 400, a ValueSet or code is not known, or stands for too much.
    """
    return tuple(_expanded(condition, lookup) for condition in conditions)


def _expanded(condition: Condition, lookup: Lookup) -> Condition:
    match condition:
        case Clause():
            return _listed(condition, lookup)
        case AllOf(inner):
            return AllOf(expand(inner, lookup))
        case AnyOf(inner):
            return AnyOf(expand(inner, lookup))
        case Not(negated):
            return Not(_expanded(negated, lookup))
        case Chain(parameter, hops):
            return Chain(parameter, tuple((type, _expanded(each, lookup)) for type, each in hops))
        case Has():
            return replace(condition, condition=_expanded(condition.condition, lookup))


def _listed(clause: Clause, lookup: Lookup) -> Clause:
    modifier, kind = clause.modifier, clause.parameter.kind
    if modifier not in EXPANDED or kind is Kind.URI:
        return clause
    values: dict[Value, None] = {}
    for value in clause.values:
        found: Iterable[Value]
        if kind is Kind.REFERENCE:
            found = _references(cast(ReferenceValue, value), cast(Direction, modifier), lookup)
        elif modifier in ("in", "not-in"):
            found = _tokens(lookup.codes(cast(UriValue, value).uri))
        else:
            concept = cast(TokenValue, value)
            system, code = concept.system or "", concept.code or ""
            codes = lookup.related_codes(system, code, cast(Direction, modifier))
            found = _tokens([(system, each) for each in (code, *codes)])
        values |= dict.fromkeys(found)
        if len(values) > MAX_VALUES:
            raise errors.too_costly(
                f"{clause.parameter.code}:{modifier} stands for more than {MAX_VALUES} values"
            )
    return Clause(clause.parameter, tuple(values), "not" if modifier == "not-in" else None)


def _tokens(codes: Iterable[tuple[str, str]]) -> Iterable[TokenValue]:
    for system, code in codes:
        yield TokenValue(system, code)
        yield TokenValue("", code)


def _references(value: ReferenceValue, direction: Direction, lookup: Lookup) -> Iterable[ReferenceValue]:
    type, id = value.type or "", value.id or ""
    for each in (id, *lookup.related_resources(type, id, direction)):
        yield ReferenceValue(type, each)
