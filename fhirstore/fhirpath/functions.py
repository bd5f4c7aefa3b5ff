"""The functions of FHIRPath and those FHIR adds (https://hl7.org/fhir/R4/fhirpath.html#functions).

Each gets the environment, the collection it is called on, and its arguments as closures: an argument that is a condition
is evaluated for each value, any other once.
"""

from __future__ import annotations

import base64
import binascii
import html
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_UP, Decimal, DecimalException
from functools import lru_cache
from typing import Any, Final

import re2

from fhirstore.fhirpath.evaluation import (
    CHARS,
    EMPTY,
    MAX_TEXT,
    Closure,
    Collection,
    Env,
    Run,
    Seen,
    add_children,
    boolean,
    compare,
    descendants,
    distinct,
    each_of,
    number,
    single,
    text,
    truth,
)
from fhirstore.fhirpath.parser import Member, Tree
from fhirstore.fhirpath.values import (
    CALENDAR_UNITS,
    FhirPathError,
    Node,
    Quantity,
    Temporal,
    Value,
    in_range,
    is_type,
    known_type,
    system,
    to_decimal,
)


@dataclass(frozen=True, slots=True)
class Function:
    """A function: what it does, the least and the largest number of arguments, and whether its argument is a type."""

    work: Callable[..., Collection]
    arity: tuple[int, int]
    takes_type: bool = False


FUNCTIONS: Final[dict[str, Function]] = {}
"""All functions by name."""


def function(
    name: str, low: int = 0, high: int | None = None, *, takes_type: bool = False
) -> Callable[[Callable[..., Collection]], Callable[..., Collection]]:
    def register(work: Callable[..., Collection]) -> Callable[..., Collection]:
        FUNCTIONS[name] = Function(work, (low, low if high is None else high), takes_type)
        return work

    return register


def type_argument(tree: Tree) -> str:
    """The type an argument names.

    Raises:
        FhirPathError: it names none.
    """
    if isinstance(tree, Member):
        if tree.base is None:
            name = tree.name
        elif isinstance(tree.base, Member) and tree.base.base is None:
            name = f"{tree.base.name}.{tree.name}"
        else:
            name = ""
        if known_type(name):
            return name
        raise FhirPathError(f"unknown type {name or 'name'}")
    raise FhirPathError("the argument must be the name of a type")


# --- existence ------------------------------------------------------------------------------------------------


@function("empty")
def _empty(env: Env, focus: Collection) -> Collection:
    return boolean(not focus)


@function("exists", 0, 1)
def _exists(env: Env, focus: Collection, condition: Closure | None = None) -> Collection:
    if condition is None:
        return boolean(bool(focus))
    return boolean(any(truth(condition(inner)) for inner in each_of(env, focus)))


@function("all", 1)
def _all(env: Env, focus: Collection, condition: Closure) -> Collection:
    return boolean(all(truth(condition(inner)) for inner in each_of(env, focus)))


def _booleans(focus: Collection, name: str) -> list[bool]:
    values = [system(each) for each in focus]
    if not all(isinstance(each, bool) for each in values):
        raise FhirPathError(f"{name}() takes Booleans")
    return values


@function("allTrue")
def _all_true(env: Env, focus: Collection) -> Collection:
    return boolean(all(_booleans(focus, "allTrue")))


@function("anyTrue")
def _any_true(env: Env, focus: Collection) -> Collection:
    return boolean(any(_booleans(focus, "anyTrue")))


@function("allFalse")
def _all_false(env: Env, focus: Collection) -> Collection:
    return boolean(not any(_booleans(focus, "allFalse")))


@function("anyFalse")
def _any_false(env: Env, focus: Collection) -> Collection:
    return boolean(not all(_booleans(focus, "anyFalse")))


@function("subsetOf", 1)
def _subset(env: Env, focus: Collection, other: Closure) -> Collection:
    seen = Seen(env.run, other(env))
    return boolean(all(each in seen for each in focus))


