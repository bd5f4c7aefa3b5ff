"""The invariants of the definitions as closures over JSON, fast where they only ask what is there.

Most invariants say which elements go together: ``exists()``, ``empty()``, comparisons with a constant, and logic. Those
parts become look-ups in the object; what is left is evaluated by :mod:`fhirstore.fhirpath`, and only when the look-ups
before it have not decided. An invariant is broken when it is false: where it is empty, or cannot be evaluated because an
element is no valid value, nothing is said.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from fhirstore.fhirpath.evaluation import Env, Run, compile_tree, truth
from fhirstore.fhirpath.parser import Call, Literal, Member, Operation, Tree, Variable, parse
from fhirstore.fhirpath.values import UCUM, FhirPathError, Node, children_of, is_primitive

Test = Callable[[Any], bool | None]
"""Whether an invariant holds for a JSON value; None if that cannot be told."""

Part = Callable[["_Subject"], bool | None]

STEPS: Final = 3_000_000
"""For expressions of the definitions: enough for the largest resource, and an end where a few are quadratic."""


class _Subject:
    """The value an invariant is about: its JSON, and as a node when the engine has to look at it."""

    __slots__ = ("_env", "_steps", "_type", "value")

    def __init__(self, value: Any, type_: str, steps: int) -> None:
        self.value = value
        self._type = type_
        self._steps = steps
        self._env: Env | None = None

    @property
    def env(self) -> Env:
        if self._env is None:
            root = [Node(self.value, self._type)]
            run = Run(root, {}, None)
            run.steps = self._steps
            self._env = Env(run, root)
        return self._env


def compile_invariant(expression: str, type_: str, *, steps: int = STEPS) -> Test:
    """Compile an invariant of a type or group of elements.

    Args:
        expression: its FHIRPath.
        type_: the type (``Period``) or the path of the group (``Patient.contact``) whose values it is about.
        steps: what one evaluation may cost; less for expressions of strangers.

    Raises:
        FhirPathError: it is no FHIRPath.
    """
    part = _part(parse(expression), type_)

    def test(value: Any) -> bool | None:
        try:
            return part(_Subject(value, type_, steps))
        except FhirPathError:
            return None

    return test


def _part(tree: Tree, type_: str) -> Part:
    match tree:
        case Operation("and" | "or" | "xor" | "implies" as operator, left, right):
            return _LOGIC[operator](_part(left, type_), _part(right, type_))
        case Call(base, "not", ()) if base is not None:
            return _not(_part(base, type_))
        case Call(Member(None, name), "exists" | "empty" as function, ()) if keys := _keys(name, type_):
            return _there(keys, wanted=function == "exists")
        case Call(Member(None, name), "hasValue", ()) if key := _single(name, type_):
            return lambda subject: key in subject.value
        case Operation("=" | "!=" as operator, left, right):
            return _equality(operator, left, right, tree, type_)
        case Operation("<=", Member(None, first), Member(None, second)) if _is_moment(
            first, type_
        ) and _is_moment(second, type_):
            return _not_later(first, second, _engine(tree))
        case Operation("in", Member(None, name), choice) if key := _single(name, type_):
            codes = _constants(choice)
            if codes is not None:
                return _one_of(key, codes)
        case Call(base, "exists" | "empty" | "all" | "isDistinct" as function, _) if base is not None:
            return _if_there(_first_keys(base, type_), function != "exists", _engine(tree))
    return _engine(tree)


_EMPTY_STAYS_EMPTY: Final = frozenset(
    {
        "children",
        "descendants",
        "distinct",
        "extension",
        "first",
        "last",
        "ofType",
        "resolve",
        "select",
        "tail",
        "where",
    }
)


def _first_keys(tree: Tree, type_: str) -> tuple[str, ...]:
    """The JSON properties a path begins with: without them it is empty."""
    while True:
        match tree:
            case Member(None, name):
                return _keys(name, type_)
            case Member(base, _) if base is not None:
                tree = base
            case Call(base, name, _) if base is not None and name in _EMPTY_STAYS_EMPTY:
                tree = base
            case _:
                return ()


def _if_there(keys: tuple[str, ...], otherwise: bool, part: Part) -> Part:
    """Ask ``part`` only if there is one of the properties."""
    if not keys:
        return part
    some = frozenset(keys)
    return lambda subject: otherwise if some.isdisjoint(subject.value) else part(subject)


def _engine(tree: Tree) -> Part:
    closure = compile_tree(tree)
    return lambda subject: truth(closure(subject.env))


def _keys(name: str, type_: str) -> tuple[str, ...]:
    """The JSON properties an element may stand in, none if the type has no such element."""
    keys: list[str] = []
    for property_, type_of in children_of(type_).by_name.get(name, ()):
        keys.append(property_)
        if is_primitive(type_of):
            keys.append(f"_{property_}")
    return tuple(keys)


def _single(name: str, type_: str) -> str | None:
    """The JSON property of an element of one primitive type."""
    found = children_of(type_).by_name.get(name, ())
    return found[0][0] if len(found) == 1 and is_primitive(found[0][1]) else None


def _is_moment(name: str, type_: str) -> bool:
    found = children_of(type_).by_name.get(name, ())
    return len(found) == 1 and found[0] in ((name, "dateTime"), (name, "date"))


def _not_later(first: str, second: str, part: Part) -> Part:
    """``first <= second`` of two dates: as texts where both are in UTC or days, and of the same precision."""

    def compare(subject: _Subject) -> bool | None:
        left, right = subject.value.get(first), subject.value.get(second)
        comparable = type(left) is str and type(right) is str and len(left) == len(right)
        if comparable and (len(left) == 10 or left[-1] == right[-1] == "Z"):
            return bool(left <= right)
        return part(subject)

    return compare


def _there(keys: tuple[str, ...], *, wanted: bool) -> Part:
    if len(keys) == 1:
        (only,) = keys
        return lambda subject: (only in subject.value) is wanted
    choice = frozenset(keys)
    return lambda subject: choice.isdisjoint(subject.value) is not wanted


def _constants(tree: Tree) -> frozenset[str] | None:
    """The texts of ``('a' | 'b' | 'c')``."""
    match tree:
        case Literal((str() as text,)):
            return frozenset({text})
        case Operation("|", left, right):
            first, second = _constants(left), _constants(right)
            return None if first is None or second is None else first | second
    return None


def _one_of(key: str, codes: frozenset[str]) -> Part:
    def part(subject: _Subject) -> bool | None:
        value = subject.value.get(key)
        return None if value is None else value in codes

    return part


def _equality(operator: str, left: Tree, right: Tree, tree: Tree, type_: str) -> Part:
    wanted = operator == "="
    match left, right:
        case (Member(None, name), Literal((str() | bool() as constant,))) if key := _single(name, type_):
            pass
        case (Member(None, name), Variable("ucum")) if key := _single(name, type_):
            constant = UCUM
        case (
            Call(Member(None, first), "exists", ()),
            Call(Member(None, second), "exists", ()),
        ) if (first_keys := _keys(first, type_)) and (second_keys := _keys(second, type_)):
            one, other = _there(first_keys, wanted=True), _there(second_keys, wanted=True)
            return lambda subject: (one(subject) is other(subject)) is wanted
        case _:
            return _engine(tree)

    def part(subject: _Subject) -> bool | None:
        value = subject.value.get(key)
        return None if value is None or type(value) is list else (value == constant) is wanted

    return part


def _not(inner: Part) -> Part:
    def part(subject: _Subject) -> bool | None:
        value = inner(subject)
        return None if value is None else not value

    return part


def _and(left: Part, right: Part) -> Part:
    def part(subject: _Subject) -> bool | None:
        first = left(subject)
        if first is False:
            return False
        second = right(subject)
        return second if first else (False if second is False else None)

    return part


def _or(left: Part, right: Part) -> Part:
    def part(subject: _Subject) -> bool | None:
        first = left(subject)
        if first:
            return True
        second = right(subject)
        return second if first is False else (True if second else None)

    return part


def _xor(left: Part, right: Part) -> Part:
    def part(subject: _Subject) -> bool | None:
        first, second = left(subject), right(subject)
        return None if first is None or second is None else first is not second

    return part


def _implies(left: Part, right: Part) -> Part:
    return _or(_not(left), right)


_LOGIC: Final = {"and": _and, "or": _or, "xor": _xor, "implies": _implies}
