"""The FHIRPath of search parameters, resolved against the definitions.

Search parameters use a small part of FHIRPath: member paths, choices of types (``value as Quantity``, ``ofType``),
filters (``where(system = 'phone')``, ``where(resolve() is Patient)``), indexes, unions, and a few conditions.
:func:`parse` reads that part, :func:`resolve` follows it through the element definitions. What is left is a list of
:class:`Path`: plain steps through the JSON of a resource, each ending at values of a known data type, so that nothing
has to be decided about types when a resource is indexed.

Grammar and meaning: https://hl7.org/fhirpath/N1/.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Final, NamedTuple

from fhirstore.definitions.registry import Element, Structure

Structures = Callable[[str], Structure | None]
"""Looks up a type by name, as :func:`fhirstore.definitions.registry.structure` does."""


class UnsupportedExpressionError(ValueError):
    """An expression, or a part of it, lies outside the subset; the message says which."""


# --- the syntax tree --------------------------------------------------------------------------------------


class Name(NamedTuple):
    """A member of the focus, or a type's name at the beginning of a path."""

    name: str


class Literal(NamedTuple):
    value: str | int | bool


class Member(NamedTuple):
    base: Node
    name: str


class Item(NamedTuple):
    base: Node
    position: int


class Call(NamedTuple):
    """A function; ``base`` None when it is called on the focus."""

    base: Node | None
    name: str
    arguments: tuple[Node, ...]


class Operation(NamedTuple):
    """``left operator right``; for ``as`` and ``is`` the right side is a Name."""

    operator: str
    left: Node
    right: Node


Node = Name | Literal | Member | Item | Call | Operation

_TOKEN: Final = re.compile(
    r"\s*(?:(?P<name>[A-Za-z_]\w*)|(?P<string>'(?:[^'\\]|\\.)*')|(?P<number>\d+)|(?P<sign>!=|[.()\[\],|=]))"
)
_BINDING_POWER: Final = {"and": 1, "=": 2, "!=": 2, "|": 3, "as": 4, "is": 4}


@cache
def parse(expression: str) -> Node:
    """Parse an expression.

    Raises:
        UnsupportedExpressionError: it does not belong to the subset.
    """
    tokens: list[tuple[str, str]] = []
    position = 0
    while position < len(expression.rstrip()):
        found = _TOKEN.match(expression, position)
        if found is None:
            raise UnsupportedExpressionError(f"unexpected {expression[position : position + 10]!r}")
        tokens.append((found.lastgroup or "", found[found.lastgroup or 0]))
        position = found.end()
    parser = _Parser(tokens)
    node = parser.expression(0)
    if parser.next != ("", ""):
        raise UnsupportedExpressionError(f"unexpected {parser.next[1]!r}")
    return node


class _Parser:
    """Precedence climbing over the tokens."""

    def __init__(self, tokens: list[tuple[str, str]]) -> None:
        self._tokens = [*tokens, ("", "")]
        self._position = 0

    @property
    def next(self) -> tuple[str, str]:
        return self._tokens[self._position]

    def _take(self) -> tuple[str, str]:
        token = self.next
        self._position += 1
        return token

    def _accept(self, sign: str) -> bool:
        if self.next == ("sign", sign):
            self._position += 1
            return True
        return False

    def _expect(self, sign: str) -> None:
        if not self._accept(sign):
            raise UnsupportedExpressionError(f"expected {sign!r} before {self.next[1]!r}")

    def expression(self, least: int) -> Node:
        left = self._path()
        while (power := _BINDING_POWER.get(self.next[1], 0)) > least and self.next[0] != "string":
            operator = self._take()[1]
            left = Operation(operator, left, self.expression(power))
        return left

    def _path(self) -> Node:
        node = self._term()
        while True:
            if self._accept("."):
                name = self._name()
                node = (
                    Call(node, name, self._arguments()) if self.next == ("sign", "(") else Member(node, name)
                )
            elif self._accept("["):
                kind, text = self._take()
                if kind != "number":
                    raise UnsupportedExpressionError(f"index {text!r}")
                self._expect("]")
                node = Item(node, int(text))
            else:
                return node

    def _term(self) -> Node:
        if self._accept("("):
            node = self.expression(0)
            self._expect(")")
            return node
        kind, text = self._take()
        if kind == "string":
            return Literal(re.sub(r"\\(.)", r"\1", text[1:-1]))
        if kind == "number":
            return Literal(int(text))
        if kind != "name":
            raise UnsupportedExpressionError(f"unexpected {text!r}")
        if text in ("true", "false"):
            return Literal(text == "true")
        return Call(None, text, self._arguments()) if self.next == ("sign", "(") else Name(text)

    def _name(self) -> str:
        kind, text = self._take()
        if kind != "name":
            raise UnsupportedExpressionError(f"expected a name before {text!r}")
        return text

    def _arguments(self) -> tuple[Node, ...]:
        self._expect("(")
        arguments: list[Node] = []
        while not self._accept(")"):
            if arguments:
                self._expect(",")
            arguments.append(self.expression(0))
        return tuple(arguments)


