"""Reads a search query into a :class:`SearchRequest`, or refuses it with an OperationOutcome that says why.

Follows https://hl7.org/fhir/R4/search.html and, where a client can tell the difference, Medplum's words and limits
(``_count`` is cut to 1000, ``_offset`` beyond 10 000 is an error, an unknown parameter is an error).
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from difflib import get_close_matches
from functools import partial
from typing import Any, Final, NoReturn, cast, get_args
from urllib.parse import parse_qsl, urlencode

from fhirstore import errors
from fhirstore.definitions import registry
from fhirstore.search.filters import Comparison, Filter, parse_filter
from fhirstore.search.index import (
    MAX_MICROSECONDS,
    MIN_MICROSECONDS,
    date_range,
    normalize,
    parse_reference,
)
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
    Include,
    Kind,
    NearValue,
    Not,
    NumberValue,
    Parameter,
    Parameters,
    Prefix,
    QuantityValue,
    ReferenceValue,
    SearchRequest,
    Sort,
    StringValue,
    TokenValue,
    TypedValue,
    UriValue,
    Value,
)

DEFAULT_COUNT: Final = 20
MAX_COUNT: Final = 1000
MAX_OFFSET: Final = 10_000
MAX_PARAMETERS: Final = 500
"""More parameters in one query are refused."""
MAX_LINKS: Final = 3
"""References that a chain follows, or ``_has`` back, one behind the other."""
MAX_RELATIONS: Final = 20
"""Links of all chains and ``_has`` of one query together, each type counted that a link may lead to."""
MAX_VALUES: Final = 10_000
"""Values of all parameters of one query together."""
MAX_COMPARED: Final = 500
"""Of these, values that are compared one by one: strings, dates, numbers, quantities, composites, places."""
MAX_SORT: Final = 10
MAX_INCLUDES: Final = 50
MAX_TARGETS: Final = 8
"""Types that a link may lead to without naming one."""

MAX_TYPES: Final = 20
"""More types in one search across types are refused."""
MAX_SYSTEM_OFFSET: Final = 1000
"""Across types each of them has to be read up to the page; a cursor does without."""

_PREFIXES: Final = frozenset(get_args(Prefix))
_IGNORED: Final = frozenset({"_format", "_pretty", "_"})
_LATER: Final = frozenset(
    {
        "_contained",
        "_containedType",
    }
)
"""Known to FHIR or Medplum, refused with words of their own."""

_HASHED: Final = frozenset({Kind.TOKEN, Kind.REFERENCE, Kind.URI})
"""Kinds whose values are looked up together, however many there are."""

_MODIFIERS: Final[dict[Kind, frozenset[str]]] = {
    Kind.TOKEN: frozenset({"not", "text", "of-type", "in", "not-in", "above", "below"}),
    Kind.STRING: frozenset({"exact", "contains"}),
    Kind.REFERENCE: frozenset({"not", "identifier", "above", "below"}),
    Kind.URI: frozenset({"not", "above", "below"}),
}
"""What each kind takes besides ``missing``; a reference takes the names of its target types as well."""


def parse(
    type: str,
    query: str | Sequence[tuple[str, str]],
    *,
    base_url: str | None = None,
    parameters: Parameters = registry.search_parameters,
) -> SearchRequest:
    """Parse a search of one resource type.

    Args:
        type: the resource type.
        query: the query string as it came, without ``?``; or its (name, value) pairs, decoded.
        base_url: address of this server's FHIR API, ending in ``/``; absolute references below it count as local.
        parameters: what can be searched by. :meth:`fhirstore.repository.Repository.parse` knows a project's own as well.

    Raises:
        FhirError: 400, the query or the type cannot be searched; the text names the parameter.
    """
    if not registry.is_resource_type(type):
        raise errors.bad_request(f"Unknown resource type: {type}")
    if type == "Binary":
        raise errors.bad_request("Cannot search on Binary resource type")
    reader = _Reader(type, base_url, parameters)
    text = query if isinstance(query, str) else urlencode(query)
    for name, value in _pairs(query):
        reader.read(name, value)
    return reader.request(text)


def parse_system(
    query: str | Sequence[tuple[str, str]],
    *,
    base_url: str | None = None,
    parameters: Parameters = registry.search_parameters,
) -> tuple[SearchRequest, ...]:
    """Parse a search across the types of ``_type``: one request for each, alike in all but the type.

    Raises:
        FhirError: as :func:`parse`; also 400 without ``_type``, and for another order than ``_lastUpdated``.
    """
    pairs = _pairs(query)
    types = dict.fromkeys(
        type for name, value in pairs if name == "_type" for type in value.split(",") if type
    )
    if not types:
        raise errors.bad_request("A search across types needs _type, for example _type=Patient,Practitioner")
    if len(types) > MAX_TYPES:
        raise errors.bad_request(f"Too many types in _type (max {MAX_TYPES})")
    requests = tuple(parse(type, query, base_url=base_url, parameters=parameters) for type in types)
    first = requests[0]
    if [sort.parameter.code for sort in first.sort] not in ([], ["_lastUpdated"]):
        raise errors.bad_request("A search across types can only be sorted by _lastUpdated")
    if first.offset > MAX_SYSTEM_OFFSET:
        raise errors.bad_request(
            f"Search offset exceeds maximum (got {first.offset}, max {MAX_SYSTEM_OFFSET} across types); "
            "follow the next links"
        )
    return requests


def _pairs(query: str | Sequence[tuple[str, str]]) -> Sequence[tuple[str, str]]:
    if isinstance(query, str):
        try:
            return parse_qsl(query, keep_blank_values=True, max_num_fields=MAX_PARAMETERS)
        except ValueError as error:
            raise errors.bad_request(f"Too many search parameters (max {MAX_PARAMETERS})") from error
    if len(query) > MAX_PARAMETERS:
        raise errors.bad_request(f"Too many search parameters (max {MAX_PARAMETERS})")
    return query


def _may_refer(parameter: Parameter, type: str) -> bool:
    """False if the parameter cannot lead to a type. One with many targets may lead anywhere: Medplum's types as well."""
    return type in parameter.targets or not 0 < len(parameter.targets) <= MAX_TARGETS


