"""What FHIRPath computes with: elements of a resource, numbers, texts, dates and quantities.

A value is either a :class:`Node`, an element of a resource with its type and place, or a system value: ``bool``, ``int``,
``Decimal``, ``str``, :class:`Temporal` or :class:`Quantity`. :func:`system` turns a node of a primitive type into one.
"""

from __future__ import annotations

import calendar
import re
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal, InvalidOperation
from functools import cache
from typing import Any, Final, Literal

from fhirstore.definitions import registry


class FhirPathError(ValueError):
    """An expression that cannot be read or evaluated; the message says why."""


# --- elements ---------------------------------------------------------------------------------------------


class Node:
    """An element of a resource.

    Attributes:
        value: its JSON; None for a primitive that has nothing but extensions.
        type: ``Patient``, ``HumanName``, ``code``, or the path of a group (``Patient.contact``); "" if unknown.
        companion: of a primitive, the object in the property with an underscore in front.
        parent: the element it belongs to, None for the root.
        key: name of its JSON property; `index` its place if that holds a list, else None.
    """

    __slots__ = ("companion", "index", "key", "parent", "type", "value")

    def __init__(
        self,
        value: Any,
        type: str,
        companion: dict[str, Any] | None = None,
        parent: Node | None = None,
        key: str = "",
        index: int | None = None,
    ) -> None:
        self.value = value
        self.type = type
        self.companion = companion
        self.parent = parent
        self.key = key
        self.index = index

    def pointer(self) -> tuple[str | int, ...]:
        """Where it stands in its root: names of properties and places in lists, as in a JSON Pointer."""
        if self.parent is None:
            return ()
        place = self.parent.pointer()
        return (*place, self.key) if self.index is None else (*place, self.key, self.index)


Value = Any
"""A Node or a system value."""


class Children:
    """The members of a type: which JSON properties an element may stand in, and their types."""

    __slots__ = ("by_name", "by_property")

    def __init__(self, type_: str) -> None:
        self.by_name: dict[str, tuple[tuple[str, str], ...]] = {}
        self.by_property: dict[str, str] = {}
        root = type_.partition(".")[0]
        structure = registry.structure(root)
        if structure is None:
            return
        for element in structure.children(type_):
            entries = []
            for type_code in [each.code for each in element.types] or [""]:
                property_ = element.property_name(type_code) if type_code else element.name
                if element.content:
                    type_of = element.content
                elif type_code in ("BackboneElement", "Element") and structure.children(element.path):
                    type_of = element.path
                else:
                    type_of = type_code
                entries.append((property_, type_of))
                self.by_property[property_] = type_of
            self.by_name[element.name] = tuple(entries)
            if element.choice:
                # value.ofType(Quantity) is right, but valueQuantity is often written
                for property_, type_of in entries:
                    self.by_name.setdefault(property_, ((property_, type_of),))


children_of: Final = cache(Children)
"""The members of a type, by name."""


MAX_EXPONENT: Final = 400
"""Digits before or behind the point that a computed number may have: more than any of JSON's, and never expensive."""


def in_range(value: Value) -> bool:
    """False for a number that is beyond what an expression may compute with."""
    match value:
        case bool():
            return True
        case int():
            return -(2**63) <= value < 2**63
        case Decimal():
            return value.is_finite() and abs(value.adjusted()) <= MAX_EXPONENT
        case Quantity():
            return in_range(value.value)
    return True


def root_node(value: Any) -> Value:
    """A JSON value handed in from outside as a value of FHIRPath."""
    if isinstance(value, float):
        return Decimal(repr(value))
    if isinstance(value, bool | int | str | Decimal | Temporal | Quantity | Node):
        return value
    if isinstance(value, dict):
        type_ = value.get("resourceType")
        return Node(value, type_ if isinstance(type_, str) else "")
    raise FhirPathError(f"a variable cannot be a {type(value).__name__}")


