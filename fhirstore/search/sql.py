# ruff: noqa: S608  (built of constants, numbers and resource types from the definitions; values are parameters)
"""A search as SQL over the store's tables; it means exactly what :mod:`fhirstore.search.match` says.

Clauses on tokens, references, URIs and exact strings become array conditions on ``resource.idx`` (a GIN index); prefixes,
dates and numbers are looked up in the value tables. How a search runs is decided here and not left to the planner,
which cannot know how rare a combination is and knows nothing at all about tables that are still young:

1. A rare term among the ANDed ones by ``pg_stats``, or an ``_id``: collect all matches, then sort them.
2. A rare range in a value table: it is probed first, and its hits are collected and sorted.
3. Otherwise an index is walked in the order that is wanted until the page is full, and each row is checked: the one on
   ``last_updated``, or that of the value table which ``_sort`` begins with.

Of ``n`` resources and ``m`` matches, collecting looks at ``m`` rows, walking at about ``n / m`` for each row of the page.
Rare is therefore what matches at most ``sqrt(n * page)``, within :data:`FEW` and :data:`RARE`; in a table without
statistics, whatever matches at most :data:`RARE`.

Chains and ``_has`` look at the other side first. If few resources fit there (:data:`CHAIN_KEYS`, or rare as above), their ids
become terms or ids of this side; else, or when this side is rare already, each candidate is checked by a correlated EXISTS: by
id along a chain, by the term of the reference, which SQL computes from the candidate's id, against it (``_has``). To count all matches, what fits
on the other side is collected once.

Conditions are written so that only the index meant for them can serve them: ``project IS NOT DISTINCT FROM`` and
``param + 0`` are out of reach of the indexes that begin with these columns.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import count
from typing import Any, Final, cast

from fhirstore import errors
from fhirstore.search.index import fold_code, normalize
from fhirstore.search.match import EARTH_RADIUS, above
from fhirstore.search.model import (
    AllOf,
    AnyOf,
    Chain,
    Clause,
    CompositeValue,
    Condition,
    Cursor,
    DateValue,
    Has,
    Kind,
    NearValue,
    Not,
    NumberValue,
    Parameter,
    Prefix,
    QuantityValue,
    ReferenceValue,
    SearchRequest,
    StringValue,
    TokenValue,
    TypedValue,
    UriValue,
    Value,
    relational,
)
from fhirstore.search.terms import (
    AXES,
    COLUMNS,
    HEAD,
    Hasher,
    Key,
    bounded,
    canonical_uuid,
    group_text,
    pair_text,
    storable,
    typed_text,
)

RARE: Final = 3000
"""Matches that are collected first at most, however large the table is."""

FEW: Final = 500
"""Matches that are always collected first: that costs less than thinking about it."""

CHAIN_KEYS: Final = 200
"""Resources that a chain looks up first at most; when more fit, each candidate is checked instead."""

MAX_PAGE_BYTES: Final = 64 * 2**20
"""Of the resources on a page; a single one may have more."""

_CONTENT: Final = (
    "CASE WHEN sum(octet_length(v.content)) OVER () <= %(page_bytes)s OR count(*) OVER () <= 2"
    " THEN v.content END"
)
"""The content, or nothing where all of the page would be too much to hold (a page of one reads two rows)."""


class PageTooLargeError(errors.FhirError):
    """400, ``too-costly``: the resources on the page are too large to be sent together."""

    def __init__(self) -> None:
        text = f"The page holds more than {MAX_PAGE_BYTES >> 20} MB: ask for fewer resources with _count"
        super().__init__(errors.too_costly(text).outcome)


Alternatives = Sequence[Sequence[Condition]]
"""What an AccessPolicy adds: one of these conjunctions must fit as well."""

Restrict = Callable[[str], Alternatives | None]
"""What the AccessPolicy adds for the resources of a type; None when everything may be seen."""

_TABLES: Final = {
    Kind.STRING: ("value_string", "value"),
    Kind.DATE: ("value_date", "low"),
    Kind.NUMBER: ("value_number", "low"),
    Kind.QUANTITY: ("value_number", "low"),
}
"""Value tables by kind, with the column they are ordered by."""

_INSTANT: Final = 1000
"""Microseconds that a ``lastUpdated`` spans: it is written in milliseconds."""


@dataclass(frozen=True, slots=True)
class _Range:
    """A clause on a value table, as the places to look at (one per alternative)."""

    table: str
    key: str
    conditions: tuple[str, ...]

    def probe(self) -> str:
        """Select the resources that fit, by the index on (param, value)."""
        return " UNION ALL ".join(
            f"(SELECT s.rid FROM {self.table} s WHERE s.param = {self.key}::bigint AND {condition})"
            for condition in self.conditions
        )

    def check(self, alias: str) -> str:
        """A condition on one resource, by the index on (rid). OFFSET keeps it from becoming a join."""
        either = " OR ".join(f"({condition})" for condition in self.conditions)
        return (
            f"EXISTS (SELECT FROM {self.table} s"
            f" WHERE s.rid = {alias}.rid AND s.param + 0 = {self.key}::bigint AND ({either}) OFFSET 0)"
        )


@dataclass(frozen=True, slots=True)
class _Link:
    """A clause on other resources.

    Attributes:
        single: checks one candidate.
        whole: the same for all candidates at once: what fits on the other side is collected first.
    """

    single: str
    whole: str

    def check(self, _alias: str) -> str:
        """A condition on one resource."""
        return self.single


Built = str | _Range | _Link
"""A condition as SQL, or one that can be written in several ways."""

Fetch = Callable[[str, Mapping[str, Any]], list[tuple[Any, ...]]]
"""Runs a statement and returns its rows."""


@dataclass(frozen=True)
class Store:
    """What searches look into: the resources of one project, as one identity may see them.

    Attributes:
        fetch: runs a statement.
        hasher: makes the terms.
        project: the only project looked into.
        statistics: of the terms of a type.
        restrict: what the AccessPolicy adds where a chain or ``_has`` passes; criteria of the policy itself are free of it.
    """

    fetch: Fetch
    hasher: Hasher
    project: str
    statistics: Callable[[str], TermStatistics]
    restrict: Restrict = lambda _: None
    _known: dict[Any, list[str] | None] = field(default_factory=dict, repr=False)
    _numbers: Iterator[int] = field(default_factory=count, repr=False)

    def alias(self) -> str:
        """A name for rows that no other part of the statement uses."""
        return f"t{next(self._numbers)}"

    def remember(self, key: Any, find: Callable[[], list[str] | None]) -> list[str] | None:
        """What ``find`` returns, asked once."""
        if key not in self._known:
            self._known[key] = find()
        return self._known[key]


class Query:
    """One search in one project.

    Args:
        store: what is searched; made for this one search, as it remembers what it found on the way.
        request: what is asked; its type comes from the definitions.
        alternatives: conjunctions of an AccessPolicy, None when everything may be seen.
        trusted: the request is itself a part of a policy, so that no other policy counts in it.
    """

    def __init__(
        self,
        store: Store,
        request: SearchRequest,
        alternatives: Alternatives | None,
        *,
        trusted: bool = False,
    ) -> None:
        self._store = store
        self._request = request
        self._bound = RARE
        statistics = store.statistics(request.type)
        if statistics.common:
            page = request.offset + request.count + 1
            self._bound = min(RARE, max(FEW, math.isqrt(int(statistics.rows) * page)))
        self._values: dict[str, Any] = {}
        self._builder = _Builder(store, request.type, "r", self._values, self._bound)
        self._conditions = self._builder.all(request.clauses, alternatives, trusted=trusted)
        self._rare = self._builder.rare
        if not self._rare:
            self._probe()

    def page(self) -> list[tuple[Any, ...]]:
        """Return the matches on the page, and one more if there is: id, version_id, last_updated, content, interaction."""
        sort = self._request.sort[0].parameter if self._request.sort else None
        if not self._rare and sort is not None and sort.kind in _TABLES and sort.code not in COLUMNS:
            found = self._read_page(self._walk())
            if len(found) > self._request.count:
                return found
            # Matches without the value, which come last, are needed as well.
        return self._read_page(self._collect())

    def _collect(self) -> str:
        """Select the rows of the page by collecting the matches, or by walking the index on last_updated."""
        columns, order = self._order()
        inner = (
            f"SELECT r.rid, r.id, r.version_id, r.last_updated{columns} FROM resource r WHERE {self._where()}"
        )
        limit = f"ORDER BY {', '.join(order)} {self._limit()}"
        if self._rare:
            return f"WITH found AS MATERIALIZED ({inner}), page AS (SELECT * FROM found {limit})"
        return f"WITH page AS MATERIALIZED ({inner} {limit})"

    def _walk(self) -> str:
        """Select the rows of the page by walking a value table in its order."""
        sort = self._request.sort[0]
        table, column = _TABLES[sort.parameter.kind]
        param = self._builder.parameter(self._builder.key(sort.parameter).param, "::bigint")
        columns, order = self._order(first=column)
        whole = " AND s.whole" if table == "value_string" else ""
        # Of several values of a resource only the one that comes first.
        earlier = (
            f"SELECT FROM {table} o WHERE o.rid = s.rid AND o.param + 0 = {param}{whole.replace('s.', 'o.')}"
            f" AND (o.{column}, o.ctid) {'>' if sort.descending else '<'} (s.{column}, s.ctid) OFFSET 0"
        )
        return (
            f"WITH page AS MATERIALIZED (SELECT r.rid, r.id, r.version_id, r.last_updated{columns}"
            f" FROM {table} s JOIN resource r ON r.rid = s.rid"
            f" WHERE s.param = {param}{whole} AND NOT EXISTS ({earlier}) AND {self._where(walking=True)}"
            f" ORDER BY {', '.join(order)} {self._limit()})"
        )

    def _limit(self) -> str:
        return f"LIMIT {self._request.count + 1} OFFSET {self._request.offset}"

    def _read_page(self, page: str) -> list[tuple[Any, ...]]:
        order = ", ".join(f"p.{name}" for name in self._order()[1])
        found = self._store.fetch(
            f"{page} SELECT p.id::text, p.version_id::text, p.last_updated, {_CONTENT}, v.interaction FROM page p"
            f" JOIN version v ON v.rid = p.rid AND v.version_id = p.version_id ORDER BY {order}",
            {**self._values, "page_bytes": MAX_PAGE_BYTES},
        )
        if found and found[0][3] is None:
            raise PageTooLargeError
        return found

    def total(self) -> int:
        """Count all matches."""
        text = f"SELECT count(*) FROM resource r WHERE {self._where(count=True)}"
        return int(self._store.fetch(text, self._values)[0][0])

    @property
    def rare(self) -> bool:
        """The matches are few, or found without looking at all resources."""
        return self._rare

    def exists(self) -> bool:
        """True if there is a match."""
        return bool(self._store.fetch(f"SELECT FROM resource r WHERE {self._where()} LIMIT 1", self._values))

    def ids(self, most: int) -> list[str] | None:
        """The ids of all matches, None if there are more than ``most``."""
        text = f"SELECT r.id::text FROM resource r WHERE {self._where()} LIMIT {most + 1}"
        found = self._store.fetch(text, self._values)
        return [id_ for (id_,) in found] if len(found) <= most else None

    def targets(self, pid: int, most: int) -> list[str] | None:
        """The ids that all matches refer to by a parameter, None if there are more than ``most`` references."""
        text = (
            "SELECT l.id::text FROM resource r CROSS JOIN LATERAL unnest(r.ref_pid, r.ref_id) l(pid, id)"
            f" WHERE {self._where()} AND l.pid = {self._builder.parameter(pid, '::integer')} LIMIT {most + 1}"
        )
        found = self._store.fetch(text, self._values)
        return list(dict.fromkeys(id_ for (id_,) in found)) if len(found) <= most else None

    def estimate(self) -> int:
        """The planner's estimate of the number of matches; the exact number where matches are rare anyway."""
        if self._rare:
            return self.total()
        text = f"EXPLAIN (FORMAT JSON) SELECT FROM resource r WHERE {self._where(count=True)}"
        return int(self._store.fetch(text, self._values)[0][0][0]["Plan"]["Plan Rows"])

    def _where(self, *, count: bool = False, walking: bool = False) -> str:
        """All conditions.

        Args:
            count: collect a range or what is linked at once instead of checking every resource.
            walking: resources are found by their ``rid``.
        """
        equals = "IS NOT DISTINCT FROM" if self._rare or walking else "="
        deleted = "r.deleted" if self._request.deleted else "NOT r.deleted"
        built = [f"r.type = '{self._request.type}'", f"r.project {equals} {self._builder.project}", deleted]
        if (cursor := self._request.cursor) is not None and not count:
            built.append(self._behind(cursor))
        whole = count and not self._rare
        for condition in self._conditions:
            if isinstance(condition, str):
                built.append(condition)
            elif isinstance(condition, _Link):
                built.append(condition.whole if whole else condition.single)
            elif count:
                built.append(f"r.rid = ANY(ARRAY({condition.probe()}))")
                count = False
            else:
                built.append(condition.check("r"))
        return " AND ".join(built)

    def _behind(self, cursor: Cursor) -> str:
        """Behind the match a cursor names; one that is gone leaves only its time, which may show others of it again."""
        descending = not self._request.sort or self._request.sort[0].descending
        time = self._builder.value("cursor_time", _datetime(cursor.milliseconds * 1000))
        if cursor.id is None:
            return f"r.last_updated {'<=' if descending else '>='} {time}::timestamptz"
        id_, type_ = (
            self._builder.value("cursor_id", cursor.id),
            self._builder.value("cursor_type", cursor.type),
        )
        rid = (
            f"(SELECT c.rid FROM resource c WHERE c.type = {type_}::text AND c.id = {id_}::uuid"
            f" AND c.project = {self._builder.project})"
        )
        limit = 2**63 - 1 if descending else -1
        return f"(r.last_updated, r.rid) {'<' if descending else '>'} ({time}::timestamptz, coalesce({rid}, {limit}))"

    def _probe(self) -> None:
        """Look for a range that is rare enough to start from."""
        for number, condition in enumerate(self._conditions):
            if isinstance(condition, _Range):
                hits = self._store.fetch(f"{condition.probe()} LIMIT {self._bound + 1}", self._values)
                if len(hits) <= self._bound:
                    rids = "{" + ",".join(str(rid) for (rid,) in hits) + "}"
                    self._conditions[number] = f"r.rid = ANY({self._builder.parameter(rids)}::bigint[])"
                    self._rare = True
                    return

    # --- order ---------------------------------------------------------------------------------------------

    def _order(self, first: str | None = None) -> tuple[str, list[str]]:
        """Additional select columns, and the ORDER BY list as columns of the page.

        Args:
            first: the column of a value table that is walked for the first sort parameter.
        """
        columns: list[str] = []
        order: list[str] = []
        for number, sort in enumerate(self._request.sort):
            direction = "DESC" if sort.descending else "ASC"
            if sort.parameter.code in COLUMNS:
                name = "id" if sort.parameter.code == "_id" else "last_updated"
                order.append(f"{name} {direction}")
            elif number == 0 and first is not None:
                columns.append(f", s.{first} AS sort0")
                order.append(f"sort0 {direction}")
            else:
                columns.append(
                    f", {self._sort_column(sort.parameter, descending=sort.descending)} AS sort{number}"
                )
                order.append(f"sort{number} {direction} NULLS LAST")
        if not self._request.sort:
            order.append("last_updated DESC")
        # The last word makes pages stable; it runs in the index's direction where last_updated leads.
        order.append("rid ASC" if order[-1] == "last_updated ASC" else "rid DESC")
        return "".join(columns), order

    def _sort_column(self, parameter: Parameter, *, descending: bool) -> str:
        key = self._builder.key(parameter)
        if parameter.kind not in _TABLES:
            pid = self._builder.value(f"pid_{key.pid}", key.pid)
            return f"(r.sort_value)[array_position(r.sort_pid, {pid}::integer)]"
        table, column = _TABLES[parameter.kind]
        param = self._builder.value(f"param_{key.param}", key.param)
        return (
            f"(SELECT {'max' if descending else 'min'}(s.{column}) FROM {table} s"
            f" WHERE s.rid = r.rid AND s.param + 0 = {param}::bigint{' AND s.whole' if column == 'value' else ''})"
        )


