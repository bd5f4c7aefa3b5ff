"""Does a resource fit a search? The in-memory twin of the SQL search, and the place where its meaning is written down.

``match`` (here) and ``sql`` compare a :class:`SearchRequest` with :class:`IndexValues` and must agree in every case.
A request fits when every clause fits; a clause fits when one of its values fits one of the parameter's index values.
The exceptions are the modifiers ``:not`` and ``:missing``. Sorting, paging and fields do not matter here.
Follows https://hl7.org/fhir/R4/search.html; choices the text leaves open are marked (choice).

Folding
    :func:`fhirstore.search.index.normalize` makes text comparable: case folded, compatibility decomposed (NFKD),
    combining marks dropped, white space collapsed to single blanks and trimmed. Strings and display texts are
    folded with it. :func:`fhirstore.search.index.fold_code` (case only) folds token values. URIs, references, token
    systems, unit codes and ``_id`` are compared exactly.

``:missing=true|false`` (every kind)
    A parameter is present when any map of the IndexValues has its code as key.

string
    * default: the folded query is a prefix of a folded entry of ``strings`` or of ``words``. Plain strings therefore match
      from their beginning; names and addresses also from each later word, and the assembled full name is among the
      words (choice, as Medplum does), so ``name=homer s``, ``name=simpson`` and ``family=buren`` for "van Buren" match.
    * ``:contains``: the folded query is a substring of a folded entry of ``strings`` or of ``words``.
    * ``:exact``: the query equals an entry of ``strings``, unfolded. ``words`` do not count.
    * an empty query is refused by the parser.

token
    A :class:`TokenValue` fits a :class:`Token` when both parts fit.

    * system: query None fits any; query ``""`` (written ``|code``) fits only a Token without system (None or ``""``);
      else both are equal, exactly.
    * code: query None (written ``system|``) fits any; else the folded codes are equal. ``_id`` is compared unfolded.
    * ``:not``: no query value fits any Token. A resource without Tokens for the parameter fits.
    * ``:of-type=system|code|value``: an Identifier with this value (folded) and a coding of its type with this system (exact)
      and code (folded).
    * ``:in``, ``:not-in`` a ValueSet, ``:above``, ``:below`` a code of a CodeSystem (that code included): replaced by the tokens
      they stand for (:mod:`fhirstore.search.expand`); ``:not-in`` as ``:not``. Elements of type code, which have no system,
      fit by their code alone.
    * ``:text``: the folded query stands at the beginning of a folded entry of ``texts`` or behind a blank in it (choice).

reference
    * ``Type/id``: equal ``type`` and ``id``. A bare id (type None): equal ``id``, whatever the type.
      Versions (``/_history/…``) are cut off on both sides.
    * url: equal ``url``, exactly. A canonical ``url|version`` in a resource is indexed with and without its version.
    * ``:identifier``: a :class:`TokenValue` against ``identifiers``, compared as tokens are.
    * ``:not``: no query value fits any Reference.
    * ``:above``, ``:below``: the resource itself and all that it is part of, or that are part of it (Location, Organization,
      whatever has ``partof``), replaced by their references.

uri
    Equal strings, case-sensitive. ``:not``: no query value equals any. Canonicals are indexed with and without version.
    ``:below``: the query (a slash at its end does not count) is the whole or ends before a slash of the resource's; ``:above``:
    the other way round. So ``http://a/b`` is below ``http://a``, but ``http://a/bc`` not below ``http://a/b``.

date
    Both sides are half-open ranges of microseconds: [q.low, q.high) of the query, [low, high) of the resource.

    ====  ==================================  =========================================================
    eq    low < q.high and high > q.low       they overlap (choice, as Medplum does for Periods)
    ne    not eq
    lt    low < q.low                         part of it lies before the query's range
    gt    high > q.high                       part of it lies after
    le    low < q.high                        lt or eq
    ge    high > q.low                        gt or eq
    sa    low >= q.high                       all of it lies after
    eb    high <= q.low                       all of it lies before
    sw    low >= q.low and low < q.high       it begins in the range (choice; Medplum's prefix)
    ap    as eq; the parser has widened the query's range
    ====  ==================================  =========================================================

number and quantity
    The resource holds a closed range [low, high] (a plain number: low = high). The query holds ``value`` and the half-open
    range [q.low, q.high) of its written precision (``100`` → [99.5, 100.5)), which only eq, ne and ap use.

    ====  ===================================
    eq    low < q.high and high >= q.low
    ne    not eq
    lt    low < value
    gt    high > value
    le    low <= value
    ge    high >= value
    sa    low > value
    eb    high < value
    sw    low >= value and low < value + one unit of its last digit (choice; Medplum's prefix)
    ap    low <= q.high and high >= q.low; the parser has set them 10 % around value
    ====  ===================================

    A quantity's unit must fit as well, under every prefix: with a query ``system`` (not None) the system and, if given,
    the code are equal; with a ``code`` alone it equals the Quantity's ``code`` or its ``unit``; without both any fits.
    ``ne`` with a unit means: same unit, other amount.

composite, ``a$b``
    Each part fits as a search by that part alone would. Of ``Observation.component`` and other groups (``useContext``,
    ``relatesTo``, …) one element has to fit all parts; of a whole resource (``code-value-quantity``) a composite means no more
    than its parts joined by AND; ``combo-…`` means either. An element counts when it has all parts.

``near=latitude|longitude|distance|units``
    The position is at most that far away on a sphere; units ``km`` (default), ``m``, ``[mi_us]``; 20 km without distance (choice).

``ne`` is no ``:not``: some value of the resource must differ, so a resource without values does not fit.

chain, ``a.b=v``
    One of the references of ``a`` leads to a stored resource of a type that has ``b``, and that resource fits ``b=v``.
    Deleted targets, absolute URLs and canonicals lead nowhere. ``a.b:not=v`` is about the target: a resource that refers
    to nothing does not fit.

``_has:T:p:q=v``
    A stored resource of type T refers to this one by ``p`` and fits ``q=v``.

    Both see only what the searching identity may search: the rules of each type that is passed count there as well.

``_filter``
    ``and``, ``or``, ``not`` combine; what it compares with is one value, commas mean nothing. ``ne`` of tokens, references,
    URIs and strings means ``not eq``, as Medplum does, so a resource without value fits. String operators look at whole
    values, folded: ``eq`` the same, ``ew`` ends with, ``co`` contains; ``sw`` and ``co`` are the default search and
    ``:contains``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, Final, cast

from fhirstore.search.index import fold_code, holds, normalize, uri_beginnings
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
    NearValue,
    Not,
    NumberValue,
    Parameter,
    Quantity,
    QuantityValue,
    Reference,
    ReferenceValue,
    SearchRequest,
    StringValue,
    Token,
    TokenValue,
    TypedValue,
    UriValue,
)

EXPANDED: Final = frozenset({"in", "not-in", "above", "below"})
"""Modifiers that :mod:`fhirstore.search.expand` replaces, other than for URIs."""

Exists = Callable[[str, tuple[Condition, ...]], bool]
"""Tells whether there is a stored resource of this type that fits all of the conditions."""

_ID: Final = Parameter("_id", Kind.TOKEN)


def match(request: SearchRequest, values: IndexValues, exists: Exists | None = None) -> bool:
    """True if a resource with these index values fits every condition of the request.

    Args:
        request: what is asked.
        values: of a resource of ``request.type``; the type is the caller's business.
        exists: answers what chains and ``_has`` ask about other resources.

    Raises:
        ValueError: other resources would have to be looked at, and ``exists`` is missing. Use
            :meth:`fhirstore.repository.Repository.matcher` for requests that come from outside.
    """
    return all(_holds(condition, request.type, values, exists) for condition in request.clauses)


def _holds(condition: Condition, type_: str, values: IndexValues, exists: Exists | None) -> bool:
    match condition:
        case Clause():
            return _fits(condition, values)
        case AllOf(conditions):
            return all(_holds(each, type_, values, exists) for each in conditions)
        case AnyOf(conditions):
            return any(_holds(each, type_, values, exists) for each in conditions)
        case Not(inner):
            return not _holds(inner, type_, values, exists)
    if exists is None:
        raise ValueError("chains and _has need the store")
    if isinstance(condition, Has):
        (token, *_) = values.tokens["_id"]
        refers = Clause(condition.parameter, (ReferenceValue(type_, token.value),))
        return exists(condition.type, (refers, condition.condition))
    return _leads(condition, values, exists)


def _leads(chain: Chain, values: IndexValues, exists: Exists) -> bool:
    references = values.references.get(chain.parameter.code, ())
    for target, condition in chain.hops:
        ids = tuple(TokenValue(None, each.id) for each in references if each.type == target and each.id)
        if ids and exists(target, (Clause(_ID, ids), condition)):
            return True
    return False


def present(code: str, values: IndexValues) -> bool:
    """True if the resource has any value for the parameter (``:missing=false``)."""
    return holds(values, code)


def _fits(clause: Clause, values: IndexValues) -> bool:
    code = clause.parameter.code
    if clause.missing is not None:
        return present(code, values) is not clause.missing
    if clause.parameter.kind is Kind.COMPOSITE:
        return _composite(clause, values)
    if clause.modifier == "not":
        return not _any(clause, _COMPARISONS[clause.parameter.kind], values)
    if clause.modifier in EXPANDED and clause.parameter.kind is not Kind.URI:
        raise ValueError(f":{clause.modifier} has to be expanded first")
    if clause.modifier in _MODIFIERS:
        return _any(clause, _MODIFIERS[clause.modifier], values)
    return _any(clause, _COMPARISONS[clause.parameter.kind], values)


Comparison = Callable[[Any, str, IndexValues], bool]
"""Compares one query value with the values of the parameter with this code."""


def _any(clause: Clause, comparison: Comparison, values: IndexValues) -> bool:
    return any(comparison(value, clause.parameter.code, values) for value in clause.values)


def _token(query: TokenValue, code: str, values: IndexValues) -> bool:
    return any(_same_token(query, token, exact=code == "_id") for token in values.tokens.get(code, ()))


def _same_token(query: TokenValue, token: Token, *, exact: bool = False) -> bool:
    if query.system is not None and query.system != (token.system or ""):
        return False
    if query.code is None:
        return True
    if token.value is None:
        return False
    return query.code == token.value if exact else fold_code(query.code) == fold_code(token.value)


def _of_type(query: TypedValue, code: str, values: IndexValues) -> bool:
    wanted = (query.system, fold_code(query.code), fold_code(query.value))
    return any(
        wanted == (each.system or "", fold_code(each.code), fold_code(each.value))
        for each in values.types.get(code, ())
    )


def _token_text(query: StringValue, code: str, values: IndexValues) -> bool:
    text = " " + normalize(query.text)
    return any(text in " " + normalize(entry) for entry in values.texts.get(code, ()))


def _folded(code: str, values: IndexValues) -> Iterable[str]:
    for held in (values.strings, values.words):
        for entry in held.get(code, ()):
            yield normalize(entry)


def _string(query: StringValue, code: str, values: IndexValues) -> bool:
    prefix = normalize(query.text)
    return any(entry.startswith(prefix) for entry in _folded(code, values))


def _string_contains(query: StringValue, code: str, values: IndexValues) -> bool:
    part = normalize(query.text)
    return any(part in entry for entry in _folded(code, values))


def _string_exact(query: StringValue, code: str, values: IndexValues) -> bool:
    return query.text in values.strings.get(code, ())


def _string_equals(query: StringValue, code: str, values: IndexValues) -> bool:
    folded = normalize(query.text)
    return any(folded == normalize(entry) for entry in values.strings.get(code, ()))


def _string_ends(query: StringValue, code: str, values: IndexValues) -> bool:
    end = normalize(query.text)
    return any(normalize(entry).endswith(end) for entry in values.strings.get(code, ()))


def _reference(query: ReferenceValue, code: str, values: IndexValues) -> bool:
    return any(_same_reference(query, reference) for reference in values.references.get(code, ()))


def _same_reference(query: ReferenceValue, reference: Reference) -> bool:
    if query.url is not None:
        return query.url == reference.url
    return query.id == reference.id and query.type in (None, reference.type)


def _identifier(query: TokenValue, code: str, values: IndexValues) -> bool:
    return any(_same_token(query, token) for token in values.identifiers.get(code, ()))


def _uri(query: UriValue, code: str, values: IndexValues) -> bool:
    return query.uri in values.uris.get(code, ())


def _uri_below(query: UriValue, code: str, values: IndexValues) -> bool:
    return any(query.uri in uri_beginnings(uri) for uri in values.uris.get(code, ()))


def _uri_above(query: UriValue, code: str, values: IndexValues) -> bool:
    return any(uri in above(query.uri) for uri in values.uris.get(code, ()))


def above(uri: str) -> set[str]:
    """All URIs that ``uri`` is below, with and without a slash at their end."""
    beginnings = uri_beginnings(uri)
    return beginnings | {f"{each}/" for each in beginnings}


def _date(query: DateValue, code: str, values: IndexValues) -> bool:
    compare = _DATE_PREFIXES[query.prefix]
    return any(compare(query, low, high) for low, high in values.dates.get(code, ()))


_DATE_PREFIXES: Final[dict[str, Callable[[DateValue, int, int], bool]]] = {
    "eq": lambda q, low, high: low < q.high and high > q.low,
    "ne": lambda q, low, high: low >= q.high or high <= q.low,
    "lt": lambda q, low, high: low < q.low,
    "gt": lambda q, low, high: high > q.high,
    "le": lambda q, low, high: low < q.high,
    "ge": lambda q, low, high: high > q.low,
    "sa": lambda q, low, high: low >= q.high,
    "eb": lambda q, low, high: high <= q.low,
    "sw": lambda q, low, high: q.low <= low < q.high,
    "ap": lambda q, low, high: low < q.high and high > q.low,
}


def _number(query: NumberValue, code: str, values: IndexValues) -> bool:
    compare = _NUMBER_PREFIXES[query.prefix]
    return any(compare(query, low, high) for low, high in values.numbers.get(code, ()))


_NUMBER_PREFIXES: Final[dict[str, Callable[[NumberValue, Any, Any], bool]]] = {
    "eq": lambda q, low, high: low < q.high and high >= q.low,
    "ne": lambda q, low, high: low >= q.high or high < q.low,
    "lt": lambda q, low, high: low < q.value,
    "gt": lambda q, low, high: high > q.value,
    "le": lambda q, low, high: low <= q.value,
    "ge": lambda q, low, high: high >= q.value,
    "sa": lambda q, low, high: low > q.value,
    "eb": lambda q, low, high: high < q.value,
    "sw": lambda q, low, high: q.low <= low < q.high,
    "ap": lambda q, low, high: low <= q.high and high >= q.low,
}


def _quantity(query: QuantityValue, code: str, values: IndexValues) -> bool:
    compare = _NUMBER_PREFIXES[query.number.prefix]
    return any(
        _same_unit(query, quantity) and compare(query.number, quantity.low, quantity.high)
        for quantity in values.quantities.get(code, ())
    )


def _same_unit(query: QuantityValue, quantity: Quantity) -> bool:
    if query.system is not None:
        return query.system == quantity.system and query.code in (None, quantity.code)
    return query.code is None or query.code in (quantity.code, quantity.unit)


def _near(query: NearValue, code: str, values: IndexValues) -> bool:
    return any(
        distance(query.latitude, query.longitude, *position) <= query.distance
        for position in values.positions.get(code, ())
    )


EARTH_RADIUS: Final = 6371.0
"""In kilometres."""


def distance(latitude: float, longitude: float, other_latitude: float, other_longitude: float) -> float:
    """Kilometres between two positions on a sphere (haversine)."""
    up = math.sin(math.radians(other_latitude - latitude) / 2) ** 2
    along = math.sin(math.radians(other_longitude - longitude) / 2) ** 2
    along *= math.cos(math.radians(latitude)) * math.cos(math.radians(other_latitude))
    return 2 * EARTH_RADIUS * math.asin(min(1.0, math.sqrt(up + along)))


def _composite(clause: Clause, values: IndexValues) -> bool:
    return any(
        all(
            _COMPARISONS[each.kind](part, each.code, group)
            for each, part in zip(clause.parameter.components, cast(CompositeValue, value).parts, strict=True)
        )
        for group in values.groups.get(clause.parameter.code, ())
        for value in clause.values
    )


_COMPARISONS: Final[dict[Kind, Comparison]] = {
    Kind.TOKEN: _token,
    Kind.STRING: _string,
    Kind.REFERENCE: _reference,
    Kind.URI: _uri,
    Kind.DATE: _date,
    Kind.NUMBER: _number,
    Kind.QUANTITY: _quantity,
    Kind.SPECIAL: _near,
}

_MODIFIERS: Final[dict[str, Comparison]] = {
    "text": _token_text,
    "contains": _string_contains,
    "exact": _string_exact,
    "equals": _string_equals,
    "ends": _string_ends,
    "identifier": _identifier,
    "of-type": _of_type,
    "below": _uri_below,
    "above": _uri_above,
}