_SUPER: Final = {
    "Age": "Quantity",
    "BackboneElement": "Element",
    "Count": "Quantity",
    "Distance": "Quantity",
    "DomainResource": "Resource",
    "Duration": "Quantity",
    "MoneyQuantity": "Quantity",
    "SimpleQuantity": "Quantity",
    "canonical": "uri",
    "code": "string",
    "id": "string",
    "markdown": "string",
    "oid": "uri",
    "positiveInt": "integer",
    "unsignedInt": "integer",
    "url": "uri",
    "uuid": "uri",
}
"""Types of FHIR that specialise another concrete one."""

_PLAIN_RESOURCES: Final = frozenset({"Binary", "Bundle", "Parameters"})
"""Resources that are no DomainResource."""

_SYSTEM_OF: Final = {
    "base64Binary": "String",
    "boolean": "Boolean",
    "canonical": "String",
    "code": "String",
    "date": "Date",
    "dateTime": "DateTime",
    "decimal": "Decimal",
    "id": "String",
    "instant": "DateTime",
    "integer": "Integer",
    "integer64": "Integer",
    "markdown": "String",
    "oid": "String",
    "positiveInt": "Integer",
    "string": "String",
    "time": "Time",
    "unsignedInt": "Integer",
    "uri": "String",
    "url": "String",
    "uuid": "String",
    "xhtml": "String",
    "Quantity": "Quantity",
}
"""The system type a FHIR type converts to."""

_SYSTEM_TYPES: Final = frozenset(_SYSTEM_OF.values()) | {"Any"}


@cache
def _ancestry(type_: str) -> frozenset[str]:
    """A FHIR type with all it specialises."""
    if "." in type_:
        return frozenset({"BackboneElement", "Element"})
    names = {type_}
    while type_ in _SUPER:
        type_ = _SUPER[type_]
        names.add(type_)
    structure = registry.structure(type_)
    if structure is not None and structure.kind == "resource":
        names.add("Resource")
        if type_ not in _PLAIN_RESOURCES:
            names.add("DomainResource")
    elif structure is not None:
        names.add("Element")
    return frozenset(names)


def is_primitive(type_: str) -> bool:
    """True for the FHIR types that are no objects in JSON."""
    return type_ in _SYSTEM_OF and type_ != "Quantity"


def system_type(value: Value) -> str:
    """Name of the system type of a value that is no Node."""
    match value:
        case bool():
            return "Boolean"
        case int():
            return "Integer"
        case Decimal():
            return "Decimal"
        case str():
            return "String"
        case Temporal():
            return value.kind
        case Quantity():
            return "Quantity"
    raise FhirPathError("a value of no known type")


def is_type(value: Value, name: str) -> bool:
    """True if a value is of a type: ``Patient``, ``FHIR.code``, ``System.String``.

    Without namespace, ``Boolean`` and the other system types mean elements of FHIR's types, too: so R4 uses them.
    """
    namespace, _, plain = name.rpartition(".")
    if isinstance(value, Node):
        if not value.type and not isinstance(value.value, dict | list | None):
            return is_type(value.value if not isinstance(value.value, float) else system(value), name)
        if namespace != "System" and (plain in _ancestry(value.type) or value.type == name):
            return True
        if namespace or plain not in _SYSTEM_TYPES:
            return False
        return any(_SYSTEM_OF.get(each) == plain for each in _ancestry(value.type))
    return namespace != "FHIR" and (
        system_type(value) == plain or (not namespace and _SYSTEM_OF.get(plain) == system_type(value))
    )


def known_type(name: str) -> bool:
    """True if ``is``, ``as`` and ``ofType`` may name this type."""
    namespace, _, plain = name.rpartition(".")
    if namespace == "System":
        return plain in _SYSTEM_TYPES
    if namespace not in ("", "FHIR"):
        return False
    return plain in _SYSTEM_TYPES or registry.structure(plain) is not None or plain in _SUPER