@function("supersetOf", 1)
def _superset(env: Env, focus: Collection, other: Closure) -> Collection:
    seen = Seen(env.run, focus)
    return boolean(all(each in seen for each in other(env)))


@function("count")
def _count(env: Env, focus: Collection) -> Collection:
    return [len(focus)]


@function("distinct")
def _distinct(env: Env, focus: Collection) -> Collection:
    return distinct(env.run, focus)


@function("isDistinct")
def _is_distinct(env: Env, focus: Collection) -> Collection:
    return boolean(len(distinct(env.run, focus)) == len(focus))


@function("not")
def _not(env: Env, focus: Collection) -> Collection:
    value = truth(focus)
    return EMPTY if value is None else boolean(not value)


# --- filters and projections ----------------------------------------------------------------------------------


@function("where", 1)
def _where(env: Env, focus: Collection, condition: Closure) -> Collection:
    return [inner.this[0] for inner in each_of(env, focus) if truth(condition(inner))]


@function("select", 1)
def _select(env: Env, focus: Collection, projection: Closure) -> Collection:
    found: Collection = []
    for inner in each_of(env, focus):
        found += projection(inner)
        env.run.spend(len(found) and 1)
    env.run.spend(len(found))
    return found


@function("repeat", 1)
def _repeat(env: Env, focus: Collection, projection: Closure) -> Collection:
    found: Collection = []
    seen = Seen(env.run)
    level = focus
    while level:
        below: Collection = []
        for inner in each_of(env, level):
            new = projection(inner)
            env.run.spend(len(new))
            below += [each for each in new if seen.add(each)]
        found += below
        level = below
    return found


@function("aggregate", 1, 2)
def _aggregate(env: Env, focus: Collection, step: Closure, start: Closure | None = None) -> Collection:
    total = start(env) if start else EMPTY
    for inner in each_of(env, focus):
        inner.total = total
        total = step(inner)
    return total


def _of_type(env: Env, focus: Collection, name: str) -> Collection:
    return [each for each in focus if is_type(each, name)]


for _name in ("ofType", "as"):
    function(_name, 1, takes_type=True)(_of_type)


@function("is", 1, takes_type=True)
def _is(env: Env, focus: Collection, name: str) -> Collection:
    value = single(focus, "the value of is()")
    return EMPTY if value is None else boolean(is_type(value, name))


@function("single")
def _single(env: Env, focus: Collection) -> Collection:
    single(focus, "the value of single()")
    return focus


@function("first")
def _first(env: Env, focus: Collection) -> Collection:
    return focus[:1]


@function("last")
def _last(env: Env, focus: Collection) -> Collection:
    return focus[-1:]


@function("tail")
def _tail(env: Env, focus: Collection) -> Collection:
    return focus[1:]


@function("skip", 1)
def _skip(env: Env, focus: Collection, count: Closure) -> Collection:
    return focus[max(0, _integer(env, count, "skip")) :]


@function("take", 1)
def _take(env: Env, focus: Collection, count: Closure) -> Collection:
    return focus[: max(0, _integer(env, count, "take"))]


@function("intersect", 1)
def _intersect(env: Env, focus: Collection, other: Closure) -> Collection:
    seen = Seen(env.run, other(env))
    return [each for each in distinct(env.run, focus) if each in seen]


@function("exclude", 1)
def _exclude(env: Env, focus: Collection, other: Closure) -> Collection:
    seen = Seen(env.run, other(env))
    return [each for each in focus if each not in seen]


@function("union", 1)
def _union(env: Env, focus: Collection, other: Closure) -> Collection:
    return distinct(env.run, focus + other(env))


@function("combine", 1)
def _combine(env: Env, focus: Collection, other: Closure) -> Collection:
    both = focus + other(env)
    env.run.spend(len(both))
    return both


@function("coalesce", 1, 20)
def _coalesce(env: Env, focus: Collection, *choices: Closure) -> Collection:
    for choice in choices:
        if values := choice(env):
            return values
    return EMPTY