class _Builder:
    """Writes conditions on the rows of ``resource`` called ``alias``.

    Attributes:
        rare: one of the ANDed conditions says that few rows fit, and an index finds them.
    """

    def __init__(self, store: Store, type_: str, alias: str, values: dict[str, Any], bound: int) -> None:
        self._store = store
        self._hasher = store.hasher
        self._type = type_
        self._alias = alias
        self._values = values
        self._bound = bound
        self._frequency = store.statistics(type_).frequency
        self._trusted = False
        self.rare = False

    def all(
        self, conditions: Iterable[Condition], alternatives: Alternatives | None, *, trusted: bool
    ) -> list[Built]:
        """The conditions, and those of a policy of which one conjunction has to fit."""
        self._trusted = trusted
        built = self._conjunction(conditions)
        self._trusted = True
        if alternatives is not None and len(alternatives) == 1:
            # A single alternative is as good as conditions of the request.
            built += self._conjunction(alternatives[0])
        elif alternatives is not None:
            built.append(self._disjunction(alternatives))
        return built

    def value(self, name: str, value: Any) -> str:
        """A named placeholder."""
        self._values[name] = value
        return f"%({name})s"

    def parameter(self, value: Any, cast: str = "") -> str:
        """A placeholder of its own."""
        return self.value(f"p{len(self._values)}", value) + cast

    @property
    def project(self) -> str:
        """The project as a uuid."""
        return self.value("project", self._store.project) + "::uuid"

    def key(self, parameter: Parameter, suffix: str = "") -> Key:
        """The key of a parameter of this type."""
        return self._hasher.key(self._store.project, self._type, parameter.code + suffix)

    # --- conditions ----------------------------------------------------------------------------------------

    def _conjunction(self, conditions: Iterable[Condition]) -> list[Built]:
        """The conditions one by one. Those about other resources come last: they ask what is rare already."""
        built: list[Built] = []
        for condition in sorted(conditions, key=relational):
            if isinstance(condition, AllOf):
                built += self._conjunction(condition.conditions)
            else:
                built.append(self._condition(condition))
        return built

    def _condition(self, condition: Condition) -> Built:
        match condition:
            case Clause():
                return self._clause(condition)
            case Chain():
                return self._chain(condition)
            case Has():
                return self._referred(condition)
            case AnyOf(conditions):
                return self._disjunction([(each,) for each in conditions])
            case AllOf(conditions):
                return self._disjunction([conditions])
            case Not(inner):
                rare_before = self.rare
                negated = self._disjunction([(inner,)])
                self.rare = rare_before
                return f"NOT {negated}"

    def _disjunction(self, alternatives: Alternatives) -> str:
        """One of the conjunctions; as rare as its most common one."""
        rare_before, all_rare = self.rare, bool(alternatives)
        built = []
        for conditions in alternatives:
            self.rare = False
            checks = [
                each if isinstance(each, str) else each.check(self._alias)
                for each in self._conjunction(conditions)
            ]
            built.append("(" + " AND ".join(["TRUE", *checks]) + ")")
            all_rare = all_rare and self.rare
        self.rare = rare_before or all_rare
        return "(" + " OR ".join(built) + ")" if built else "FALSE"

    # --- other resources -----------------------------------------------------------------------------------

    def _rules(self, type_: str) -> Alternatives | None:
        return None if self._trusted else self._store.restrict(type_)

    def _other(self, type_: str, condition: Condition, most: int) -> Query:
        """The search for the resources on the other side of a link."""
        request = SearchRequest(type_, (condition,), count=most)
        return Query(self._store, request, self._rules(type_), trusted=self._trusted)

    def _chain(self, chain: Chain) -> Built:
        code = chain.parameter.code
        terms: list[int] = []
        links: list[_Link] = []
        for target, condition in chain.hops:
            ids = None if self.rare else self._targets(target, condition)
            if ids is None:
                links.append(self._chain_check(code, target, condition))
            else:
                terms += [
                    self._hasher.reference(self._store.project, self._type, code, target, id_) for id_ in ids
                ]
        if not links:
            return self._has_terms(terms, negated=False)
        if terms:
            rare_before = self.rare
            known = self._has_terms(terms, negated=False)
            links.append(_Link(known, known))
            self.rare = rare_before
        singles, wholes = zip(*((each.single, each.whole) for each in links), strict=True)
        return _Link("(" + " OR ".join(singles) + ")", "(" + " OR ".join(wholes) + ")")

    def _targets(self, target: str, condition: Condition) -> list[str] | None:
        return self._store.remember(
            (target, condition, self._trusted),
            lambda: self._other(target, condition, CHAIN_KEYS).ids(CHAIN_KEYS),
        )

    def _chain_check(self, code: str, target: str, condition: Condition) -> _Link:
        """One row's references, looked up by id; or compared with the ids of all that fit."""
        key = self._hasher.target_key(self._store.project, self._type, code, target)
        pid = self.parameter(key.pid, "::integer")
        references = f"unnest({self._alias}.ref_pid, {self._alias}.ref_id) l(pid, id)"
        alias = self._store.alias()
        found = (
            f"SELECT FROM {references} CROSS JOIN LATERAL"
            f" (SELECT t.* FROM resource t WHERE t.type = '{target}' AND t.id = l.id AND NOT t.deleted"
            f" AND t.project IS NOT DISTINCT FROM {self.project} OFFSET 0) {alias}"
            f" WHERE l.pid = {pid}"
        )
        fitting = self._all_of(target, condition, "{alias}.id", "")
        # IS TRUE keeps the planner from turning it into look-ups one by one: collected once, it is a hash table.
        whole = f"EXISTS (SELECT FROM {references} WHERE l.pid = {pid} AND (l.id IN ({fitting})) IS TRUE OFFSET 0)"
        return _Link(self._exists(found, target, alias, condition), whole)

    def _all_of(self, type_: str, condition: Condition, column: str, join: str, more: str = "") -> str:
        """Select a column of all that fit a condition on the other side; ``{alias}`` stands for its rows."""
        alias = self._store.alias()
        builder = _Builder(self._store, type_, alias, self._values, self._bound)
        builder.rare = True
        conditions = [
            f"{alias}.type = '{type_}'",
            f"NOT {alias}.deleted",
            f"{alias}.project = {self.project}",
        ]
        for each in builder.all((condition,), self._rules(type_), trusted=self._trusted):
            if isinstance(each, _Range):
                conditions.append(f"{alias}.rid IN ({each.probe()})")
            else:
                conditions.append(each if isinstance(each, str) else each.whole)
        text = f"SELECT {column} FROM resource {{alias}}{join} WHERE {{conditions}}{more}"
        return text.replace("{alias}", alias).replace("{conditions}", " AND ".join(conditions))

    def _referred(self, has: Has) -> Built:
        key = self._hasher.target_key(self._store.project, has.type, has.parameter.code, self._type)
        if not self.rare:
            other = self._other(has.type, has.condition, self._bound)
            known = (has.type, has.condition, key.pid, self._bound, self._trusted)
            ids = (
                self._store.remember(known, lambda: other.targets(key.pid, self._bound))
                if other.rare
                else None
            )
            if ids is not None:
                self.rare = True
                return f"{self._alias}.id = ANY({self.parameter('{' + ','.join(ids) + '}', '::uuid[]')})"
        alias = self._store.alias()
        text = f"translate({self._alias}.id::text, '-', '')"
        term = (
            f"(('x' || left({text}, 16))::bit(64)::bigint # ('x' || right({text}, 16))::bit(64)::bigint"
            f" # {self.parameter(key.param, '::bigint')})"
        )
        found = (
            f"SELECT FROM resource {alias} WHERE {alias}.type = '{has.type}' AND {alias}.idx @> ARRAY[{term}]"
            f" AND NOT {alias}.deleted AND {alias}.project IS NOT DISTINCT FROM {self.project}"
        )
        unnested = " CROSS JOIN LATERAL unnest({alias}.ref_pid, {alias}.ref_id) l(pid, id)"
        pid = f" AND l.pid = {self.parameter(key.pid, '::integer')}"
        whole = f"{self._alias}.id IN ({self._all_of(has.type, has.condition, 'l.id', unnested, pid)})"
        return _Link(self._exists(found, has.type, alias, has.condition), whole)

    def _exists(self, found: str, type_: str, alias: str, condition: Condition) -> str:
        builder = _Builder(self._store, type_, alias, self._values, self._bound)
        # Candidates come one by one here; nothing is to be looked up first.
        builder.rare = True
        conditions = builder.all((condition,), self._rules(type_), trusted=self._trusted)
        checks = [each if isinstance(each, str) else each.check(alias) for each in conditions]
        return f"EXISTS ({' AND '.join([found, *checks])} OFFSET 0)"

    # --- clauses -------------------------------------------------------------------------------------------

    def _clause(self, clause: Clause) -> Built:
        if clause.missing is not None:
            return self._missing(clause.parameter, missing=clause.missing)
        if clause.parameter.code == "_id":
            return _negated(self._id(clause.values), clause.modifier)
        if clause.parameter.code == "_lastUpdated":
            conditions = [self._last_updated(cast(DateValue, value)) for value in clause.values]
            return "(" + " OR ".join(conditions) + ")"
        return self._BY_KIND.get(clause.parameter.kind, _Builder._terms)(self, clause)

    def _string(self, clause: Clause) -> Built:
        if clause.modifier == "exact":
            return self._terms(clause)
        condition = self._STRINGS.get(clause.modifier, _Builder._starts)
        return self._range(clause.parameter, [condition(self, value) for value in clause.values])

    def _token(self, clause: Clause) -> Built:
        if clause.modifier != "text":
            return self._terms(clause)
        key = self.parameter(self.key(clause.parameter, ":text").param)
        return _Range("value_string", key, tuple(map(self._text, clause.values)))

    def _uri(self, clause: Clause) -> Built:
        if clause.modifier == "above":
            uris = {uri for value in clause.values for uri in above(cast(UriValue, value).uri)}
            clause = Clause(clause.parameter, tuple(map(UriValue, sorted(uris))))
        return self._terms(clause)

    def _dates(self, clause: Clause) -> Built:
        return self._range(clause.parameter, map(self._date, clause.values))

    def _numbers(self, clause: Clause) -> Built:
        return self._range(clause.parameter, map(self._number, clause.values))

    def _places(self, clause: Clause) -> Built:
        return self._either([self._near(clause.parameter, cast(NearValue, value)) for value in clause.values])

    def _either(self, conditions: Sequence[Built]) -> Built:
        """One of several conditions; a single one as it is."""
        if len(conditions) == 1:
            return conditions[0]
        checks = [each if isinstance(each, str) else each.check(self._alias) for each in conditions]
        return "(" + " OR ".join(checks) + ")"

    def _composite(self, clause: Clause) -> Built:
        values = [cast(CompositeValue, value) for value in clause.values]
        components = clause.parameter.components
        ranged = [number for number, each in enumerate(components) if each.kind in _TABLES]
        texts = [
            group_text(
                _group_part(part)
                for each, part in zip(components, value.parts, strict=True)
                if each.kind not in _TABLES
            )
            for value in values
        ]
        key = self.key(clause.parameter)
        if not ranged:
            return self._has_terms([self._hasher.term(key, text) for text in texts], negated=False)
        found: list[Built] = []
        for value, text in zip(values, texts, strict=True):
            ranges = []
            for number in ranged:
                part = Clause(components[number], (value.parts[number],))
                at = self.parameter(self._hasher.term(key, f"{number}{text}"))
                ranges.append(replace(cast(_Range, self._clause(part)), key=at))
            found.append(ranges[0] if len(ranges) == 1 else self._same_group(ranges))
        return self._either(found)

    def _same_group(self, ranges: Sequence[_Range]) -> str:
        """Ranges of numbers that have to stand in the same group, which their rows name."""
        first, *others = ranges
        found = (
            f"SELECT FROM {first.table} g WHERE g.rid = {self._alias}.rid AND g.param + 0 = {first.key}::bigint"
            f" AND {first.conditions[0].replace('s.', 'g.')}"
        )
        for each in others:
            found += (
                f" AND EXISTS (SELECT FROM {each.table} s WHERE s.rid = g.rid AND s.unit = g.unit"
                f" AND s.param + 0 = {each.key}::bigint AND {each.conditions[0]})"
            )
        return f"EXISTS ({found} OFFSET 0)"

    def _near(self, parameter: Parameter, near: NearValue) -> str:
        """Within the distance; as :func:`fhirstore.search.match.distance` computes it."""
        latitude, longitude = (self.parameter(each, "::float8") for each in (near.latitude, near.longitude))
        at = [self.parameter(self.key(parameter, f":{axis}").param, "::bigint") for axis in AXES]
        y, x = "y.low::float8", "x.low::float8"
        square = (
            f"power(sin(radians({y} - {latitude}) / 2), 2) + power(sin(radians({x} - {longitude}) / 2), 2)"
            f" * cos(radians({latitude})) * cos(radians({y}))"
        )
        return (
            f"EXISTS (SELECT FROM value_number y JOIN value_number x ON x.rid = y.rid AND x.unit = y.unit"
            f" WHERE y.rid = {self._alias}.rid AND y.param + 0 = {at[0]} AND x.param + 0 = {at[1]}"
            f" AND {2 * EARTH_RADIUS} * asin(least(1, sqrt({square}))) <= {self.parameter(near.distance, '::float8')}"
            " OFFSET 0)"
        )

    def _range(self, parameter: Parameter, conditions: Iterable[str]) -> _Range:
        key = self.parameter(self.key(parameter).param)
        return _Range(_TABLES[parameter.kind][0], key, tuple(conditions))

    _BY_KIND: Final[dict[Kind, Callable[[_Builder, Clause], Built]]] = {
        Kind.TOKEN: _token,
        Kind.STRING: _string,
        Kind.URI: _uri,
        Kind.DATE: _dates,
        Kind.NUMBER: _numbers,
        Kind.QUANTITY: _numbers,
        Kind.COMPOSITE: _composite,
        Kind.SPECIAL: _places,
    }

    # --- terms of idx --------------------------------------------------------------------------------------

    def _missing(self, parameter: Parameter, *, missing: bool) -> str:
        if parameter.code in COLUMNS:
            return "FALSE" if missing else "TRUE"
        return self._has_terms([self.key(parameter).present], negated=missing)

    def _terms(self, clause: Clause) -> str:
        key = self.key(clause.parameter)
        kind = "n" if clause.modifier == "identifier" else ""
        terms = [
            self._reference(clause.parameter, value)
            if isinstance(value, ReferenceValue) and value.type is not None and value.id is not None
            else self._hasher.term(key, kind + _term_text(value, clause.modifier))
            for value in clause.values
        ]
        return self._has_terms(terms, negated=clause.modifier == "not")

    def _reference(self, parameter: Parameter, value: ReferenceValue) -> int:
        return self._hasher.reference(
            self._store.project, self._type, parameter.code, value.type or "", value.id or ""
        )

    def _has_terms(self, terms: list[int], *, negated: bool) -> str:
        if not negated and sum(map(self._frequency, terms)) <= self._bound:
            self.rare = True
        operator = "@>" if len(terms) == 1 else "&&"
        condition = f"{self._alias}.idx {operator} " + self.parameter(
            "{" + ",".join(map(str, terms)) + "}", "::bigint[]"
        )
        return f"NOT ({condition})" if negated else condition

    # --- columns -------------------------------------------------------------------------------------------

    def _id(self, values: Iterable[Value]) -> str:
        ids = []
        for value in values:
            if isinstance(value, TokenValue) and not value.system:
                if value.code is None:
                    return "TRUE"
                if canonical_uuid(value.code):
                    ids.append(value.code)
        if not ids:
            return "FALSE"
        self.rare = True
        return f"{self._alias}.id = ANY(" + self.parameter("{" + ",".join(ids) + "}", "::uuid[]") + ")"

    def _last_updated(self, value: DateValue) -> str:
        def compare(operator: str, microseconds: int) -> str:
            return f"{self._alias}.last_updated {operator} " + self.parameter(
                _datetime(microseconds), "::timestamptz"
            )

        low, high = value.low, value.high
        match value.prefix:
            case "lt":
                return compare("<", low)
            case "gt":
                return compare(">", high - _INSTANT)
            case "le":
                return compare("<", high)
            case "ge":
                return compare(">", low - _INSTANT)
            case "sa":
                return compare(">=", high)
            case "eb":
                return compare("<=", low - _INSTANT)
            case "sw":
                return f"({compare('>=', low)} AND {compare('<', high)})"
            case "ne":
                return f"({compare('>=', high)} OR {compare('<=', low - _INSTANT)})"
            case _:
                return f"({compare('<', high)} AND {compare('>', low - _INSTANT)})"

    # --- value tables --------------------------------------------------------------------------------------

    def _starts(self, value: Value) -> str:
        text = storable(normalize(cast(StringValue, value).text))
        head, tail = text[:HEAD], text[HEAD:]
        if tail:
            return f"s.value = {self.parameter(head)} AND s.tail LIKE {self.parameter(_escaped(tail) + '%')}"
        condition = f"s.value >= {self.parameter(head)}"
        if (end := _after(head)) is not None:
            condition += f" AND s.value < {self.parameter(end)}"
        return condition

    def _equals(self, value: Value) -> str:
        text = storable(normalize(cast(StringValue, value).text))
        head, tail = text[:HEAD], text[HEAD:]
        return f"s.whole AND s.value = {self.parameter(head)} AND s.tail = {self.parameter(tail)}"

    def _ends(self, value: Value) -> str:
        text = storable(normalize(cast(StringValue, value).text))
        return f"s.whole AND s.value || s.tail LIKE {self.parameter('%' + _escaped(text))}"

    def _contains(self, value: Value) -> str:
        text = storable(normalize(cast(StringValue, value).text))
        return f"s.value || s.tail LIKE {self.parameter(f'%{_escaped(text)}%')}"

    def _text(self, value: Value) -> str:
        text = storable(normalize(cast(StringValue, value).text))
        return f"' ' || s.value || s.tail LIKE {self.parameter(f'% {_escaped(text)}%')}"

    _STRINGS: Final[dict[str | None, Callable[[_Builder, Value], str]]] = {
        "contains": _contains,
        "equals": _equals,
        "ends": _ends,
    }

    def _date(self, value: Value) -> str:
        date = cast(DateValue, value)
        low, high = (self.parameter(_int64(bound), "::bigint") for bound in (date.low, date.high))
        return _overlap(date.prefix, low, high)

    def _number(self, value: Value) -> str:
        if not isinstance(value, QuantityValue):
            return self._amount(cast(NumberValue, value))
        condition = self._amount(value.number)
        code = None if value.code is None else self.parameter(storable(value.code))
        if value.system is not None:
            condition += f" AND s.system = {self.parameter(storable(value.system))}"
            return condition if code is None else f"{condition} AND s.code = {code}"
        return condition if code is None else f"{condition} AND (s.code = {code} OR s.unit = {code})"

    def _amount(self, number: NumberValue) -> str:
        compared = [
            f"s.{column} {operator} "
            + self.parameter(str(bounded(cast(Decimal, getattr(number, bound)))), "::numeric")
            for column, operator, bound in _AMOUNTS[number.prefix]
        ]
        return "(" + (" OR " if number.prefix == "ne" else " AND ").join(compared) + ")"