def system(value: Value) -> Value:
    """The system value of a node of a primitive type or Quantity; any other value as it is.

    A date that cannot be read stays text: validation says what is wrong with it.
    """
    if not isinstance(value, Node):
        return value
    raw = value.value
    if isinstance(raw, str):
        if value.type in ("date", "dateTime", "instant", "time"):
            return Temporal.read(raw, "Time" if value.type == "time" else None) or raw
        return raw
    if isinstance(raw, float):
        return Decimal(repr(raw))
    if isinstance(raw, dict):
        if _SUPER.get(value.type, value.type) == "Quantity" and "value" in raw:
            return Quantity.of_fhir(raw) or value
        return value
    return value if raw is None or isinstance(raw, list) else raw


# --- dates and times ------------------------------------------------------------------------------------------

_TEMPORAL: Final = re.compile(
    r"([0-9]{4})(?:-([0-9]{2})(?:-([0-9]{2}))?)?"
    r"(?:(T)(?:([0-9]{2})(?::([0-9]{2})(?::([0-9]{2}(?:\.[0-9]+)?))?)?)?(Z|[+-][0-9]{2}:[0-9]{2})?)?"
)
_CLOCK: Final = re.compile(r"T?([0-9]{2})(?::([0-9]{2})(?::([0-9]{2}(?:\.[0-9]+)?))?)?")


@dataclass(frozen=True, slots=True)
class Temporal:
    """A Date, DateTime or Time of any precision.

    Attributes:
        parts: year, month, day, hour, minute, second (a Decimal), as many as given; of a Time from the hour on.
        zone: minutes ahead of UTC, None if not given.
    """

    kind: Literal["Date", "DateTime", "Time"]
    parts: tuple[int | Decimal, ...]
    zone: int | None = None

    @classmethod
    def read(cls, text: str, kind: Literal["Time"] | None = None) -> Temporal | None:
        """Read FHIR's text of a date, a dateTime or (with ``kind``) a time; None if it is none."""
        found = (_CLOCK if kind else _TEMPORAL).fullmatch(text)
        if found is None:
            return None
        groups = [group for group in found.groups() if group is not None]
        try:
            if kind:
                clock = [int(group) if len(group) == 2 else Decimal(group) for group in groups]
                return cls("Time", tuple(_valid_clock(clock)))
            zone = None
            if found[8]:
                zone = _zone(groups.pop())
            time = groups.index("T") if "T" in groups else len(groups)
            day = [int(group) for group in groups[:time]]
            date(*(*day, 1, 1)[:3])
            clock = [int(group) if len(group) == 2 else Decimal(group) for group in groups[time + 1 :]]
            if clock and len(day) < 3:
                return None
            is_time = "T" in groups
            return cls("DateTime" if is_time else "Date", (*day, *_valid_clock(clock)), zone)
        except ValueError:
            return None

    @classmethod
    def of_literal(cls, text: str) -> Temporal:
        """Read ``@2020-01``, ``@2020T``, ``@T10:30``.

        Raises:
            FhirPathError: there is no such day or time.
        """
        read = cls.read(text[2:], "Time") if text.startswith("@T") else cls.read(text[1:])
        if read is None:
            raise FhirPathError(f"{text} is no date or time")
        return read

    def __str__(self) -> str:
        parts = [f"{part:02}" if isinstance(part, int) else _seconds(part) for part in self.parts]
        if self.kind == "Time":
            return ":".join(parts)
        parts[0] = f"{self.parts[0]:04}"
        text = "-".join(parts[:3])
        if len(parts) > 3:
            text += "T" + ":".join(parts[3:])
            if self.zone is not None:
                sign, zone = "-" if self.zone < 0 else "+", abs(self.zone)
                text += f"{sign}{zone // 60:02}:{zone % 60:02}" if zone else "Z"
        return text

    def compare(self, other: Temporal) -> int | None:
        """-1, 0 or 1; None if the precisions do not let one tell, or the kinds differ."""
        if (self.kind == "Time") != (other.kind == "Time"):
            return None
        left, right = self._in_utc(), other._in_utc()
        for mine, theirs in zip(left, right, strict=False):
            if mine != theirs:
                return -1 if mine < theirs else 1
        return 0 if len(left) == len(right) else None

    def _in_utc(self) -> tuple[int | Decimal, ...]:
        """The parts in UTC; without a zone they are taken as UTC."""
        if not self.zone or len(self.parts) < 4:
            return self.parts
        moved = _moved(self, timedelta(minutes=-self.zone))
        return self.parts if moved is None else moved.parts

    def plus(self, amount: Quantity, sign: int) -> Temporal | None:
        """This moment and a duration later (``sign`` 1) or earlier (-1), in the same precision; None off the calendar.

        Raises:
            FhirPathError: the unit is no unit of time.
        """
        unit = amount.unit
        if unit not in _SECONDS and unit not in ("a", "mo"):
            raise FhirPathError("only a duration can be added to a date or time")
        value = amount.value * sign
        if unit not in ("s", "ms"):
            value = Decimal(int(value))  # fractions count from seconds on only
        if unit in ("a", "mo"):
            if self.kind == "Time":
                raise FhirPathError("a Time has no years and months")
            months = int(value) * (12 if unit == "a" else 1)
            return self._months(months)
        seconds = value * _SECONDS[unit]
        if self.kind != "Time" and len(self.parts) < 3:
            # no finer than years or months, so only whole ones of them count
            days, months = (365, 12) if len(self.parts) == 1 else (30, 1)
            return self._months(int(seconds / 86_400 / days) * months)
        if abs(seconds) > 400_000_000_000:
            return None
        if len(self.parts) == 3 and self.kind != "Time":
            return _moved(self, timedelta(days=int(seconds / 86400)))
        microseconds = int(seconds * 1_000_000)
        return _moved(self, timedelta(microseconds=microseconds))

    def _months(self, months: int) -> Temporal | None:
        year, month = int(self.parts[0]), int(self.parts[1]) if len(self.parts) > 1 else 1
        if abs(months) > 200_000:
            return None
        year, month = divmod(year * 12 + month - 1 + months, 12)
        month += 1
        if not 1 <= year <= 9999:
            return None
        parts: list[int | Decimal] = [year, month, *self.parts[2:]][: len(self.parts)]
        if len(parts) > 2:
            parts[2] = min(int(parts[2]), calendar.monthrange(year, month)[1])
        return Temporal(self.kind, tuple(parts), self.zone)