@function("iif", 2, 3)
def _iif(
    env: Env, focus: Collection, condition: Closure, then: Closure, otherwise: Closure | None = None
) -> Collection:
    inner = Env(env.run, focus, env.index, env.total)
    if truth(condition(inner)):
        return then(inner)
    return otherwise(inner) if otherwise else EMPTY


@function("children")
def _children(env: Env, focus: Collection) -> Collection:
    found: Collection = []
    for each in focus:
        if isinstance(each, Node):
            add_children(each, found)
    env.run.spend(len(found))
    return found


@function("descendants")
def _descendants(env: Env, focus: Collection) -> Collection:
    return descendants(env.run, focus)


@function("trace", 1, 2)
def _trace(env: Env, focus: Collection, name: Closure, projection: Closure | None = None) -> Collection:
    return focus  # what it would print is patient data


@function("type")
def _type(env: Env, focus: Collection) -> Collection:
    from fhirstore.fhirpath.values import system_type

    found: Collection = []
    for each in focus:
        space, name = ("FHIR", each.type) if isinstance(each, Node) else ("System", system_type(each))
        found.append(Node({"namespace": space, "name": name}, ""))
    return found


# --- numbers --------------------------------------------------------------------------------------------------


def _integer(env: Env, argument: Closure, name: str) -> int:
    value = system(single(argument(env), f"the argument of {name}()"))
    if type(value) is not int:
        raise FhirPathError(f"{name}() takes an Integer")
    return value


def _number(focus: Collection, name: str) -> Decimal | int | None:
    value = system(single(focus, f"the value of {name}()"))
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        raise FhirPathError(f"{name}() takes a number")
    return value


def _numeric(name: str, work: Callable[[Decimal | int], Decimal | int | None]) -> None:
    def evaluate(env: Env, focus: Collection) -> Collection:
        value = _number(focus, name)
        if value is None:
            return EMPTY
        try:
            result = work(value)
        except (DecimalException, ValueError, OverflowError):
            return EMPTY
        return EMPTY if result is None else number(result)

    function(name)(evaluate)


_numeric("ceiling", lambda value: int(Decimal(value).to_integral_value(ROUND_CEILING)))
_numeric("floor", lambda value: int(Decimal(value).to_integral_value(ROUND_FLOOR)))
_numeric("truncate", lambda value: int(value))
_numeric("exp", lambda value: Decimal(value).exp())
_numeric("ln", lambda value: Decimal(value).ln() if value > 0 else None)
_numeric("sqrt", lambda value: Decimal(value).sqrt() if value >= 0 else None)


@function("abs")
def _abs(env: Env, focus: Collection) -> Collection:
    value = system(single(focus, "the value of abs()"))
    if isinstance(value, Quantity):
        return [Quantity(abs(value.value), value.unit, value.calendar)]
    value = _number(focus, "abs")
    return EMPTY if value is None else [abs(value)]


@function("round", 0, 1)
def _round(env: Env, focus: Collection, places: Closure | None = None) -> Collection:
    value = _number(focus, "round")
    digits = _integer(env, places, "round") if places else 0
    if value is None:
        return EMPTY
    if not 0 <= digits <= 20:
        raise FhirPathError("round() takes 0 to 20 places")
    try:
        rounded = Decimal(value).quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP)
    except DecimalException:
        return [value]
    return [rounded if places else int(rounded)]


@function("log", 1)
def _log(env: Env, focus: Collection, base: Closure) -> Collection:
    value, of = _number(focus, "log"), _number(base(env), "log")
    if value is None or of is None or value <= 0 or of <= 0 or of == 1:
        return EMPTY
    return number(Decimal(repr(math.log(value, of))).normalize())


@function("power", 1)
def _power(env: Env, focus: Collection, exponent: Closure) -> Collection:
    value, by = _number(focus, "power"), _number(exponent(env), "power")
    if value is None or by is None:
        return EMPTY
    try:
        result = Decimal(value) ** Decimal(by)
    except DecimalException:
        return EMPTY
    if not in_range(result):
        return EMPTY  # before it becomes an Integer of a million digits
    return number(int(result) if isinstance(value, int) and isinstance(by, int) and by >= 0 else result)


