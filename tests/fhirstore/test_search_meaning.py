"""SQL and the in-memory matcher agree, on random index values and random searches."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fhirstore import database, tables
from fhirstore.search import sql
from fhirstore.search.match import match
from fhirstore.search.model import (
    AllOf,
    AnyOf,
    Chain,
    Clause,
    CompositeValue,
    Condition,
    DateValue,
    Has,
    IndexValues,
    Kind,
    Not,
    NumberValue,
    Parameter,
    Prefix,
    Quantity,
    QuantityValue,
    Reference,
    ReferenceValue,
    SearchRequest,
    StringValue,
    Token,
    TokenValue,
    TypedIdentifier,
    TypedValue,
    UriValue,
)
from fhirstore.search.terms import rows

# Small worlds, so that values meet; odd characters, so that quoting and folding are tried.
TEXTS = st.text(st.sampled_from("aAbäÄﬁßI %_\\\"'{},\u0301\U0010ffff\0"), max_size=4) | st.sampled_from(
    ["a" * 199, "a" * 200, "a" * 201, "a" * 200 + "b", "a" * 200 + "%", "NULL", "van buren", "Buren"]
)
WORDS = TEXTS.filter(bool)
SYSTEMS = st.sampled_from([None, "", "s", "S", "s|a"])
CODES = st.sampled_from(["a", "A", "b", "a|b", "", "ß", "ss"])
UNITS = st.sampled_from([None, "mg", "MG", "g"])
MOMENTS = st.integers(-6, 6) | st.sampled_from([-(2**63), 2**63 - 1])
AMOUNTS = st.sampled_from(
    [
        Decimal(text)
        for text in ["-Infinity", "-1.5", "-1", "0", "0.50", "0.5", "1", "1.05", "2", "1E+3", "Infinity"]
    ]
)
FINITE = AMOUNTS.filter(Decimal.is_finite)
IDS = st.sampled_from([str(uuid.UUID(int=number)) for number in range(3)] + ["not-a-uuid"])
BASICS = [str(uuid.uuid4()) for _ in range(3)]
"""Ids of the resources of the world."""
TYPES = st.sampled_from(["Patient", "Group", "Basic"])
URLS = st.sampled_from(
    [
        "https://a.example/",
        "https://a.example/b",
        "https://a.example/bc/",
        "https://a.example",
        "https://a.example|1",
        "urn:uuid:x",
    ]
)
PREFIXES = st.sampled_from(get_args(Prefix))

TOKEN, STRING, REFERENCE, DATE, URI, NUMBER, QUANTITY = (
    Parameter(kind.value, kind)
    for kind in (Kind.TOKEN, Kind.STRING, Kind.REFERENCE, Kind.DATE, Kind.URI, Kind.NUMBER, Kind.QUANTITY)
)

# A composite of each shape: equal parts only, one range, several numbers in the same element.
PAIR, MEASURED, SPAN = (
    Parameter(
        code,
        Kind.COMPOSITE,
        components=tuple(Parameter(str(n), kind) for n, kind in enumerate(kinds)),
        grouped=True,
    )
    for code, kinds in {
        "pair": (Kind.TOKEN, Kind.REFERENCE),
        "measured": (Kind.TOKEN, Kind.QUANTITY),
        "span": (Kind.TOKEN, Kind.NUMBER, Kind.NUMBER),
    }.items()
)


def _pairs(bounds: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, Any]]:
    return st.tuples(bounds, bounds).map(lambda pair: (min(pair), max(pair)))


RANGES = _pairs(MOMENTS).filter(lambda pair: pair[0] < pair[1])
TOKENS = st.builds(Token, SYSTEMS, st.none() | CODES)
REFERENCES = st.builds(Reference, TYPES, IDS | st.sampled_from(BASICS)) | st.builds(
    Reference, st.none(), st.none(), URLS
)
NUMBERS = _pairs(AMOUNTS)
QUANTITIES = st.builds(lambda pair, *unit: Quantity(*pair, *unit), NUMBERS, UNITS, UNITS, UNITS)


def _held(code: str, entries: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, list[Any]]]:
    return st.just({}) | st.lists(entries, min_size=1, max_size=3).map(lambda values: {code: values})


def _some(entries: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    return st.lists(entries, min_size=1, max_size=2)


CODED = _some(TOKENS)
GROUPS = st.fixed_dictionaries(
    {},
    optional={
        "pair": _some(
            st.builds(
                lambda t, r: IndexValues(tokens={"0": t}, references={"1": r}), CODED, _some(REFERENCES)
            )
        ),
        "measured": _some(
            st.builds(
                lambda t, q: IndexValues(tokens={"0": t}, quantities={"1": q}), CODED, _some(QUANTITIES)
            )
        ),
        "span": _some(
            st.builds(
                lambda t, a, b: IndexValues(tokens={"0": t}, numbers={"1": a, "2": b}),
                CODED,
                _some(NUMBERS),
                _some(NUMBERS),
            )
        ),
    },
)
VALUES = st.builds(
    IndexValues,
    groups=GROUPS,
    tokens=_held("token", TOKENS),
    texts=_held("token", TEXTS),
    types=_held("token", st.builds(TypedIdentifier, SYSTEMS, CODES, CODES)),
    strings=_held("string", TEXTS),
    words=_held("string", TEXTS),
    references=_held("reference", REFERENCES),
    identifiers=_held("reference", TOKENS),
    dates=_held("date", RANGES),
    numbers=_held("number", NUMBERS),
    quantities=_held("quantity", QUANTITIES),
    uris=_held("uri", URLS),
)


def _clauses(
    parameter: Parameter, values: st.SearchStrategy[Any], *modifiers: str | None
) -> st.SearchStrategy[Clause]:
    return st.builds(
        Clause,
        st.just(parameter),
        st.lists(values, min_size=1, max_size=3).map(tuple),
        st.sampled_from(modifiers or (None,)),
    )


TOKEN_VALUES = st.builds(TokenValue, SYSTEMS, st.none() | CODES).filter(
    lambda value: value != TokenValue(None, None)
)
TYPED_VALUES = st.builds(TypedValue, SYSTEMS.map(lambda system: system or ""), CODES, CODES)
NUMBER_VALUES = st.builds(
    lambda prefix, value, margin: NumberValue(prefix, value, value - margin, value + margin),
    PREFIXES,
    FINITE,
    st.sampled_from([Decimal("0.5"), Decimal("0.05"), Decimal("0.005")]),
)
REFERENCE_VALUES = st.builds(ReferenceValue, st.none() | TYPES, IDS | st.sampled_from(BASICS)) | st.builds(
    ReferenceValue, st.none(), st.none(), URLS
)


def _composite(parameter: Parameter, *parts: st.SearchStrategy[Any]) -> st.SearchStrategy[Clause]:
    return _clauses(parameter, st.builds(CompositeValue, st.tuples(*parts)))


CLAUSES = st.one_of(
    _composite(PAIR, TOKEN_VALUES, REFERENCE_VALUES),
    _composite(MEASURED, TOKEN_VALUES, st.builds(QuantityValue, NUMBER_VALUES, UNITS, UNITS)),
    _composite(SPAN, TOKEN_VALUES, NUMBER_VALUES, NUMBER_VALUES),
    st.builds(
        lambda parameter, missing: Clause(parameter, (), missing=missing),
        st.sampled_from([TOKEN, STRING, REFERENCE, DATE, URI, NUMBER, QUANTITY, PAIR, MEASURED, SPAN]),
        st.booleans(),
    ),
    _clauses(TOKEN, TOKEN_VALUES, None, "not"),
    _clauses(TOKEN, st.builds(StringValue, WORDS), "text"),
    _clauses(STRING, st.builds(StringValue, WORDS), None, "contains", "exact", "equals", "ends"),
    _clauses(REFERENCE, REFERENCE_VALUES, None, "not"),
    _clauses(REFERENCE, TOKEN_VALUES, "identifier"),
    _clauses(TOKEN, TYPED_VALUES, "of-type"),
    _clauses(URI, st.builds(UriValue, URLS), None, "not", "above"),
    _clauses(URI, st.builds(UriValue, URLS.map(lambda url: url.rstrip("/"))), "below"),
    _clauses(DATE, st.builds(lambda prefix, pair: DateValue(prefix, *pair), PREFIXES, RANGES)),
    _clauses(NUMBER, NUMBER_VALUES),
    _clauses(QUANTITY, st.builds(QuantityValue, NUMBER_VALUES, UNITS, UNITS)),
)


def _combinations(inner: st.SearchStrategy[Condition]) -> st.SearchStrategy[Condition]:
    several = st.lists(inner, min_size=1, max_size=2).map(tuple)
    hops = st.lists(st.tuples(st.sampled_from(["Basic", "Patient"]), inner), min_size=1, max_size=2).map(
        tuple
    )
    return st.one_of(
        st.builds(AllOf, several),
        st.builds(AnyOf, several),
        st.builds(Not, inner),
        st.builds(Chain, st.just(REFERENCE), hops),
        st.builds(Has, st.just("Basic"), st.just(REFERENCE), inner),
    )


CONDITIONS = CLAUSES | st.recursive(CLAUSES, _combinations, max_leaves=4)


@dataclass(frozen=True)
class _World:
    """Resources with these values, in a project of their own."""

    project: str
    values: dict[str, IndexValues]

    def exists(self, type_: str, conditions: tuple[Condition, ...]) -> bool:
        """What the store would say about other resources."""
        request = SearchRequest(type_, conditions)
        return type_ == "Basic" and any(match(request, each, self.exists) for each in self.values.values())


def _store(world: _World) -> sql.Store:
    return sql.Store(tables.fetch, tables.hasher(), world.project, lambda _: sql.TermStatistics(0, {}, 0))


@contextmanager
def _world(values: list[IndexValues]) -> Iterator[_World]:
    """Store the values and take them back. The first resources have ids that references of others name."""
    project = str(uuid.uuid4())
    # ids of a type are unique in all projects; parallel tests work in transactions that never end
    known = {
        id_: replace(each, tokens={**each.tokens, "_id": [Token(None, id_)]})
        for id_, each in zip([*BASICS, *(str(uuid.uuid4()) for _ in values)], values, strict=False)
    }
    with suppress(_TakenBackError), database.transaction():
        for id_, each in known.items():
            moment = tables.Moment.now()
            stored = tables.Stored(
                "Basic", id_, moment.version_id, moment.last_updated, b"{}", False, "create"
            )
            made = rows(tables.hasher(), project, "Basic", each)
            tables.write(project, stored, made, tables.Origin("system", None, 0))
        yield _World(project, known)
        raise _TakenBackError


class _TakenBackError(Exception):
    pass


PLANS = {"collected": (sql.RARE, 200), "walked": (-1, -1), "mixed": (1, 1)}
"""What makes a search take each of its ways: `RARE` and `CHAIN_KEYS`."""


@pytest.mark.usefixtures("database")
@given(
    values=st.lists(VALUES, min_size=1, max_size=4),
    clauses=st.lists(CONDITIONS, min_size=1, max_size=3).map(tuple),
    alternatives=st.none() | st.lists(st.lists(CONDITIONS, max_size=2).map(tuple), max_size=3),
)
@settings(
    max_examples=250,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_sql_means_what_match_means(
    values: list[IndexValues],
    clauses: tuple[Condition, ...],
    alternatives: list[tuple[Condition, ...]] | None,
) -> None:
    request = SearchRequest("Basic", clauses)
    with _world(values) as world:
        expected = {
            id_
            for id_, each in world.values.items()
            if match(request, each, world.exists)
            and (
                alternatives is None
                or any(match(SearchRequest("Basic", each_), each, world.exists) for each_ in alternatives)
            )
        }
        for plan, (rare, keys) in PLANS.items():
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(sql, "RARE", rare)
                patch.setattr(sql, "CHAIN_KEYS", keys)
                query = sql.Query(_store(world), request, alternatives)
                assert {row[0] for row in query.page()} == expected, plan
                assert query.total() == len(expected), plan


@pytest.mark.usefixtures("database")
@given(
    updated=st.integers(0, 5),
    prefix=PREFIXES,
    pair=_pairs(st.integers(-2, 7)).filter(lambda pair: pair[0] < pair[1]),
)
@settings(max_examples=100, deadline=None)
def test_last_updated_means_the_same_too(updated: int, prefix: Prefix, pair: tuple[int, int]) -> None:
    # Milliseconds around a moment; the parameter is a column in SQL and a value in the index.
    start = int(datetime(2026, 1, 1, tzinfo=UTC).timestamp() * 1000)
    parameter = Parameter("_lastUpdated", Kind.DATE)
    low, high = ((start + bound) * 1000 for bound in pair)
    request = SearchRequest("Basic", (Clause(parameter, (DateValue(prefix, low, high),)),))
    moment = tables.Moment(start + updated, tables.uuid7(start + updated))
    project, id_ = str(uuid.uuid4()), str(uuid.uuid4())
    values = IndexValues(dates={"_lastUpdated": [((start + updated) * 1000, (start + updated + 1) * 1000)]})
    with suppress(_TakenBackError), database.transaction():
        stored = tables.Stored("Basic", id_, moment.version_id, moment.last_updated, b"{}", False, "create")
        made = rows(tables.hasher(), project, "Basic", values)
        tables.write(project, stored, made, tables.Origin("system", None, 0))
        query = sql.Query(_store(_World(project, {})), request, None)
        assert bool(query.page()) is match(request, values)
        raise _TakenBackError