_SECONDS: Final = {
    "wk": Decimal(604_800),
    "d": Decimal(86_400),
    "h": Decimal(3_600),
    "min": Decimal(60),
    "s": Decimal(1),
    "ms": Decimal("0.001"),
}


def _valid_clock(clock: list[int | Decimal]) -> list[int | Decimal]:
    for part, end in zip(clock, (24, 60, 61), strict=False):
        if part >= end:
            raise ValueError("no such time")
    return clock


def _zone(text: str) -> int:
    if text == "Z":
        return 0
    hours, minutes = int(text[1:3]), int(text[4:])
    if hours > 14 or minutes > 59:
        raise ValueError("no such time zone")
    return (-1 if text[0] == "-" else 1) * (hours * 60 + minutes)


def _seconds(part: Decimal) -> str:
    whole, _, fraction = f"{part:f}".partition(".")
    return f"{int(whole):02}.{fraction}" if fraction else f"{int(whole):02}"


def _moved(moment: Temporal, by: timedelta) -> Temporal | None:
    clock = moment.parts if moment.kind == "Time" else moment.parts[3:]
    year, month, day = (int(part) for part in ((2000, 1, 1) if moment.kind == "Time" else moment.parts[:3]))
    hour, minute, second_ = (*clock, 0, 0, 0)[:3]
    start = datetime(year, month, day, int(hour), int(minute), min(int(second_), 59))  # noqa: DTZ001 -- zone apart
    try:
        moved = start + by + timedelta(microseconds=int(second_ % 1 * 1_000_000))
    except OverflowError:
        return None
    second: int | Decimal = moved.second
    if moved.microsecond or (len(clock) > 2 and isinstance(clock[2], Decimal)):
        second = (Decimal(moved.second) + Decimal(moved.microsecond) / 1_000_000).normalize()
        places = max(3, -int(second.as_tuple().exponent))
        second = second.quantize(Decimal(1).scaleb(-places))
    parts: tuple[int | Decimal, ...] = (moved.hour, moved.minute, second)
    if moment.kind != "Time":
        parts = (moved.year, moved.month, moved.day, *parts)
    return Temporal(moment.kind, parts[: len(moment.parts)], moment.zone)