def _fold(name: str, choose: Callable[[Run, Collection], Value]) -> None:
    def evaluate(env: Env, focus: Collection) -> Collection:
        env.run.spend(len(focus))
        return [choose(env.run, focus)] if focus else EMPTY

    function(name)(evaluate)


def _sum(_: Run, values: Collection) -> Value:
    plain = [system(each) for each in values]
    if all(isinstance(each, Quantity) for each in plain):
        if len({each.unit for each in plain}) > 1:
            raise FhirPathError("sum() takes quantities of one unit")
        return Quantity(sum((each.value for each in plain), Decimal(0)), plain[0].unit)
    if not all(isinstance(each, int | Decimal) and not isinstance(each, bool) for each in plain):
        raise FhirPathError("sum() takes numbers")
    return sum(plain)


def _average(run: Run, values: Collection) -> Value:
    total = _sum(run, values)
    if isinstance(total, Quantity):
        return Quantity(total.value / len(values), total.unit)
    return Decimal(total) / len(values)


def _extreme(sign: int) -> Callable[[Run, Collection], Value]:
    def choose(run: Run, values: Collection) -> Value:
        best = values[0]
        for each in values[1:]:
            if (compare(run, each, best) or 0) * sign > 0:
                best = each
        return best

    return choose


_fold("sum", _sum)
_fold("avg", _average)
_fold("min", _extreme(-1))
_fold("max", _extreme(1))


# --- texts ----------------------------------------------------------------------------------------------------


def argument_text(env: Env, values: Collection, name: str) -> str | None:
    value = system(single(values, f"the value of {name}()"))
    if isinstance(value, Temporal):
        value = str(value)
    if value is None or (isinstance(value, Node) and value.value is None):
        return None
    if not isinstance(value, str):
        raise FhirPathError(f"{name}() takes a text")
    env.run.spend(1 + len(value) // CHARS)
    return value


def _textual(
    name: str,
    arguments: int,
    work: Callable[..., Value | None],
    cost: Callable[..., int] = lambda *_: 0,
) -> None:
    """A function of a text with texts as arguments; empty if one of them is.

    ``cost`` of the same arguments is what it takes in steps besides reading them.
    """

    def evaluate(env: Env, focus: Collection, *closures: Closure) -> Collection:
        value = argument_text(env, focus, name)
        given = [argument_text(env, closure(env), name) for closure in closures]
        if value is None or None in given:
            return EMPTY
        env.run.spend(cost(value, *given))
        result = work(value, *given)
        if isinstance(result, list):
            env.run.spend(len(result))
            return result
        if isinstance(result, str):
            text(env.run, result)
        return EMPTY if result is None else [result]

    function(name, arguments)(evaluate)


@lru_cache(maxsize=512)
def _pattern(expression: str) -> Any:
    """A regular expression in linear time; RE2 knows no look-around and no back-references.

    Raises:
        FhirPathError: it cannot be used.
    """
    options = re2.Options()
    options.log_errors = False
    options.dot_nl = True
    try:
        return re2.compile(expression, options)
    except re2.error as error:
        reason = error.args[0] if error.args else ""
        shown = reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)
        raise FhirPathError(f"not a regular expression: {shown}") from None


def _matching(value: str, expression: str, *_: str) -> int:
    """Steps a regular expression may need: at worst RE2 looks at all of it for each character."""
    return len(value) * int(_pattern(expression).programsize) // CHARS


def _replaced(value: str, expression: str, by: str) -> str:
    # $1 or ${name}, as in other engines; RE2 writes \1
    template = re.sub(r"\$\{?([0-9])\}?", r"\\\1", by.replace("\\", "\\\\"))
    found = _pattern(expression)
    if len(by) * (len(value) + 1) > MAX_TEXT:
        raise FhirPathError("a text becomes too long")
    try:
        return str(found.sub(template, value))
    except re2.error:
        raise FhirPathError("replaceMatches() names a group that is not there") from None