Leaf = Callable[[Parameter, str | None], Condition]
"""Makes the clause at the end of a path, of its parameter and modifier."""

_ORDERED: Final[dict[str, str | None]] = {
    **{name: name for name in ("eq", "ne", "gt", "lt", "ge", "le", "ap", "sa", "eb", "sw")},
    "po": "eq",
}
"""What ``_filter`` compares dates, numbers and quantities with: the prefixes, and "period overlaps"."""

_FILTER_MODIFIERS: Final[dict[Kind, dict[str, str | None]]] = {
    Kind.STRING: {"eq": "equals", "ne": "equals", "co": "contains", "sw": None, "ew": "ends"},
    Kind.TOKEN: {"eq": None, "ne": None, "co": "text", "in": "in", "ni": "in", "ss": "above", "sb": "below"},
    Kind.REFERENCE: {"eq": None, "ne": None, "re": None},
    Kind.COMPOSITE: {},
    Kind.SPECIAL: {},
    Kind.URI: {"eq": None, "ne": None, "ss": "above", "sb": "below"},
}
"""Modifiers that mean the same as an operator of ``_filter``; behind ``ne`` and ``ni`` the whole is negated.
``equals`` and ``ends`` are no modifiers of a query."""


@dataclass(slots=True)
class _Reader:
    """Collects what the parameters of one query say."""

    type: str
    base_url: str | None
    parameters: Parameters
    clauses: list[Condition] = field(default_factory=list)
    result: dict[str, Any] = field(default_factory=dict)
    relations: int = 0
    values: int = 0
    compared: int = 0

    def read(self, name: str, value: str) -> None:
        if name in _IGNORED:
            return
        if name in _RESULT_PARAMETERS:
            _RESULT_PARAMETERS[name](self, value)
        elif name.partition(":")[0] in ("_include", "_revinclude"):
            self._include(name, value)
        elif name.partition(":")[0] in _LATER:
            raise errors.bad_request(f"Search parameter {name.partition(':')[0]} is not supported yet")
        elif name == "_filter":
            self.clauses.append(self._filter(parse_filter(value)))
        elif name == "_list":
            self.clauses.append(self._list(value))
        else:
            self.clauses.append(self._follow(self.type, name, 0, partial(self._at_end, _parts(value))))

    def request(self, query: str) -> SearchRequest:
        if self.result.get("count") == 0:
            self.result.setdefault("total", "accurate")  # a page of nothing asks for the total
        self._check_cursor()
        return SearchRequest(self.type, clauses=tuple(self.clauses), query=query, **self.result)

    def parameter(self, code: str, type: str | None = None) -> Parameter:
        parameters = self.parameters(type or self.type)
        parameter = parameters.get(code)
        if parameter is None:
            close = get_close_matches(code, parameters, n=1)
            issue = errors.issue(
                f"Unknown search parameter: {code}",
                diagnostics=f"Did you mean {close[0]}?" if close else None,
            )
            raise errors.FhirError(errors.outcome(None, [issue]))
        if not parameter.expression:
            raise errors.bad_request(f"Search parameter {code} ({parameter.kind}) is not supported yet")
        return parameter

    # --- links to other resources ---

    def _follow(self, type: str, path: str, links: int, leaf: Leaf) -> Condition:
        """Read a path of chains and ``_has`` from ``type`` on; ``leaf`` makes what stands at its end."""
        if path.startswith("_has:"):
            return self._has(type, path, links, leaf)
        link, dot, rest = path.partition(".")
        code, colon, modifier = link.partition(":")
        if not dot:
            return leaf(self.parameter(code, type), modifier if colon else None)
        parameter = self.parameter(code, type)
        if parameter.kind is not Kind.REFERENCE:
            raise errors.bad_request(
                f"Invalid search chain: {code} is no reference but a {parameter.kind}: {path}"
            )
        hops = []
        for target in self._targets(parameter, modifier if colon else None, rest):
            self._count_link(links)
            hops.append((target, self._follow(target, rest, links + 1, leaf)))
        return Chain(parameter, tuple(hops))

    def _has(self, type: str, path: str, links: int, leaf: Leaf) -> Has:
        _, source, code, rest = [*path.split(":", 3), "", "", ""][:4]
        if not rest or not registry.is_resource_type(source) or source == "Binary":
            raise errors.bad_request(f"Invalid _has, which is _has:Type:reference:parameter: {path}")
        parameter = self.parameter(code, source)
        if parameter.kind is not Kind.REFERENCE or not _may_refer(parameter, type):
            raise errors.bad_request(f"Invalid _has: {source}.{code} does not refer to {type}: {path}")
        self._count_link(links)
        return Has(source, parameter, self._follow(source, rest, links + 1, leaf))

    def _count_link(self, links: int) -> None:
        self.relations += 1
        if links >= MAX_LINKS:
            raise errors.bad_request(f"Search chains and _has may pass {MAX_LINKS} references at most")
        if self.relations > MAX_RELATIONS:
            raise errors.bad_request(
                f"Search chains and _has of one search may pass {MAX_RELATIONS} references at most"
            )

    def _targets(self, parameter: Parameter, named: str | None, rest: str) -> Sequence[str]:
        """The types a link leads to: the one that is named, else all that have the next parameter."""
        if named is not None:
            if not registry.is_resource_type(named) or named == "Binary":
                raise errors.bad_request(f"Invalid search chain: unknown resource type {named}")
            if not _may_refer(parameter, named):
                raise errors.bad_request(f"Invalid search chain: {parameter.code} does not refer to {named}")
            return [named]
        code = re.split(r"[.:]", rest, maxsplit=1)[0]
        candidates = parameter.targets or tuple(sorted(registry.resource_types()))
        fitting = [
            target
            for target in candidates
            if target != "Binary" and (code == "_has" or code in self.parameters(target))
        ]
        if not fitting:
            if len(candidates) == 1:
                self.parameter(code, candidates[0])
            raise errors.bad_request(f"Unknown search parameter: {parameter.code}.{code}")
        if len(fitting) > MAX_TARGETS:
            example = f"{parameter.code}:{fitting[0]}.{rest}"
            raise errors.bad_request(f"Name the type that {parameter.code} refers to, as in {example}")
        return fitting

    def _list(self, text: str) -> Condition:
        if not _ID.fullmatch(text):
            raise errors.bad_request(f"Invalid format for _list, which is the id of a List: {text}")
        self._count_link(0)
        id = Clause(self.parameter("_id", "List"), (TokenValue(None, text),))
        return Has("List", self.parameter("item", "List"), id)

    # --- _filter ---

    def _filter(self, given: Filter) -> Condition:
        if isinstance(given, Comparison):
            return self._follow(self.type, given.path, 0, partial(self._compare, given))
        parts = tuple(self._filter(part) for part in given.parts)
        if given.operator == "not":
            return Not(parts[0])
        return AllOf(parts) if given.operator == "and" else AnyOf(parts)

    def _compare(self, given: Comparison, parameter: Parameter, modifier: str | None) -> Condition:
        """A comparison of ``_filter`` as a clause."""
        kind, operator, text = parameter.kind, given.operator, given.value
        if operator == "pr":
            if text not in ("true", "false"):
                raise errors.bad_request(f"Invalid _filter: pr takes true or false: {given.path} pr {text}")
            return Clause(parameter, (), "missing", missing=text == "false")
        if given.quoted or kind is Kind.STRING:
            # A string means itself; but what is written system|code in a query is so here as well.
            text = escape(text).replace("\\|", "|") if kind in (Kind.TOKEN, Kind.QUANTITY) else escape(text)
        if kind in (Kind.COMPOSITE, Kind.SPECIAL) and operator in ("eq", "ne"):
            condition = self._at_end([given.value], parameter, modifier)
            return Not(condition) if operator == "ne" else condition
        known = _FILTER_MODIFIERS.get(kind, _ORDERED)
        if operator not in known:
            raise errors.bad_request(f"Invalid _filter: operator {operator} is not for {kind}: {given.path}")
        if known is _ORDERED:
            return self._clause([f"{known[operator]}{text}"], parameter, modifier)
        implied = known[operator]
        if implied in ("equals", "ends"):
            clause = replace(self._clause([text], parameter, modifier), modifier=implied)
        else:
            clause = self._clause([text], parameter, modifier or implied)
        return Not(clause) if operator in ("ne", "ni") else clause

    # --- clauses ---

    def _at_end(self, parts: Sequence[str], parameter: Parameter, modifier: str | None) -> Condition:
        """What stands at the end of a path; ``parts`` are its alternatives, still with escapes."""
        read = self._composite if parameter.kind is Kind.COMPOSITE else self._clause
        return read(parts, parameter, modifier)

    def _composite(self, parts: Sequence[str], parameter: Parameter, modifier: str | None) -> Condition:
        """``a$b``, as far as it can be said by what it is made of."""
        if parameter.either:
            each = [
                self._at_end(parts, self.parameters(self.type)[code], modifier) for code in parameter.either
            ]
            return AnyOf(tuple(each))
        if modifier == "missing" and not parameter.grouped:
            held = AllOf(tuple(self._clause(["false"], each, "missing") for each in parameter.components))
            return Not(held) if self._clause(parts, parameter, modifier).missing else held
        if modifier is not None:
            return self._clause(parts, parameter, modifier)
        values = [self._components(parameter, part) for part in parts if part]
        if not values:
            raise errors.bad_request(f"Missing value of search parameter: {parameter.code}")
        if parameter.grouped:
            grouped = (CompositeValue(tuple(clause.values[0] for clause in clauses)) for clauses in values)
            return Clause(parameter, tuple(grouped))
        return AnyOf(tuple(map(AllOf, values)))

    def _components(self, parameter: Parameter, text: str) -> tuple[Clause, ...]:
        texts = _split(text, "$")
        if len(texts) != len(parameter.components):
            kinds = "$".join(each.kind for each in parameter.components)
            raise errors.bad_request(f"{parameter.code} takes {kinds}, found {text}")
        return tuple(
            self._clause([each], component, None)
            for component, each in zip(parameter.components, texts, strict=True)
        )

    def _clause(self, parts: Sequence[str], parameter: Parameter, modifier: str | None) -> Clause:
        """One clause; ``parts`` are its alternatives, still with escapes."""
        if modifier == "missing":
            if list(parts) not in (["true"], ["false"]):
                raise errors.bad_request(f"Invalid format for {parameter.code}:missing: {','.join(parts)}")
            return Clause(parameter, (), modifier, missing=parts[0] == "true")
        read = _READERS.get(parameter.kind, _read_string)
        target: str | None = None
        if modifier is not None:
            if parameter.kind is Kind.REFERENCE and registry.is_resource_type(modifier):
                target, modifier = modifier, None
            elif modifier not in _MODIFIERS.get(parameter.kind, ()):
                raise errors.bad_request(
                    f"Invalid modifier :{modifier} for {parameter.kind} search parameter: {parameter.code}"
                )
            else:
                read = _MODIFIED_READERS.get((parameter.kind, modifier), read)
        context = _Context(parameter, target, self.base_url)
        values = tuple(read(context, part) for part in parts if part)
        if not values:
            raise errors.bad_request(f"Missing value of search parameter: {parameter.code}")
        self._count_values(len(values), compared=parameter.kind not in _HASHED or modifier == "text")
        return Clause(parameter, values, modifier)

    def _count_values(self, count: int, *, compared: bool) -> None:
        self.values += count
        self.compared += count if compared else 0
        if self.values > MAX_VALUES:
            raise errors.bad_request(f"Too many values in one search (max {MAX_VALUES})")
        if self.compared > MAX_COMPARED:
            raise errors.bad_request(
                f"Too many strings, dates, numbers or composites in one search (max {MAX_COMPARED})"
            )

    # --- result parameters ---

    def _count(self, text: str) -> None:
        self.result["count"] = min(_whole_number("_count", text), MAX_COUNT)

    def _offset(self, text: str) -> None:
        offset = _whole_number("_offset", text)
        if offset > MAX_OFFSET:
            raise errors.bad_request(f"Search offset exceeds maximum (got {offset}, max {MAX_OFFSET})")
        self.result["offset"] = offset

    def _sort(self, text: str) -> None:
        keys = [key for key in text.split(",") if key]
        for key in keys:
            if self.parameter(key.removeprefix("-")).kind in (Kind.COMPOSITE, Kind.SPECIAL):
                raise errors.bad_request(f"A search cannot be sorted by {key.removeprefix('-')}")
        self.result["sort"] = self.result.get("sort", ()) + tuple(
            Sort(self.parameter(key.removeprefix("-")), key.startswith("-")) for key in keys
        )
        if len(self.result["sort"]) > MAX_SORT:
            raise errors.bad_request(f"Too many parameters in _sort (max {MAX_SORT})")

    def _total(self, text: str) -> None:
        self.result["total"] = _one_of("_total", text, "none", "estimate", "accurate")

    def _summary(self, text: str) -> None:
        mode = _one_of("_summary", text, "true", "text", "data", "count", "false")
        if mode == "count":
            self.result.update(count=0, total="accurate")
        elif mode != "false":
            self.result["summary"] = mode

    def _cursor(self, text: str) -> None:
        found = _CURSOR.fullmatch(text)
        if found is None or not registry.is_resource_type(found[2]):
            raise errors.bad_request("Invalid _cursor: follow the next link of the page before")
        self.result["cursor"] = Cursor(int(found[1]), found[2], found[3])

    def _check_cursor(self) -> None:
        if "cursor" not in self.result:
            return
        if self.result.get("offset"):
            raise errors.bad_request("Cannot use both offset and cursor")
        if [sort.parameter.code for sort in self.result.get("sort", ())] not in ([], ["_lastUpdated"]):
            raise errors.bad_request("A _cursor goes with _sort=_lastUpdated only")

    def _type(self, text: str) -> None:
        # At system level it has chosen the searches; here it can only say the same again.
        if self.type not in text.split(","):
            raise errors.bad_request(f"_type={text} contradicts the type that is searched: {self.type}")

    def _include(self, name: str, text: str) -> None:
        code, colon, modifier = name.partition(":")
        if colon and modifier not in ("iterate", "recurse"):
            raise errors.bad_request(f"Invalid modifier :{modifier} for {code}. Allowed: iterate")
        type_, _, rest = text.partition(":")
        reference, _, target = rest.partition(":")
        for each in (type_, target or type_):
            if not registry.is_resource_type(each):
                raise errors.bad_request(
                    f"Invalid {code}: {text}. Expected Type:parameter or Type:parameter:Target"
                )
        parameter = self.parameters(type_).get(reference)
        if parameter is None or parameter.kind is not Kind.REFERENCE or not parameter.expression:
            raise errors.bad_request(
                f"Invalid {code}: {text}. {reference} is no reference parameter of {type_}"
            )
        include = Include(type_, parameter, target or None, code == "_revinclude", bool(colon))
        self.result["includes"] = (*self.result.get("includes", ()), include)
        if len(self.result["includes"]) > MAX_INCLUDES:
            raise errors.bad_request(f"Too many _include and _revinclude (max {MAX_INCLUDES})")

    def _deleted(self, text: str) -> None:
        self.result["deleted"] = _one_of("_deleted", text, "true", "false") == "true"

    def _fields(self, text: str) -> None:
        names = tuple(name for name in (part.strip() for part in text.split(",")) if name)
        self.result["fields"] = self.result.get("fields", ()) + names