_AMOUNTS: Final[dict[Prefix, tuple[tuple[str, str, str], ...]]] = {
    "eq": (("low", "<", "high"), ("high", ">=", "low")),
    "ne": (("low", ">=", "high"), ("high", "<", "low")),
    "lt": (("low", "<", "value"),),
    "gt": (("high", ">", "value"),),
    "le": (("low", "<=", "value"),),
    "ge": (("high", ">=", "value"),),
    "sa": (("low", ">", "value"),),
    "eb": (("high", "<", "value"),),
    "sw": (("low", ">=", "low"), ("low", "<", "high")),
    "ap": (("low", "<=", "high"), ("high", ">=", "low")),
}
"""How a row's closed range is compared: column, operator, and the bound of the query."""


def _overlap(prefix: str, low: str, high: str) -> str:
    """Compare a row's half-open range with [low, high)."""
    conditions = {
        "lt": f"s.low < {low}",
        "gt": f"s.high > {high}",
        "le": f"s.low < {high}",
        "ge": f"s.high > {low}",
        "sa": f"s.low >= {high}",
        "eb": f"s.high <= {low}",
        "sw": f"(s.low >= {low} AND s.low < {high})",
        "ne": f"(s.low >= {high} OR s.high <= {low})",
    }
    return conditions.get(prefix, f"s.low < {high} AND s.high > {low}")