def _replace(value: str, old: str, new: str) -> str:
    if len(new) * (value.count(old) if old else len(value) + 1) > MAX_TEXT:
        raise FhirPathError("a text becomes too long")
    return value.replace(old, new)


_textual("indexOf", 1, lambda value, part: value.find(part))
_textual("lastIndexOf", 1, lambda value, part: value.rfind(part))
_textual("startsWith", 1, lambda value, part: value.startswith(part))
_textual("endsWith", 1, lambda value, part: value.endswith(part))
_textual("contains", 1, lambda value, part: part in value)
_textual("upper", 0, lambda value: value.upper())
_textual("lower", 0, lambda value: value.lower())
_textual("trim", 0, lambda value: value.strip())
_textual("length", 0, lambda value: len(value))
_textual("toChars", 0, lambda value: list(value))
_textual("replace", 2, _replace)
_textual("matches", 1, lambda value, expression: _pattern(expression).search(value) is not None, _matching)
_textual(
    "matchesFull",
    1,
    lambda value, expression: _pattern(expression).fullmatch(value) is not None,
    _matching,
)
_textual("replaceMatches", 2, _replaced, _matching)
_textual("split", 1, lambda value, by: value.split(by) if by else list(value))


@function("substring", 1, 2)
def _substring(env: Env, focus: Collection, start: Closure, length: Closure | None = None) -> Collection:
    value = argument_text(env, focus, "substring")
    if value is None or not start(env):
        return EMPTY
    first = _integer(env, start, "substring")
    if not 0 <= first < len(value):
        return EMPTY
    if length is None or not length(env):
        return [value[first:]]
    return [value[first : first + max(0, _integer(env, length, "substring"))]]


@function("join", 0, 1)
def _join(env: Env, focus: Collection, separator: Closure | None = None) -> Collection:
    between = (argument_text(env, separator(env), "join") or "") if separator else ""
    parts = [argument_text(env, [each], "join") or "" for each in focus]
    if sum(map(len, parts)) + len(between) * len(parts) > MAX_TEXT:
        raise FhirPathError("a text becomes too long")
    return [text(env.run, between.join(parts))] if parts else EMPTY


_ENCODERS: Final[dict[str, Callable[[bytes], bytes]]] = {
    "hex": binascii.hexlify,
    "base64": base64.b64encode,
    "urlbase64": base64.urlsafe_b64encode,
}
_DECODERS: Final[dict[str, Callable[[bytes], bytes]]] = {
    "hex": binascii.unhexlify,
    "base64": base64.b64decode,
    "urlbase64": base64.urlsafe_b64decode,
}


def _encode(value: str, kind: str) -> str | None:
    encoder = _ENCODERS.get(kind)
    return encoder(value.encode()).decode() if encoder else None


def _decode(value: str, kind: str) -> str | None:
    decoder = _DECODERS.get(kind)
    try:
        return decoder(value.encode()).decode() if decoder else None
    except ValueError:
        return None


_textual("encode", 1, _encode)
_textual("decode", 1, _decode)
_JSON_ESCAPES: Final = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\f": "\\f"}
_textual(
    "escape",
    1,
    lambda value, kind: (
        html.escape(value)
        if kind == "html"
        else "".join(_JSON_ESCAPES.get(each, each) for each in value)
        if kind == "json"
        else None
    ),
)
_textual(
    "unescape",
    1,
    lambda value, kind: (
        html.unescape(value)
        if kind == "html"
        else re.sub(
            r"\\(.)",
            lambda found: {"n": "\n", "r": "\r", "t": "\t", "f": "\f"}.get(found[1], found[1]),
            value,
        )
        if kind == "json"
        else None
    ),
)


# --- conversions ----------------------------------------------------------------------------------------------


def _to_boolean(value: Value) -> bool | None:
    match value:
        case bool():
            return value
        case int() | Decimal():
            return True if value == 1 else False if value == 0 else None
        case str():
            low = value.lower()
            if low in ("true", "t", "yes", "y", "1", "1.0"):
                return True
            return False if low in ("false", "f", "no", "n", "0", "0.0") else None
    return None


