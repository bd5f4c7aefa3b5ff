"""The words of search: what a query says (:class:`SearchRequest`) and what a resource holds (:class:`IndexValues`).

Both are plain values without Django. ``parse`` makes the first from a query string, ``index`` the second from a
resource; ``match`` (in memory) and ``sql`` (in the database) compare them with the same meaning.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum
from typing import Literal, NamedTuple


class Kind(StrEnum):
    """Search parameter types of FHIR R4 (https://hl7.org/fhir/R4/search.html#ptypes)."""

    TOKEN = "token"  # noqa: S105  (a parameter type, no password)
    STRING = "string"
    REFERENCE = "reference"
    DATE = "date"
    URI = "uri"
    NUMBER = "number"
    QUANTITY = "quantity"
    COMPOSITE = "composite"
    SPECIAL = "special"


Prefix = Literal["eq", "ne", "lt", "gt", "le", "ge", "sa", "eb", "ap", "sw"]


@dataclass(frozen=True, slots=True)
class Parameter:
    """A search parameter of one resource type.

    Attributes:
        code: the name used in queries, for example ``family`` or ``_lastUpdated``.
        kind: its type.
        targets: resource types a reference parameter may point to; empty for other kinds.
        expression: the FHIRPath it evaluates; empty if it cannot be searched by
            (:func:`fhirstore.definitions.registry.uncompiled_parameters` says why).
        components: the parts of a composite parameter, in the order of ``a$b``. Where it is ``grouped`` they are looked for
            in each element the expression finds, and their codes are ``0``, ``1``, …; else they are parameters of the type.
        grouped: see components.
        either: codes of the composites one of which must fit; then there are no components.
    """

    code: str
    kind: Kind
    targets: tuple[str, ...] = ()
    expression: str = field(default="", compare=False)
    components: tuple[Parameter, ...] = ()
    grouped: bool = False
    either: tuple[str, ...] = ()


Parameters = Callable[[str], Mapping[str, Parameter]]
"""The search parameters of a resource type by code: those of the definitions, or these and a project's own."""


# --- what a query says ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TokenValue:
    """``code`` (system None), ``|code`` (system ""), ``system|code``, ``system|`` (code None)."""

    system: str | None
    code: str | None


@dataclass(frozen=True, slots=True)
class TypedValue:
    """``system|code|value`` of ``:of-type``: what kind of identifier, and which."""

    system: str
    code: str
    value: str


@dataclass(frozen=True, slots=True)
class StringValue:
    text: str


@dataclass(frozen=True, slots=True)
class ReferenceValue:
    """``Type/id`` or a bare ``id`` (type None) or an absolute/canonical ``url`` (id None).

    A bare id gets its type from the parameter where that has a single target or the query names one
    (``subject:Patient=123``).
    """

    type: str | None
    id: str | None
    url: str | None = None


@dataclass(frozen=True, slots=True)
class UriValue:
    uri: str


@dataclass(frozen=True, slots=True)
class DateValue:
    """The range a (partial) date stands for, in microseconds since 1970 UTC: ``low`` inclusive, ``high`` exclusive.

    With prefix ``ap`` the range is already widened by 10 % of the distance to now.
    """

    prefix: Prefix
    low: int
    high: int


@dataclass(frozen=True, slots=True)
class NumberValue:
    """A number with the range its written precision implies: ``low`` inclusive, ``high`` exclusive.

    With prefix ``ap`` the range is already widened to 10 % around ``value``.
    """

    prefix: Prefix
    value: Decimal
    low: Decimal
    high: Decimal


@dataclass(frozen=True, slots=True)
class QuantityValue:
    """A number with unit: ``number|system|code``; system and code None where not given."""

    number: NumberValue
    system: str | None
    code: str | None


@dataclass(frozen=True, slots=True)
class CompositeValue:
    """``a$b``: what each part of a grouped composite parameter must fit, in one element."""

    parts: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class NearValue:
    """``latitude|longitude|distance|units`` of ``near``; the distance in kilometres."""

    latitude: float
    longitude: float
    distance: float


Value = (
    CompositeValue
    | NearValue
    | TokenValue
    | TypedValue
    | StringValue
    | ReferenceValue
    | UriValue
    | DateValue
    | NumberValue
    | QuantityValue
)


@dataclass(frozen=True, slots=True)
class Clause:
    """One ``parameter:modifier=value,value``: the values are alternatives (OR); clauses are joined by AND.

    ``modifier`` is None, or one of FHIR's modifiers, or ``equals`` and ``ends``, which ``_filter`` has for strings. With
    ``missing`` the values are empty and ``missing`` tells.
    """

    parameter: Parameter
    values: tuple[Value, ...]
    modifier: str | None = None
    missing: bool | None = None


@dataclass(frozen=True, slots=True)
class Chain:
    """``parameter.rest=value``: the resource refers by ``parameter`` to one that fits.

    Attributes:
        hops: the types it may refer to, each with the condition that a resource of that type must fit.
    """

    parameter: Parameter
    hops: tuple[tuple[str, Condition], ...]


@dataclass(frozen=True, slots=True)
class Has:
    """``_has:type:parameter:rest=value``: a resource of ``type`` refers by ``parameter`` to this one, and fits."""

    type: str
    parameter: Parameter
    condition: Condition


@dataclass(frozen=True, slots=True)
class AllOf:
    """Each of the conditions fits."""

    conditions: tuple[Condition, ...]


@dataclass(frozen=True, slots=True)
class AnyOf:
    """One of the conditions fits."""

    conditions: tuple[Condition, ...]


@dataclass(frozen=True, slots=True)
class Not:
    """The condition does not fit."""

    condition: Condition


Condition = Clause | Chain | Has | AllOf | AnyOf | Not
"""What a search asks of a resource."""


def relational(condition: Condition) -> bool:
    """True if other resources have to be looked at to answer it."""
    match condition:
        case Clause():
            return False
        case AllOf(conditions) | AnyOf(conditions):
            return any(map(relational, conditions))
        case Not(inner):
            return relational(inner)
    return True


@dataclass(frozen=True, slots=True)
class Sort:
    parameter: Parameter
    descending: bool


@dataclass(frozen=True, slots=True)
class Include:
    """``_include`` or ``_revinclude``: what else is sent along with the matches.

    Attributes:
        type: the resource type that holds the reference.
        parameter: its reference parameter.
        target: the only type the reference may point to; None for any.
        reverse: the holders of references to a match are wanted (``_revinclude``), not what a match refers to.
        iterate: what was included counts as a match for this one as well.
    """

    type: str
    parameter: Parameter
    target: str | None = None
    reverse: bool = False
    iterate: bool = False


@dataclass(frozen=True, slots=True)
class Cursor:
    """The last match of the page before: pages go on behind it, whatever has been written meanwhile.

    Attributes:
        milliseconds: its ``lastUpdated``, since 1970.
        type, id: which one it is among several of that time; without an id all of that time are still to come.
    """

    milliseconds: int
    type: str
    id: str | None


@dataclass(frozen=True, slots=True)
class SearchRequest:
    """A parsed search of one resource type.

    Attributes:
        clauses: conditions a resource has to fit, all of them.
        deleted: only deleted resources are searched, instead of those that are there.
        count: page size, 0 to 1000.
        offset: entries skipped, 0 to 10 000.
        cursor: where the page begins; only with an order by ``_lastUpdated`` (the default is one).
        total: whether ``Bundle.total`` is wanted.
        includes: what is sent along.
        fields: element or search parameter names of ``_fields``/``_elements``; None for whole resources.
        summary: the ``_summary`` mode, None when not asked for.
        query: the query string as it came, for the Bundle's links.
    """

    type: str
    clauses: tuple[Condition, ...] = ()
    sort: tuple[Sort, ...] = ()
    count: int = 20
    offset: int = 0
    cursor: Cursor | None = None
    includes: tuple[Include, ...] = ()
    total: Literal["none", "estimate", "accurate"] = "none"
    fields: tuple[str, ...] | None = None
    summary: str | None = None
    query: str = ""
    deleted: bool = False


# --- what a resource holds --------------------------------------------------------------------------------


class Token(NamedTuple):
    """A coded value; ``system`` None where the element has none. ``value`` keeps its case; compared case-insensitively."""

    system: str | None
    value: str | None


class TypedIdentifier(NamedTuple):
    """An identifier's value with a coding of its type, for ``:of-type``."""

    system: str | None
    code: str
    value: str


class Reference(NamedTuple):
    """A reference found in a resource: local ``type``/``id``, else ``url`` (absolute, canonical or urn)."""

    type: str | None
    id: str | None
    url: str | None = None


class Quantity(NamedTuple):
    """An amount as a closed range (``low`` = ``high`` for a plain value); open ends are ``±Infinity``."""

    low: Decimal
    high: Decimal
    system: str | None
    code: str | None
    unit: str | None


@dataclass(frozen=True, slots=True)
class IndexValues:
    """All values of a resource's search parameters, by parameter code. A parameter without value has no key.

    How each map is compared stands in :mod:`fhirstore.search.match`.

    Attributes:
        tokens: of token parameters.
        texts: display texts of those tokens, for ``:text``.
        types: of identifiers among those tokens, for ``:of-type``.
        strings: whole values of string parameters, as written.
        words: what else the default string search may start at, as written: the rest of a name or address from each
            later word on (``van Buren`` → ``Buren``) and the assembled full name.
        references: of reference parameters.
        identifiers: ``Reference.identifier`` of reference parameters, for ``:identifier``.
        dates: (low, high) microseconds since 1970 UTC, high exclusive; open periods use the int64 limits.
        numbers: closed (low, high), both equal for a plain number; open ends are ``±Infinity``.
        quantities: of quantity parameters.
        groups: of grouped composite parameters: the values of the components in each element that has all of them.
        positions: of ``near``: latitude and longitude.
        uris: of uri parameters; a canonical ``url|version`` stands there with and without its version.
    """

    tokens: Mapping[str, list[Token]] = field(default_factory=dict)
    texts: Mapping[str, list[str]] = field(default_factory=dict)
    types: Mapping[str, list[TypedIdentifier]] = field(default_factory=dict)
    strings: Mapping[str, list[str]] = field(default_factory=dict)
    words: Mapping[str, list[str]] = field(default_factory=dict)
    references: Mapping[str, list[Reference]] = field(default_factory=dict)
    identifiers: Mapping[str, list[Token]] = field(default_factory=dict)
    dates: Mapping[str, list[tuple[int, int]]] = field(default_factory=dict)
    numbers: Mapping[str, list[tuple[Decimal, Decimal]]] = field(default_factory=dict)
    quantities: Mapping[str, list[Quantity]] = field(default_factory=dict)
    uris: Mapping[str, list[str]] = field(default_factory=dict)
    groups: Mapping[str, list[IndexValues]] = field(default_factory=dict)
    positions: Mapping[str, list[tuple[float, float]]] = field(default_factory=dict)