def _group_part(value: Value) -> str:
    """The text of a discrete part of a composite, as :func:`fhirstore.search.terms.group_parts` makes it."""
    if isinstance(value, ReferenceValue) and value.type is not None and value.url is None:
        return f"r{value.type}/{value.id}"
    return _term_text(value, None)


def _term_text(value: Value, modifier: str | None) -> str:
    """The text whose hash the resource must hold, as :func:`fhirstore.search.terms.rows` makes it."""
    match value:
        case TokenValue(system=str() as system, code=None):
            return f"s{system}"
        case TokenValue(system=None, code=str() as code):
            return f"c{fold_code(code)}"
        case TokenValue(system=str() as system, code=str() as code):
            return pair_text(system, fold_code(code))
        case ReferenceValue(url=str() as url):
            return f"u{url}"
        case ReferenceValue(id=id_):
            return f"i{id_}"
        case UriValue(uri=uri):
            return f"{'b' if modifier == 'below' else 'u'}{uri}"
        case TypedValue(system=system, code=code, value=text):
            return typed_text(system, code, text)
        case StringValue(text=text) if modifier == "exact":
            return f"e{text}"
        case _:
            raise errors.bad_request("This kind of search parameter is not supported")


def _negated(condition: str, modifier: str | None) -> str:
    return f"NOT ({condition})" if modifier == "not" else condition