# --- quantities -----------------------------------------------------------------------------------------------

CALENDAR_UNITS: Final = {
    name + plural: unit
    for name, unit in {
        "year": "a",
        "month": "mo",
        "week": "wk",
        "day": "d",
        "hour": "h",
        "minute": "min",
        "second": "s",
        "millisecond": "ms",
    }.items()
    for plural in ("", "s")
}
"""Words for units of time, and the units of UCUM that are closest."""

UCUM: Final = "http://unitsofmeasure.org"

_PREFIXES: Final = {"k": 3, "d": -1, "c": -2, "m": -3, "u": -6, "n": -9, "p": -12}
_PREFIXED: Final = ("g", "m", "L", "l", "mol", "U", "Pa", "V", "J", "cal", "Hz", "eq", "W")
_FACTORS: Final[dict[str, tuple[str, Decimal]]] = {
    **{unit: ("s", factor) for unit, factor in _SECONDS.items()},
    "a": ("mo", Decimal(12)),
    "mo": ("mo", Decimal(1)),
    "[lb_av]": ("g", Decimal("453.59237")),
    "[oz_av]": ("g", Decimal("28.349523125")),
    "[in_i]": ("m", Decimal("0.0254")),
    "[ft_i]": ("m", Decimal("0.3048")),
    "mm[Hg]": ("Pa", Decimal("133.322387415")),
    "%": ("1", Decimal("0.01")),
    "1": ("1", Decimal(1)),
    **{unit: ("L" if unit == "l" else unit, Decimal(1)) for unit in _PREFIXED},
    **{
        prefix + unit: ("L" if unit == "l" else unit, Decimal(1).scaleb(exponent))
        for unit in _PREFIXED
        for prefix, exponent in _PREFIXES.items()
    },
}
"""Units that can be converted: the base they share, and how many of it one is."""


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number with a unit of UCUM (or none: ``1``).

    Attributes:
        calendar: the unit was written as a word: ``1 year``.
    """

    value: Decimal
    unit: str
    calendar: bool = False

    @classmethod
    def of_fhir(cls, raw: dict[str, Any]) -> Quantity | None:
        """The quantity in a FHIR Quantity; None if its value is no number."""
        number = raw.get("value")
        if isinstance(number, bool) or not isinstance(number, int | float | Decimal):
            return None
        unit = raw.get("code") if raw.get("system", UCUM) == UCUM else None
        return cls(Decimal(repr(number)), str(unit or raw.get("code") or raw.get("unit") or "1"))

    def __str__(self) -> str:
        if self.calendar:
            word = next(word for word, unit in CALENDAR_UNITS.items() if unit == self.unit)
            return f"{self.value} {word}{'' if self.value == 1 else 's'}"
        return f"{self.value} '{self.unit}'"

    def comparable(self, other: Quantity) -> tuple[Decimal, Decimal] | None:
        """Both values in one unit, None if their units cannot be converted into each other."""
        if self.unit == other.unit:
            return self.value, other.value
        mine, theirs = _FACTORS.get(self.unit), _FACTORS.get(other.unit)
        if mine is None or theirs is None or mine[0] != theirs[0]:
            return None
        return self.value * mine[1], other.value * theirs[1]

    def converted(self, unit: str) -> Quantity | None:
        """The same quantity in another unit, None if it cannot be converted."""
        unit = CALENDAR_UNITS.get(unit, unit)
        pair = self.comparable(Quantity(Decimal(1), unit))
        return None if pair is None else Quantity(pair[0] / pair[1], unit)


def to_decimal(text: str) -> Decimal | None:
    """The number a text stands for, None if it is none."""
    if re.fullmatch(r"[+-]?[0-9]{1,60}(\.[0-9]{1,60})?", text) is None:
        return None
    try:
        return Decimal(text)
    except InvalidOperation:
        return None
