"""What a resource can be found by: :func:`index` evaluates all search parameters of a resource.

For each resource type the resolved expressions (:mod:`fhirstore.search.expressions`) become one generated Python
function that walks the resource once: paths with a common beginning share it. At the end of each path an extractor for
the data type there (a table per parameter kind, below) adds the index values. How they are compared stands in
:mod:`fhirstore.search.match`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from datetime import UTC, datetime
from decimal import Decimal
from functools import cache, lru_cache
from typing import Any, Final, cast

from fhirstore.definitions import registry
from fhirstore.search import expressions
from fhirstore.search.expressions import Condition, Path
from fhirstore.search.model import IndexValues, Kind, Parameter, Quantity, Reference, Token, TypedIdentifier

# --- text -------------------------------------------------------------------------------------------------


def normalize(text: str) -> str:
    """Fold a text so that case, accents, compatibility forms and the amount of white space do not matter.

    The one normalisation of string search, on both sides (https://hl7.org/fhir/R4/search.html#string).
    """
    if text.isascii():
        return " ".join(text.lower().split())
    folded = unicodedata.normalize("NFKD", unicodedata.normalize("NFKC", text).casefold())
    return " ".join("".join(char for char in folded if not unicodedata.combining(char)).split())


def fold_code(code: str) -> str:
    """Fold the case of a token value: codes are compared case-insensitively (search.html#token)."""
    return code.casefold()


# --- uris -------------------------------------------------------------------------------------------------

_MOST_SEGMENTS: Final = 32


def uri_beginnings(uri: str) -> set[str]:
    """What a URI is below: itself and each beginning that ends before a slash; of very many the first 32."""
    ends = [position for position, char in enumerate(uri) if char == "/"]
    return {uri, *(uri[:end] for end in ends[:_MOST_SEGMENTS])}


# --- dates ------------------------------------------------------------------------------------------------

MIN_MICROSECONDS: Final = -(2**63)
"""The low end of a period without start."""
MAX_MICROSECONDS: Final = 2**63 - 1
"""The high end of a period without end."""

_DAY: Final = 86_400_000_000
_EPOCH_DAY: Final = datetime(1970, 1, 1, tzinfo=UTC).toordinal()


def date_range(text: str) -> tuple[int, int]:
    """Return the microseconds since 1970 UTC a date, dateTime or instant stands for: low inclusive, high exclusive.

    Takes every precision from year to fraction of a second; a time may leave out its seconds; without a zone it is UTC.

    Raises:
        ValueError: there is no such date.
    """
    if len(text) <= 10:
        year, month, day = int(text[:4]), int(text[5:7] or 1), int(text[8:10] or 1)
        low = _start_of_day(year, month, day)
        if len(text) == 10:
            return low, low + _DAY
        year, month = (year, month + 1) if len(text) == 7 else (year + 1, 1)
        if month == 13:
            year, month = year + 1, 1
        return low, _start_of_day(year, month, 1) if year <= 9999 else MAX_MICROSECONDS
    # a leap second has no datetime; it belongs to the last second of its minute
    moment = datetime.fromisoformat(text.replace(":60", ":59") if text[16:19] == ":60" else text)
    low = (moment.toordinal() - _EPOCH_DAY) * _DAY + (
        (moment.hour * 60 + moment.minute) * 60 + moment.second
    ) * 1_000_000
    offset = moment.utcoffset()
    if offset:
        low -= (offset.days * 86_400 + offset.seconds) * 1_000_000
    if text[16:17] != ":":
        return low, low + 60_000_000
    if text[19:20] != ".":
        return low, low + 1_000_000
    digits = _FRACTION.match(text, 20)
    precision = 10 ** max(0, 6 - (digits.end() - 20 if digits else 0))
    low += moment.microsecond
    return low, low + precision


_FRACTION: Final = re.compile(r"[0-9]+")


def _start_of_day(year: int, month: int, day: int) -> int:
    return (datetime(year, month, day, tzinfo=UTC).toordinal() - _EPOCH_DAY) * _DAY


# --- extractors: what a value of a data type adds to the index --------------------------------------------
# Each takes the value, the list of the parameter's values and its list of companions (token: display texts, string:
# further words, reference: identifiers; unused by other kinds).

Extractor = Callable[[Any, list[Any], list[Any]], None]


def _coding(value: Any, tokens: list[Any], texts: list[Any]) -> None:
    system, code, display = value.get("system"), value.get("code"), value.get("display")
    if code is not None or system is not None:
        tokens.append(Token(system, code))
    if display is not None:
        texts.append(display)


def _codeable_concept(value: Any, tokens: list[Any], texts: list[Any]) -> None:
    for coding in value.get("coding", ()):
        _coding(coding, tokens, texts)
    text = value.get("text")
    if text is not None:
        texts.append(text)


def _identifier(value: Any, tokens: list[Any], texts: list[Any]) -> None:
    system, code, type = value.get("system"), value.get("value"), value.get("type")
    if code is not None or system is not None:
        tokens.append(Token(system, code))
    if type is not None and "text" in type:
        texts.append(type["text"])


def _identifier_type(value: Any, types: list[Any], _: list[Any]) -> None:
    """For ``:of-type``: each coding of the identifier's type, with its value."""
    code = value.get("value")
    if code is not None:
        types.extend(
            TypedIdentifier(coding.get("system"), coding["code"], code)
            for coding in value.get("type", {}).get("coding", ())
            if "code" in coding
        )


def _contact_point(value: Any, tokens: list[Any], texts: list[Any]) -> None:
    code = value.get("value")
    if code is not None:
        tokens.append(Token(value.get("system"), code))


def _code(value: Any, tokens: list[Any], texts: list[Any]) -> None:
    tokens.append(Token(None, value))


def _boolean(value: Any, tokens: list[Any], texts: list[Any]) -> None:
    tokens.append(Token(None, "true" if value else "false"))


def _string(value: Any, strings: list[Any], words: list[Any]) -> None:
    strings.append(value)


def _text_of_concept(value: Any, strings: list[Any], words: list[Any]) -> None:
    if "text" in value:
        strings.append(value["text"])
    strings.extend(coding["display"] for coding in value.get("coding", ()) if "display" in coding)


def _text_of_annotation(value: Any, strings: list[Any], words: list[Any]) -> None:
    if "text" in value:
        strings.append(value["text"])


_LATER_WORD: Final = re.compile(r"(?<=[^\w'\u2019])\w")
_MOST_WORDS: Final = 16


def _later_words(value: str, words: list[Any]) -> None:
    """Add the rest of a text from each word after the first on; at most 16, for texts nobody would call a name."""
    if value.isalnum():
        return
    for found, _ in zip(_LATER_WORD.finditer(value, 1), range(_MOST_WORDS), strict=False):
        words.append(value[found.start() :])


def _name_part(value: Any, strings: list[Any], words: list[Any]) -> None:
    strings.append(value)
    _later_words(value, words)


def _human_name(value: Any, strings: list[Any], words: list[Any]) -> None:
    given = [part for part in value.get("given", ()) if part is not None]
    for part in (
        value.get("text"),
        value.get("family"),
        *given,
        *value.get("prefix", ()),
        *value.get("suffix", ()),
    ):
        if part is not None:
            strings.append(part)
            _later_words(part, words)
    if given and "family" in value:
        whole = " ".join((*given, value["family"]))
        words.append(whole)
        _later_words(whole, words)


def _address(value: Any, strings: list[Any], words: list[Any]) -> None:
    for name in ("text", "city", "district", "state", "postalCode", "country"):
        part = value.get(name)
        if part is not None:
            strings.append(part)
            _later_words(part, words)
    for part in value.get("line", ()):
        if part is not None:
            strings.append(part)
            _later_words(part, words)


def parse_reference(text: str) -> Reference:
    """Read a literal reference: ``Type/id`` (a version is cut off) is local, everything else a ``url``."""
    type, *rest = text.split("/")
    match rest:
        case [id] | [id, "_history", _] if id and type.isalpha():
            return Reference(type, id)
    return Reference(None, None, text)


def _reference(value: Any, references: list[Any], identifiers: list[Any]) -> None:
    text = value.get("reference")
    if text is not None:
        references.append(parse_reference(text))
    identifier = value.get("identifier")
    if identifier is not None:
        _identifier(identifier, identifiers, [])


def _canonical(value: Any, references: list[Any], identifiers: list[Any]) -> None:
    references.append(parse_reference(value))
    url, bar, _ = value.partition("|")
    if bar:
        references.append(parse_reference(url))


def _inline_resource(value: Any, references: list[Any], identifiers: list[Any]) -> None:
    if "id" in value:
        references.append(Reference(value["resourceType"], value["id"]))


def _project(value: Any, references: list[Any], identifiers: list[Any]) -> None:
    references.append(Reference("Project", value))


def _uri(value: Any, uris: list[Any], _: list[Any]) -> None:
    uris.append(value)


def _canonical_uri(value: Any, uris: list[Any], _: list[Any]) -> None:
    uris.append(value)
    url, bar, _version = value.partition("|")
    if bar:
        uris.append(url)


def _date(value: Any, dates: list[Any], _: list[Any]) -> None:
    dates.append(date_range(value))


def _period(value: Any, dates: list[Any], _: list[Any]) -> None:
    start, end = value.get("start"), value.get("end")
    if start is not None or end is not None:
        dates.append(
            (
                MIN_MICROSECONDS if start is None else date_range(start)[0],
                MAX_MICROSECONDS if end is None else date_range(end)[1],
            )
        )


def _timing(value: Any, dates: list[Any], _: list[Any]) -> None:
    """Only the outer limits of a Timing count (search.html#date)."""
    events = [date_range(event) for event in value.get("event", ()) if event is not None]
    if events:
        dates.append((min(low for low, _ in events), max(high for _, high in events)))
    bounds = value.get("repeat", {}).get("boundsPeriod")
    if bounds is not None:
        _period(bounds, dates, [])


def _decimal(value: float | int | str) -> Decimal:
    return Decimal(str(value))


def _number(value: Any, numbers: list[Any], _: list[Any]) -> None:
    number = _decimal(value)
    numbers.append((number, number))


def _bounds(low: Any, high: Any) -> tuple[Decimal, Decimal] | None:
    """The closed range between two Quantities, None if neither has a value."""
    ends = [end.get("value") if end else None for end in (low, high)]
    if ends == [None, None]:
        return None
    return (
        _decimal("-Infinity" if ends[0] is None else ends[0]),
        _decimal("Infinity" if ends[1] is None else ends[1]),
    )


def _number_range(value: Any, numbers: list[Any], _: list[Any]) -> None:
    bounds = _bounds(value.get("low"), value.get("high"))
    if bounds is not None:
        numbers.append(bounds)


_INFINITY: Final = Decimal("Infinity")


def _quantity(value: Any, quantities: list[Any], _: list[Any]) -> None:
    amount = value.get("value")
    if amount is None:
        return
    low = high = _decimal(amount)
    comparator = value.get("comparator")
    if comparator is not None:
        low, high = (-_INFINITY, high) if comparator[0] == "<" else (low, _INFINITY)
    quantities.append(Quantity(low, high, value.get("system"), value.get("code"), value.get("unit")))


def _quantity_range(value: Any, quantities: list[Any], _: list[Any]) -> None:
    bounds = _bounds(value.get("low"), value.get("high"))
    if bounds is not None:
        unit = value.get("low") or value["high"]
        quantities.append(Quantity(*bounds, unit.get("system"), unit.get("code"), unit.get("unit")))


def _sampled_data(value: Any, quantities: list[Any], _: list[Any]) -> None:
    """Between the limits of detection, in the unit of the origin (search.html#quantity); nothing without limits."""
    low, high = value.get("lowerLimit"), value.get("upperLimit")
    if low is not None or high is not None:
        unit = value.get("origin", {})
        _quantity_range({"low": {**unit, "value": low}, "high": {**unit, "value": high}}, quantities, [])


def _money(value: Any, quantities: list[Any], _: list[Any]) -> None:
    if "value" in value:
        amount, currency = _decimal(value["value"]), value.get("currency")
        quantities.append(
            Quantity(amount, amount, "urn:iso:std:iso:4217" if currency else None, currency, currency)
        )


def _position(value: Any, positions: list[Any], _: list[Any]) -> None:
    """Location.position."""
    latitude, longitude = value.get("latitude"), value.get("longitude")
    if latitude is not None and longitude is not None:
        positions.append((float(latitude), float(longitude)))


_TEXT_TYPES: Final = ("string", "markdown", "code", "id", "uri", "url", "canonical", "oid", "uuid")

EXTRACTORS: Final[dict[Kind, dict[str, Extractor]]] = {
    Kind.TOKEN: {
        "Coding": _coding,
        "CodeableConcept": _codeable_concept,
        "Identifier": _identifier,
        "ContactPoint": _contact_point,
        "boolean": _boolean,
        **dict.fromkeys(_TEXT_TYPES, _code),
    },
    Kind.STRING: {
        "HumanName": _human_name,
        "Address": _address,
        "CodeableConcept": _text_of_concept,
        "Annotation": _text_of_annotation,
        **dict.fromkeys((*_TEXT_TYPES, "date", "dateTime", "time"), _string),
    },
    Kind.REFERENCE: {
        "Reference": _reference,
        "canonical": _canonical,
        "uri": _canonical,
        "url": _canonical,
        "Resource": _inline_resource,
    },
    Kind.URI: {
        "canonical": _canonical_uri,
        **dict.fromkeys(("uri", "url", "oid", "uuid"), _uri),
    },
    Kind.SPECIAL: {"BackboneElement": _position},
    Kind.DATE: {
        **dict.fromkeys(("date", "dateTime", "instant"), _date),
        "Period": _period,
        "Timing": _timing,
    },
    Kind.NUMBER: {
        **dict.fromkeys(("integer", "decimal", "positiveInt", "unsignedInt"), _number),
        "Range": _number_range,
    },
    Kind.QUANTITY: {
        **dict.fromkeys(("Quantity", "Age", "Duration", "Count", "Distance"), _quantity),
        "Money": _money,
        "Range": _quantity_range,
        "SampledData": _sampled_data,
    },
}
"""What each parameter kind takes from each data type (https://hl7.org/fhir/R4/search.html#ptypes)."""


def indexed_paths(kind: Kind, paths: Iterable[Path]) -> list[tuple[Path, Extractor]]:
    """Pair the paths of a parameter with their extractors.

    Types of an open choice (``Observation.value``) that the kind has no use for are left out.

    Raises:
        UnsupportedExpressionError: no path is left, or one that names its type ends at a type the kind has no use for.
    """
    extractors = EXTRACTORS.get(kind, {})
    pairs: list[tuple[Path, Extractor]] = []
    for path in paths:
        extractor = extractors.get(path.type)
        if kind is Kind.STRING and path.parent in ("HumanName", "Address") and path.type == "string":
            extractor = _name_part
        elif kind is Kind.REFERENCE and path.parent == "Meta" and path.type == "uri":
            extractor = _project
        if extractor is not None:
            pairs.append((path, extractor))
        elif not path.open:
            raise expressions.UnsupportedExpressionError(f"no {kind} values in data type {path.type}")
    if not pairs:
        raise expressions.UnsupportedExpressionError("it leads to no element of this type")
    return pairs


# --- the generated function of a resource type -----------------------------------------------------------

_MAPS: Final[dict[Kind, tuple[str, str | None]]] = {
    Kind.TOKEN: ("tokens", "texts"),
    Kind.STRING: ("strings", "words"),
    Kind.REFERENCE: ("references", "identifiers"),
    Kind.URI: ("uris", None),
    Kind.DATE: ("dates", None),
    Kind.NUMBER: ("numbers", None),
    Kind.QUANTITY: ("quantities", None),
    Kind.SPECIAL: ("positions", None),
}
"""The maps of IndexValues that hold a parameter's values and their companions."""

_Tree = dict[Any, "_Tree"]


@cache
def _indexer(type: str) -> Callable[[dict[str, Any]], IndexValues]:
    """Generate the function that indexes a resource of this type."""
    return _generate(type, tuple(registry.search_parameters(type).values()))


@cache
def _compartment_indexer(type: str) -> Callable[[dict[str, Any]], IndexValues]:
    """Generate the function that evaluates only the parameters of the patient compartment."""
    known = registry.search_parameters(type)
    return _generate(type, [known[code] for code in registry.patient_compartment(type)])


@lru_cache(maxsize=1000)
def _own_indexer(
    type: str, parameters: tuple[tuple[str, Kind, str], ...]
) -> Callable[[dict[str, Any]], IndexValues]:
    """Generate the function that evaluates a project's own parameters, given as code, kind and expression."""
    return _generate(
        type, [Parameter(code, kind, expression=expression) for code, kind, expression in parameters]
    )


def _generate(type: str, parameters: Iterable[Parameter]) -> Callable[[dict[str, Any]], IndexValues]:
    structures = registry.get().structure
    return _compile(
        type,
        [
            (
                each.code,
                each.kind,
                indexed_paths(each.kind, expressions.resolve(type, each.expression, structures)),
            )
            for each in parameters
            if each.expression and each.kind is not Kind.COMPOSITE
        ],
    )


def _compile(
    name: str, parameters: Iterable[tuple[str, Kind, list[tuple[Path, Extractor]]]]
) -> Callable[[dict[str, Any]], IndexValues]:
    """Generate a function that adds up what the paths of parameters, given as code, kind and paths, lead to."""
    tree: _Tree = {}
    names: dict[str, Any] = {
        "IndexValues": IndexValues,
        "_target": _target,
        "_identifier_type": _identifier_type,
    }
    head: list[str] = []
    tail: list[str] = []
    for number, (code, kind, paths) in enumerate(parameters):
        values, companions = _MAPS[kind]
        for path, extractor in paths:
            branch = tree
            for step in path.steps:
                branch = branch.setdefault(step, {})
            names[extractor.__name__] = extractor
            branch[f"{extractor.__name__}({{}}, v{number}, w{number})"] = {}
            if extractor is _identifier:
                branch[f"_identifier_type({{}}, t{number}, [])"] = {}
        head.append(f"v{number} = []; w{number} = []; t{number} = []")
        tail.append(f"if t{number}: types[{code!r}] = t{number}")
        tail.append(f"if v{number}: {values}[{code!r}] = v{number}")
        if companions:
            tail.append(f"if w{number}: {companions}[{code!r}] = w{number}")
    maps = [*(name for pair in _MAPS.values() for name in pair if name), "types"]
    lines = [
        "def index(resource):",
        *(f"    {name} = {{}}" for name in maps),
        *(f"    {line}" for line in head),
        *_walk(tree, "resource", 1),
        *(f"    {line}" for line in tail),
        f"    return IndexValues({', '.join(f'{name}={name}' for name in maps)})",
    ]
    # the source holds names from the definitions only, each written with repr()
    exec(compile("\n".join(lines), f"<index of {name}>", "exec"), names)  # noqa: S102
    generated: Callable[[dict[str, Any]], IndexValues] = names["index"]
    return generated


# --- composites -------------------------------------------------------------------------------------------

_OF_RESOURCE: Final = "%resource."


def _component_paths(
    type: str, focus: Path, expression: str, structures: expressions.Structures
) -> list[Path]:
    """The paths of a composite's part: from the focus, or from the whole resource."""
    if expression.startswith(_OF_RESOURCE):
        return expressions.resolve(type, f"{type}.{expression.removeprefix(_OF_RESOURCE)}", structures)
    return expressions.resolve_from(type, focus, expression, structures)


def component_kind(
    type: str, foci: Iterable[Path], expression: str, kind: Kind, structures: expressions.Structures
) -> Kind:
    """The kind a part of a composite is of: the one that is defined, or the first that can take what is there.

    Raises:
        UnsupportedExpressionError: none can.
    """
    paths = [path for focus in foci for path in _component_paths(type, focus, expression, structures)]
    for each in (kind, Kind.TOKEN, Kind.REFERENCE, Kind.DATE):
        try:
            indexed_paths(each, paths)
            return each
        except expressions.UnsupportedExpressionError:
            continue
    raise expressions.UnsupportedExpressionError(f"nothing can take what {expression} leads to")


@cache
def _groupers(type: str) -> tuple[tuple[str, Callable[[dict[str, Any]], list[IndexValues]]], ...]:
    """For each grouped composite of a type the function that finds its groups in a resource."""
    return tuple(
        (parameter.code, _grouper(type, parameter))
        for parameter in registry.search_parameters(type).values()
        if parameter.grouped
    )


def _grouper(type: str, parameter: Parameter) -> Callable[[dict[str, Any]], list[IndexValues]]:
    structures = registry.get().structure
    (focus,) = expressions.resolve(type, parameter.expression, structures)
    tree: _Tree = {}
    branch = tree
    for step in focus.steps:
        branch = branch.setdefault(step, {})
    branch["found.append({})"] = {}
    lines = ["def find(resource):", "    found = []", *_walk(tree, "resource", 1), "    return found"]
    names: dict[str, Any] = {"_target": _target}
    # as above: names from the definitions only
    exec(compile("\n".join(lines), f"<elements of {type}.{parameter.code}>", "exec"), names)  # noqa: S102
    inner, outer = (
        [
            (each, indexed_paths(each.kind, _component_paths(type, focus, each.expression, structures)))
            for each in parameter.components
            if each.expression.startswith(_OF_RESOURCE) is whole
        ]
        for whole in (False, True)
    )
    of_element, of_resource = (
        _compile(f"{type}.{parameter.code}", [(each.code, each.kind, paths) for each, paths in parts])
        for parts in (inner, outer)
    )
    needed = [(_MAPS[each.kind][0], each.code) for each in parameter.components]

    def groups(resource: dict[str, Any]) -> list[IndexValues]:
        made = [of_element(element) for element in names["find"](resource)]
        if outer and made:
            shared = of_resource(resource)
            made = [_merged(group, shared) for group in made]
        return [group for group in made if all(code in getattr(group, name) for name, code in needed)]

    return groups


def holds(values: IndexValues, code: str) -> bool:
    """True if there is any value for a parameter."""
    return any(code in getattr(values, name) for name in _FIELDS)


_FIELDS: Final = tuple(each.name for each in fields(IndexValues))


def _merged(values: IndexValues, more: IndexValues) -> IndexValues:
    """The values of different parameters together."""
    return IndexValues(**{name: {**getattr(values, name), **getattr(more, name)} for name in _FIELDS})


def _walk(tree: _Tree, variable: str, depth: int) -> Iterable[str]:
    """Yield the lines that follow the branches of ``tree`` from the object in ``variable``."""
    for step, branch in tree.items():
        if isinstance(step, str):
            yield "    " * depth + step.format(variable)
            continue
        inner = variable if isinstance(step, expressions.Equals | expressions.Refers) else f"x{depth}"
        lines = _enter(step, variable, inner)
        for line in lines:
            yield "    " * depth + line
            depth += line.endswith(":")
        yield from _walk(branch, inner, depth)
        depth -= sum(line.endswith(":") for line in lines)


def _enter(step: expressions.Step, variable: str, inner: str) -> list[str]:
    """Return the lines that take one step from ``variable`` to ``inner``; what follows stands below their last colon."""
    match step:
        case expressions.Property(name, many=True, position=position):
            part = "" if position is None else f"[{position}:{position + 1}]"
            return [f"for {inner} in {variable}.get({name!r}, ()){part}:", f"if {inner} is not None:"]
        case expressions.Property(name):
            return [f"{inner} = {variable}.get({name!r})", f"if {inner} is not None:"]
        case expressions.Equals(name, value):
            return [f"if {variable}.get({name!r}) == {value!r}:"]
        case expressions.Refers(type):
            return [f"if _target({variable}) == {type!r}:"]
        case expressions.TargetType():
            return [f"{inner} = _target({variable})", f"if {inner} is not None:"]
        case expressions.Test(conditions):
            return [f"{inner} = {' and '.join(_condition(variable, entry) for entry in conditions)}"]
        case expressions.Select(cases, default):
            chain = " ".join(f"{value!r} if {_condition(variable, test)} else" for test, value in cases)
            return [f"{inner} = {chain} {default!r}"]


def _condition(variable: str, condition: Condition) -> str:
    values = [f"{variable}.get({name!r})" for name in condition.names]
    if condition.value is None:
        return "(" + " or ".join(f"{value} is not None" for value in values) + ")"
    if condition.negated:
        return "(" + " and ".join(f"{value} != {condition.value!r}" for value in values) + ")"
    return "(" + " or ".join(f"{value} == {condition.value!r}" for value in values) + ")"


def _target(reference: dict[str, Any]) -> str | None:
    """The resource type a Reference points to, as far as it tells."""
    text = reference.get("reference")
    if text is not None:
        parts = text.split("/")
        if len(parts) >= 2:
            name: str = parts[-4] if len(parts) >= 4 and parts[-2] == "_history" else parts[-2]
            return name
    declared: str | None = reference.get("type")
    return declared


def index(resource: dict[str, Any]) -> IndexValues:
    """Return the values of all search parameters of ``resource``, ``_id``, ``_tag`` and their kin included.

    Args:
        resource: a valid resource (:func:`fhirstore.validation.validate`) with the ``meta`` it is stored with.
    """
    type = resource["resourceType"]
    values = _indexer(type)(resource)
    for code, find in _groupers(type):
        if found := find(resource):
            cast(dict[str, list[IndexValues]], values.groups)[code] = found
    return values


def index_with(resource: dict[str, Any], own: Mapping[str, Parameter]) -> IndexValues:
    """The same, with further parameters of a project."""
    values = index(resource)
    if not own:
        return values
    key = tuple((each.code, each.kind, each.expression) for each in own.values())
    more = _own_indexer(resource["resourceType"], key)(resource)
    return _merged(values, more)


def patient_references(resource: dict[str, Any]) -> list[str]:
    """Return ``Patient/{id}`` of each patient whose compartment the resource belongs to, without repetition.

    Args:
        resource: a valid resource; a Patient belongs to its own compartment.
    """
    type = resource["resourceType"]
    found: dict[str, None] = {}
    if type == "Patient":
        found[f"Patient/{resource['id']}"] = None
    for references in _compartment_indexer(type)(resource).references.values():
        for reference in references:
            if reference.type == "Patient":
                found[f"Patient/{reference.id}"] = None
    return list(found)