def _escaped(text: str) -> str:
    """Escape what LIKE would take as a pattern."""
    return text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")


def _after(prefix: str) -> str | None:
    """The smallest string above all that start with ``prefix``, None if there is none (collation C: code points)."""
    while prefix:
        point = ord(prefix[-1]) + 1
        prefix = prefix[:-1]
        if point <= 0x10FFFF:
            # Surrogates are no characters; the next one after U+D7FF is U+E000.
            return prefix + chr(0xE000 if 0xD800 <= point <= 0xDFFF else point)
    return None


def _int64(microseconds: int) -> int:
    return max(-(2**63), min(2**63 - 1, microseconds))


_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST: Final = (datetime(1, 1, 2, tzinfo=UTC) - _EPOCH) // timedelta(microseconds=1)
_LAST: Final = (datetime(9999, 12, 30, tzinfo=UTC) - _EPOCH) // timedelta(microseconds=1)


def _datetime(microseconds: int) -> datetime:
    return _EPOCH + timedelta(microseconds=max(_FIRST, min(_LAST, microseconds)))


# --- statistics ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TermStatistics:
    """How often terms occur in one partition, as the last ANALYZE saw it.

    Attributes:
        rows: resources in the partition.
        common: frequency of the most common terms; empty before the first ANALYZE.
        floor: frequency of any other term, at most.
    """

    rows: float
    common: dict[int, float]
    floor: float

    def frequency(self, term: int) -> float:
        """Rows that hold ``term``, about."""
        return self.rows * self.common.get(term, self.floor)