_RESULT_PARAMETERS: Final[dict[str, Callable[[_Reader, str], None]]] = {
    "_count": _Reader._count,
    "_offset": _Reader._offset,
    "_sort": _Reader._sort,
    "_total": _Reader._total,
    "_summary": _Reader._summary,
    "_fields": _Reader._fields,
    "_elements": _Reader._fields,
    "_cursor": _Reader._cursor,
    "_type": _Reader._type,
    "_deleted": _Reader._deleted,
}

_CURSOR: Final = re.compile(r"1-([0-9]{1,14})-([A-Za-z]+)/([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})")
"""Version, milliseconds and reference of the last match on a page; opaque to clients."""


def cursor_text(cursor: Cursor) -> str:
    """The value of ``_cursor`` that stands for ``cursor``."""
    return f"1-{cursor.milliseconds}-{cursor.type}/{cursor.id}"


def _whole_number(name: str, text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise errors.bad_request(f"Invalid {name}: {text}")
    return int(text)


def _one_of(name: str, text: str, *allowed: str) -> str:
    if text not in allowed:
        raise errors.bad_request(f"Invalid {name}: {text}. Allowed: {', '.join(allowed)}")
    return text


# --- values -----------------------------------------------------------------------------------------------


def _split(text: str, separator: str) -> list[str]:
    """Split at a separator that is not escaped by a backslash; escapes stay in the parts."""
    if "\\" not in text:
        return text.split(separator)
    return re.findall(rf"(?:^|{re.escape(separator)})((?:\\.|[^\\{separator}]|\\$)*)", text, re.DOTALL)


def _parts(text: str) -> list[str]:
    """The alternatives of a value, each with its escapes."""
    return _split(text, ",")


def escape(text: str) -> str:
    """Escape what would divide a value in a query: the reverse of reading it."""
    return re.sub(r"([\\,|$])", r"\\\1", text)


def _unescape(text: str) -> str:
    r"""Resolve ``\,`` ``\|`` ``\$`` and ``\\`` (search.html#escaping)."""
    return re.sub(r"\\([\\,|$])", r"\1", text) if "\\" in text else text


@dataclass(frozen=True, slots=True)
class _Context:
    """What a value is read for."""

    parameter: Parameter
    target: str | None
    """Target type the query names (``subject:Patient``)."""
    base_url: str | None

    def refuse(self, text: str) -> NoReturn:
        raise errors.bad_request(f"Invalid format for {self.parameter.kind} search parameter: {text}")


def _read_token(context: _Context, text: str) -> TokenValue:
    first, *rest = _split(text, "|")
    if not rest:
        return TokenValue(None, _unescape(first))
    code = _unescape("|".join(rest))
    if not first and not code:
        context.refuse(text)
    return TokenValue(_unescape(first), code or None)


def _read_string(context: _Context, text: str) -> StringValue:
    plain = _unescape(text)
    if not normalize(plain):
        context.refuse(text)
    return StringValue(plain)


def _read_exact_string(context: _Context, text: str) -> StringValue:
    return StringValue(_unescape(text))


def _read_uri(context: _Context, text: str) -> UriValue:
    return UriValue(_unescape(text))


def _read_beginning(context: _Context, text: str) -> UriValue:
    uri = _unescape(text).rstrip("/")
    if not uri:
        context.refuse(text)
    return UriValue(uri)


def _read_typed(context: _Context, text: str) -> TypedValue:
    parts = [_unescape(part) for part in _split(text, "|")]
    if len(parts) != 3 or not parts[1] or not parts[2]:
        raise errors.bad_request(f"{context.parameter.code}:of-type takes system|code|value, found {text}")
    return TypedValue(*parts)


def _read_concept(context: _Context, text: str) -> TokenValue:
    concept = _read_token(context, text)
    if not concept.system or concept.code is None:
        raise errors.bad_request(f"{context.parameter.code}:above and :below take system|code, found {text}")
    return concept


_ID: Final = re.compile(r"[A-Za-z0-9\-.]{1,64}")


def _read_reference(context: _Context, text: str) -> ReferenceValue:
    plain = _unescape(text)
    if context.base_url and plain.startswith(context.base_url):
        plain = plain.removeprefix(context.base_url)
    if _ID.fullmatch(plain):
        targets = context.parameter.targets
        return ReferenceValue(context.target or (targets[0] if len(targets) == 1 else None), plain)
    reference = parse_reference(plain)
    if context.target and reference.type and reference.type != context.target:
        context.refuse(text)
    return ReferenceValue(reference.type, reference.id, reference.url)


def _read_local_reference(context: _Context, text: str) -> ReferenceValue:
    reference = _read_reference(context, text)
    if reference.type is None or reference.id is None:
        raise errors.bad_request(f"{context.parameter.code}:above and :below take Type/id, found {text}")
    return reference


def _prefix(text: str) -> tuple[Prefix, str]:
    return (cast(Prefix, text[:2]), text[2:]) if text[:2] in _PREFIXES else ("eq", text)


_DATE: Final = re.compile(
    r"[0-9]{4}(-[0-9]{2}(-[0-9]{2}(T[0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,9})?)?(Z|[+-][0-9]{2}:[0-9]{2})?)?)?)?"
)


def _read_date(context: _Context, text: str) -> DateValue:
    prefix, date = _prefix(text)
    # a plus sign that was not percent-encoded arrives as a blank
    date = date.replace(" ", "+")
    if not _DATE.fullmatch(date):
        context.refuse(text)
    try:
        low, high = date_range(date)
    except ValueError:  # matches the pattern, but there is no such day or time
        context.refuse(text)
    if prefix == "ap":
        slack = abs(time.time_ns() // 1000 - low) // 10
        low, high = max(low - slack, MIN_MICROSECONDS), min(high + slack, MAX_MICROSECONDS)
    return DateValue(prefix, low, high)


_NUMBER: Final = re.compile(r"[+-]?[0-9]{1,20}(\.[0-9]{1,20})?([eE][+-]?[0-9]{1,2})?")


def _read_number(context: _Context, text: str) -> NumberValue:
    prefix, number = _prefix(text)
    if not _NUMBER.fullmatch(number):
        context.refuse(text)
    value = Decimal(number)
    exponent = cast(int, value.as_tuple().exponent)
    if prefix == "sw":
        return NumberValue(prefix, value, value, value + Decimal(1).scaleb(exponent))
    half_a_digit = Decimal(5).scaleb(exponent - 1)
    slack = abs(value) / 10 if prefix == "ap" else half_a_digit
    return NumberValue(prefix, value, value - slack, value + slack)


def _read_quantity(context: _Context, text: str) -> QuantityValue:
    number, *unit = (_unescape(part) for part in _split(text, "|"))
    if len(unit) not in (0, 2):
        context.refuse(text)
    system, code = unit or ("", "")
    return QuantityValue(_read_number(context, number), system or None, code or None)


_KILOMETRES: Final = {"": 1.0, "km": 1.0, "m": 0.001, "[mi_us]": 1.609344, "mi": 1.609344}
"""What units of length ``near`` takes, in kilometres."""
_NEAR: Final = 20.0
"""The distance that is near when none is given."""


def _read_near(context: _Context, text: str) -> NearValue:
    parts = [_unescape(part) for part in _split(text, "|")]
    degrees, more = parts[:2], [*parts[2:], "", ""]
    numbers = [*degrees, more[0] or str(_NEAR)]
    if len(parts) not in (2, 3, 4) or not all(map(_NUMBER.fullmatch, numbers)) or more[1] not in _KILOMETRES:
        raise errors.bad_request(
            f"{context.parameter.code} takes latitude|longitude|distance|units (km, m or [mi_us]), found {text}"
        )
    latitude, longitude, length = map(float, numbers)
    if not (abs(latitude) <= 90 and abs(longitude) <= 180 and 0 <= length <= 1e9):
        raise errors.bad_request(f"There is no such place or distance: {text}")
    return NearValue(latitude, longitude, length * _KILOMETRES[more[1]])


Reader = Callable[[_Context, str], Value]
"""Reads one alternative of a parameter's value; escapes are still in it."""

_READERS: Final[dict[Kind, Reader]] = {
    Kind.TOKEN: _read_token,
    Kind.STRING: _read_string,
    Kind.REFERENCE: _read_reference,
    Kind.URI: _read_uri,
    Kind.DATE: _read_date,
    Kind.NUMBER: _read_number,
    Kind.QUANTITY: _read_quantity,
    Kind.SPECIAL: _read_near,
}

_MODIFIED_READERS: Final[dict[tuple[Kind, str], Reader]] = {
    (Kind.REFERENCE, "identifier"): _read_token,
    (Kind.REFERENCE, "above"): _read_local_reference,
    (Kind.REFERENCE, "below"): _read_local_reference,
    (Kind.TOKEN, "text"): _read_string,
    (Kind.TOKEN, "of-type"): _read_typed,
    (Kind.TOKEN, "in"): _read_uri,
    (Kind.TOKEN, "not-in"): _read_uri,
    (Kind.TOKEN, "above"): _read_concept,
    (Kind.TOKEN, "below"): _read_concept,
    (Kind.STRING, "exact"): _read_exact_string,
    (Kind.URI, "above"): _read_beginning,
    (Kind.URI, "below"): _read_beginning,
}
"""Modifiers whose values are written like those of another kind."""