def _to_integer(value: Value) -> int | None:
    match value:
        case bool():
            return int(value)
        case int():
            return value
        case str():
            found = to_decimal(value)
            return int(found) if found is not None and "." not in value and abs(found) < 2**63 else None
    return None


def _to_decimal(value: Value) -> Decimal | None:
    match value:
        case bool() | int() | Decimal():
            return Decimal(value)
        case str():
            return to_decimal(value)
    return None


def _to_string(value: Value) -> str | None:
    match value:
        case bool():
            return "true" if value else "false"
        case Decimal():
            return f"{value:f}"
        case int() | str() | Temporal() | Quantity():
            return str(value)
    return None


_QUANTITY_TEXT: Final = re.compile(r"([+-]?[0-9]{1,60}(?:\.[0-9]{1,60})?)(?:\s*'([^']+)'|\s+([a-z]+))?")


def _to_quantity(value: Value) -> Quantity | None:
    match value:
        case Quantity():
            return value
        case bool() | int() | Decimal():
            return Quantity(Decimal(value), "1")
        case str():
            found = _QUANTITY_TEXT.fullmatch(value)
            if found is None or (found[3] and found[3] not in CALENDAR_UNITS):
                return None
            if found[3]:
                return Quantity(Decimal(found[1]), CALENDAR_UNITS[found[3]], calendar=True)
            return Quantity(Decimal(found[1]), found[2] or "1")
    return None


def _to_temporal(kind: str) -> Callable[[Value], Temporal | None]:
    def convert(value: Value) -> Temporal | None:
        if isinstance(value, str):
            value = Temporal.read(value, "Time" if kind == "Time" else None)
        if not isinstance(value, Temporal) or (value.kind == "Time") != (kind == "Time"):
            return None
        if kind == "Date":
            return Temporal("Date", value.parts[:3])
        return value if kind == "Time" else Temporal("DateTime", value.parts, value.zone)

    return convert


def _conversion(name: str, convert: Callable[[Value], Value | None]) -> None:
    def evaluate(env: Env, focus: Collection) -> Collection:
        value = system(single(focus, f"the value of to{name}()"))
        result = None if value is None else convert(value)
        return EMPTY if result is None else [result]

    def test(env: Env, focus: Collection) -> Collection:
        value = system(single(focus, f"the value of convertsTo{name}()"))
        return EMPTY if value is None else boolean(convert(value) is not None)

    function(f"to{name}")(evaluate)
    function(f"convertsTo{name}")(test)


for _name, _convert in {
    "Boolean": _to_boolean,
    "Integer": _to_integer,
    "Decimal": _to_decimal,
    "String": _to_string,
    "Date": _to_temporal("Date"),
    "DateTime": _to_temporal("DateTime"),
    "Time": _to_temporal("Time"),
}.items():
    _conversion(_name, _convert)


@function("toQuantity", 0, 1)
def _quantity(env: Env, focus: Collection, unit: Closure | None = None) -> Collection:
    value = system(single(focus, "the value of toQuantity()"))
    found = None if value is None else _to_quantity(value)
    if found is None or unit is None:
        return EMPTY if found is None else [found]
    converted = found.converted(argument_text(env, unit(env), "toQuantity") or "1")
    return EMPTY if converted is None else [converted]


@function("convertsToQuantity", 0, 1)
def _converts_to_quantity(env: Env, focus: Collection, unit: Closure | None = None) -> Collection:
    return boolean(bool(_quantity(env, focus, unit))) if focus else EMPTY


def _now() -> datetime:
    return datetime.now(UTC)


@function("now")
def _now_function(env: Env, focus: Collection) -> Collection:
    return [Temporal.read(_now().isoformat(timespec="milliseconds"))]


@function("today")
def _today(env: Env, focus: Collection) -> Collection:
    return [Temporal.read(_now().date().isoformat())]


@function("timeOfDay")
def _time_of_day(env: Env, focus: Collection) -> Collection:
    return [Temporal.read(_now().time().isoformat(timespec="milliseconds"), "Time")]