# --- what it resolves to ----------------------------------------------------------------------------------


class Property(NamedTuple):
    """Go to a JSON property: its value or, where it holds a list (``many``), each item, or the one at ``position``."""

    name: str
    many: bool
    position: int | None = None


class Equals(NamedTuple):
    """Only objects whose property has this value."""

    name: str
    value: str | int | bool


class Refers(NamedTuple):
    """Only References to this resource type (``where(resolve() is Patient)``)."""

    type: str


class TargetType(NamedTuple):
    """From a Reference to the name of the type it points to (``resolve().resourceType``)."""


class Test(NamedTuple):
    """From an object to true or false: all of the conditions hold."""

    conditions: tuple[Condition, ...]


class Condition(NamedTuple):
    """One of the properties is there and, with ``value``, equals it (or, ``negated``, none equals it)."""

    names: tuple[str, ...]
    value: str | int | bool | None = None
    negated: bool = False


class Select(NamedTuple):
    """From an object to a constant: that of the first condition that holds, else the default (``iif``)."""

    cases: tuple[tuple[Condition, str | int | bool], ...]
    default: str | int | bool


Step = Property | Equals | Refers | TargetType | Test | Select


class Path(NamedTuple):
    """Steps from the resource to values of one data type.

    Attributes:
        steps: in order.
        type: data type at the end, ``Resource`` for an inline resource of any type.
        group: path of the element whose children come next, for groups written in place (``Patient.contact``).
        parent: data type the last property belongs to, for example ``HumanName``.
        open: the type is one of a choice the expression left open.
    """

    steps: tuple[Step, ...]
    type: str
    group: str = ""
    parent: str = ""
    open: bool = False