STATISTICS_AGE: Final = 300.0
"""Seconds until statistics are read again."""

UNKNOWN_AGE: Final = 15.0
"""The same for a partition that has not been analysed yet, which PostgreSQL does within a minute."""

FULL: Final = 9_000
"""Terms that PostgreSQL lists at most, nearly: ten for each unit of the column's statistics target, which is 1000."""

UNLISTED: Final = 0.001
"""Frequency above which it lists a term for certain while there is room (compute_array_stats, up to 150 terms per row)."""

STATISTICS = """
SELECT c.reltuples, s.most_common_elems::text::bigint[], s.most_common_elem_freqs::float8[]
FROM pg_class c LEFT JOIN pg_stats s
    ON s.schemaname = c.relnamespace::regnamespace::text AND s.tablename = c.relname AND s.attname = 'idx'
WHERE c.oid = coalesce(to_regclass(%(table)s), 'resource_default'::regclass)
"""


def read_statistics(fetch: Fetch, type_: str) -> TermStatistics:
    """Read the statistics of the partition of ``type_``."""
    ((rows, elements, frequencies),) = fetch(STATISTICS, {"table": f"resource_{type_.lower()}"})
    if not elements:
        # Never analysed: a small table, where collecting is right, or a fresh one, where nobody knows.
        return TermStatistics(max(0.0, rows), {}, 0.0)
    # PostgreSQL appends the lowest and highest frequency and that of nulls.
    common = dict(zip(elements, frequencies[: len(elements)], strict=True))
    floor = min(common.values())
    if len(common) < FULL:
        # There was room for more: what is not listed is not just rarer than the rest, but too rare to be listed.
        floor = min(floor, UNLISTED)
    return TermStatistics(max(0.0, rows), common, floor)


class StatisticsCache:
    """Statistics by type, read anew when they have grown old."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[float, TermStatistics]] = {}
        self._lock = threading.Lock()

    def get(self, type_: str, read: Callable[[str], TermStatistics]) -> TermStatistics:
        """The statistics of ``type_``; ``read`` fetches them when they are missing or old."""
        known = self._known.get(type_)
        if known is None or known[0] < time.monotonic():
            statistics = read(type_)
            age = STATISTICS_AGE if statistics.common else UNKNOWN_AGE
            with self._lock:
                self._known[type_] = known = (time.monotonic() + age, statistics)
        return known[1]

    def clear(self) -> None:
        """Forget all, for another database."""
        with self._lock:
            self._known.clear()