@dataclass(frozen=True, slots=True)
class Resolver:
    """Resolves expressions for one resource type."""

    type: str
    structures: Structures

    def resolve(self, node: Node) -> list[Path]:
        """Return the paths an expression stands for; those of other resource types in a union are left out.

        Raises:
            UnsupportedExpressionError: a part cannot be followed.
        """
        return list(dict.fromkeys(self._paths(node, [Path((), self.type, self.type)], top=True)))

    def _paths(self, node: Node, focus: list[Path], *, top: bool = False) -> list[Path]:
        match node:
            case Operation("|", left, right):
                return self._paths(left, focus, top=top) + self._paths(right, focus, top=top)
            case Operation("as", base, Name(type)):
                return self._of_type(self._paths(base, focus, top=top), type)
            case Operation("and" | "=" | "!="):
                return [self._extend(path, Test(self._conditions(node)), "boolean") for path in focus]
            case Name(name) if top and name[0].isupper():
                # another resource type's part of a union yields nothing here
                return focus if name in (self.type, "Resource", "DomainResource") else []
            case Name(name):
                return self._members(focus, name)
            case Member(base, name):
                if isinstance(base, Call) and base.name == "resolve" and name == "resourceType" and base.base:
                    return [
                        self._extend(path, TargetType(), "code")
                        for path in self._paths(base.base, focus, top=top)
                    ]
                return self._members(self._paths(base, focus, top=top), name)
            case Item(base, position):
                return [self._at(path, position) for path in self._paths(base, focus, top=top)]
            case Call():
                return self._call(node, focus, top=top)
        raise UnsupportedExpressionError(f"cannot follow {node.__class__.__name__}")

    def _call(self, call: Call, focus: list[Path], *, top: bool) -> list[Path]:
        if call.name == "iif" and call.base is None:
            return [self._extend(path, self._select(call), "integer") for path in focus]
        if call.base is None:
            raise UnsupportedExpressionError(f"function {call.name}()")
        base = self._paths(call.base, focus, top=top)
        match call.name, call.arguments:
            case (("as" | "ofType"), (Name(type),)):
                return self._of_type(base, type)
            case "where", (Operation("is", Call(None, "resolve", ()), Name(type)),):
                return [path._replace(steps=(*path.steps, Refers(type))) for path in base]
            case "where", (Operation("=", Name(name), Literal(value)),):
                return [path._replace(steps=(*path.steps, Equals(name, value))) for path in base]
            case "extension", (Literal(str(url)),):
                return [
                    path._replace(steps=(*path.steps, Equals("url", url)))
                    for path in self._members(base, "extension")
                ]
        raise UnsupportedExpressionError(f"function {call.name}()")

    @staticmethod
    def _at(path: Path, position: int) -> Path:
        match path.steps:
            case (*before, Property(name, many=True, position=None)):
                return path._replace(steps=(*before, Property(name, True, position)))
        raise UnsupportedExpressionError(f"index [{position}]")

    @staticmethod
    def _extend(path: Path, step: Step, type: str) -> Path:
        return Path((*path.steps, step), type, parent=path.type)

    def _conditions(self, node: Node) -> tuple[Condition, ...]:
        match node:
            case Operation("and", left, right):
                return self._conditions(left) + self._conditions(right)
            case Call(base, "exists", ()) if base is not None:
                return (Condition(self._names(base)),)
            case Operation("=", base, Literal(value)):
                return (Condition(self._names(base), value),)
            case Operation("!=", base, Literal(value)):
                return (Condition(self._names(base), value, negated=True),)
        raise UnsupportedExpressionError("condition")

    def _names(self, node: Node) -> tuple[str, ...]:
        """JSON names of the one element of the resource a condition looks at."""
        names: list[str] = []
        for path in self._paths(node, [Path((), self.type, self.type)], top=True):
            match path.steps:
                case (Property(name, many=False),):
                    names.append(name)
                case _:
                    raise UnsupportedExpressionError("condition on a nested element")
        if not names:
            raise UnsupportedExpressionError("condition on another type")
        return tuple(names)

    def _select(self, node: Node) -> Select:
        cases: list[tuple[Condition, str | int | bool]] = []
        while isinstance(node, Call) and node.name == "iif" and len(node.arguments) == 3:
            test, then, node = node.arguments
            conditions = self._conditions(test)
            if len(conditions) != 1 or not isinstance(then, Literal):
                raise UnsupportedExpressionError("function iif() in this form")
            cases.append((conditions[0], then.value))
        if not isinstance(node, Literal):
            raise UnsupportedExpressionError("function iif() in this form")
        return Select(tuple(cases), node.value)

    @staticmethod
    def _of_type(paths: Iterable[Path], type: str) -> list[Path]:
        return [path._replace(open=False) for path in paths if path.type == type]

    def _members(self, paths: Iterable[Path], name: str) -> list[Path]:
        found: list[Path] = []
        unknown: Path | None = None
        for path in paths:
            children = self._children(path)
            matching = [
                (element, type.code)
                for element in children
                for type in element.types
                if name in (element.name, element.property_name(type.code))
            ] or [(element, "") for element in children if element.content and element.name == name]
            for element, type_code in matching:
                group = element.content or (
                    element.path if type_code in ("BackboneElement", "Element") else ""
                )
                found.append(
                    Path(
                        (*path.steps, Property(element.property_name(type_code or "x"), element.array)),
                        type_code or "BackboneElement",
                        group,
                        path.type,
                        open=path.open or (element.choice and name == element.name),
                    )
                )
            if not matching and not path.open:
                unknown = path
        if unknown is not None:
            raise UnsupportedExpressionError(f"{unknown.group or unknown.type} has no element {name}")
        return found

    def _children(self, path: Path) -> tuple[Element, ...]:
        group = path.group or path.type
        structure = self.structures(group.partition(".")[0])
        return structure.children(group) if structure else ()


def resolve(type: str, expression: str, structures: Structures) -> list[Path]:
    """Resolve a search parameter's expression for one resource type.

    Args:
        type: the resource type.
        expression: the FHIRPath; a union may name other types as well, those parts are left out.
        structures: looks up the element definitions.

    Returns:
        The paths, in the order of the expression, without repetition.

    Raises:
        UnsupportedExpressionError: it cannot be resolved; the message says why.
    """
    return Resolver(type, structures).resolve(parse(expression))


def resolve_from(type: str, focus: Path, expression: str, structures: Structures) -> list[Path]:
    """Resolve an expression from the values at the end of a path on; the steps that lead there are left out.

    Raises:
        UnsupportedExpressionError: it cannot be resolved; the message says why.
    """
    start = Path((), focus.type, focus.group, focus.parent)
    return list(dict.fromkeys(Resolver(type, structures)._paths(parse(expression), [start])))


def part_for(type: str, expression: str) -> str:
    """Return the parts of an expression's union that do not begin with the name of another resource type."""
    parts: list[str] = []
    depth = start = 0
    for position, char in enumerate(f"{expression}|"):
        depth += (char == "(") - (char == ")")
        if char == "|" and not depth:
            parts.append(expression[start:position].strip())
            start = position + 1
    return " | ".join(part for part in parts if _first_name(part) in ("", type, "Resource", "DomainResource"))


def _first_name(part: str) -> str:
    """The type's name a path begins with; empty if it begins with an element."""
    found = re.match(r"[( ]*([A-Z]\w*)", part)
    return found[1] if found else ""
