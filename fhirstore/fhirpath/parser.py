"""The text of a FHIRPath expression as a tree. Grammar: https://hl7.org/fhirpath/N1/#grammar.

Operators bind as in the grammar, from the dot (tightest) to ``implies``. An expression is bounded in length and depth,
so that reading it and walking its tree cost no more than its author may spend.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Final, NamedTuple

from fhirstore.fhirpath.values import CALENDAR_UNITS, FhirPathError, Quantity, Temporal, Value

MAX_LENGTH: Final = 10_000
"""Characters of an expression."""

MAX_DEPTH: Final = 60
"""Expressions inside each other."""

MAX_NODES: Final = 2_000
"""Names, operators, literals and calls of an expression."""

MAX_DIGITS: Final = 60
"""Characters of a number in an expression."""


class Literal(NamedTuple):
    """A constant; no values for ``{}``."""

    values: tuple[Value, ...]


class Variable(NamedTuple):
    """``%name``."""

    name: str


class Special(NamedTuple):
    """``$this``, ``$index`` or ``$total``."""

    name: str


class Member(NamedTuple):
    """``base.name``; without base a member of what the expression is applied to, or the name of its type."""

    base: Tree | None
    name: str


class Call(NamedTuple):
    """``base.name(arguments)``; without base called on what the expression is applied to."""

    base: Tree | None
    name: str
    arguments: tuple[Tree, ...]


class Index(NamedTuple):
    """``base[position]``."""

    base: Tree
    position: Tree


class Operation(NamedTuple):
    """``left operator right``; ``negate`` has only a left side that counts."""

    operator: str
    left: Tree
    right: Tree


class TypeTest(NamedTuple):
    """``base is name`` or ``base as name``."""

    operator: str
    base: Tree
    name: str


Tree = Literal | Variable | Special | Member | Call | Index | Operation | TypeTest

_BINDING: Final = {
    "implies": 1,
    "or": 2,
    "xor": 2,
    "and": 3,
    "in": 4,
    "contains": 4,
    "=": 5,
    "~": 5,
    "!=": 5,
    "!~": 5,
    "is": 6,
    "as": 6,
    "<=": 7,
    "<": 7,
    ">": 7,
    ">=": 7,
    "|": 8,
    "+": 9,
    "-": 9,
    "&": 9,
    "*": 10,
    "/": 10,
    "div": 10,
    "mod": 10,
}
"""How tight an operator binds (``is`` and ``as`` as in the grammar and HL7's tests, not as in the table); unary signs bind as 11, dots and brackets tightest."""

_SIGN: Final = 11

_TOKEN: Final = re.compile(
    r"""
    (?P<space>\s+|//[^\n]*|/\*.*?\*/)
  | (?P<temporal>@(?:[0-9]{4}(?:-[0-9]{2}){0,2}(?:T(?:CLOCK(?:Z|[+-][0-9]{2}:[0-9]{2})?)?)?|TCLOCK))
  | (?P<number>[0-9]+(?:\.[0-9]+)?)
  | (?P<name>[A-Za-z_][A-Za-z0-9_]*)
  | (?P<quoted>`(?:[^`\\]|\\.)*`|"(?:[^"\\]|\\.)*")
  | (?P<string>'(?:[^'\\]|\\.)*')
  | (?P<special>\$(?:this|index|total)\b)
  | (?P<symbol><=|>=|!=|!~|[-+*/&|<>=~.,()\[\]{}%])
    """.replace("CLOCK", r"[0-9]{2}(?::[0-9]{2}(?::[0-9]{2}(?:\.[0-9]+)?)?)?"),
    re.VERBOSE | re.DOTALL,
)

_ESCAPE: Final = re.compile(r"\\(u[0-9a-fA-F]{4}|.)", re.DOTALL)
_ESCAPES: Final = {"r": "\r", "n": "\n", "t": "\t", "f": "\f"}

_RESERVED: Final = frozenset({"and", "div", "implies", "mod", "or", "xor", "true", "false"})


class _Token(NamedTuple):
    kind: str
    text: str
    place: int


def parse(expression: str) -> Tree:
    """Parse an expression.

    Raises:
        FhirPathError: it is no FHIRPath, or too long or too deep; the message says where.
    """
    if len(expression) > MAX_LENGTH:
        raise FhirPathError(f"longer than {MAX_LENGTH} characters")
    return _Parser(expression).whole()


def unescape(text: str) -> str:
    """The characters a quoted text stands for, without its quotes."""

    def one(found: re.Match[str]) -> str:
        escape = found[1]
        return chr(int(escape[1:], 16)) if len(escape) == 5 else _ESCAPES.get(escape, escape)

    return _ESCAPE.sub(one, text[1:-1])


class _Parser:
    def __init__(self, expression: str) -> None:
        self._tokens = list(_tokens(expression))
        self._place = 0
        self._depth = 0
        if len(self._tokens) > MAX_NODES:
            raise FhirPathError(f"more than {MAX_NODES} parts")

    def whole(self) -> Tree:
        tree = self._expression(0)
        if self._next.kind != "end":
            raise self._unexpected()
        return tree

    @property
    def _next(self) -> _Token:
        return self._tokens[self._place]

    def _take(self) -> _Token:
        token = self._tokens[self._place]
        self._place += 1
        return token

    def _unexpected(self) -> FhirPathError:
        token = self._next
        if token.kind == "end":
            return FhirPathError("unexpected end")
        return FhirPathError(f"unexpected {token.text!r} at character {token.place + 1}")

    def _is(self, symbol: str) -> bool:
        return self._next.kind == "symbol" and self._next.text == symbol

    def _expect(self, symbol: str) -> None:
        if not self._is(symbol):
            raise self._unexpected()
        self._place += 1

    def _expression(self, least: int) -> Tree:
        """An expression whose operators bind tighter than ``least``."""
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise FhirPathError(f"nested more than {MAX_DEPTH} levels deep")
        left = self._signed()
        while self._next.kind in ("symbol", "name"):
            operator = self._next.text
            binding = _BINDING.get(operator, 0)
            if binding <= least:
                break
            self._place += 1
            if operator in ("is", "as"):
                left = TypeTest(operator, left, self._type_name())
            else:
                left = Operation(operator, left, self._expression(binding))
        self._depth -= 1
        return left

    def _signed(self) -> Tree:
        if self._is("-") or self._is("+"):
            sign = self._take().text
            operand = self._expression(_SIGN)
            return operand if sign == "+" else Operation("negate", operand, Literal(()))
        tree = self._term()
        while True:
            if self._is("."):
                self._place += 1
                tree = self._invocation(tree)
            elif self._is("["):
                self._place += 1
                position = self._expression(0)
                self._expect("]")
                tree = Index(tree, position)
            else:
                return tree

    def _term(self) -> Tree:
        token = self._next
        match token.kind:
            case "string":
                self._place += 1
                return Literal((unescape(token.text),))
            case "number":
                return self._number()
            case "temporal":
                self._place += 1
                return Literal((Temporal.of_literal(token.text),))
            case "special":
                self._place += 1
                return Special(token.text)
            case "name" if token.text in ("true", "false"):
                self._place += 1
                return Literal((token.text == "true",))
            case "name" | "quoted":
                return self._invocation(None)
        return self._bracketed()

    def _bracketed(self) -> Tree:
        """``(expression)``, ``{}`` or ``%variable``."""
        if self._is("("):
            self._place += 1
            tree = self._expression(0)
            self._expect(")")
            return tree
        if self._is("{"):
            self._place += 1
            self._expect("}")
            return Literal(())
        self._expect("%")
        name = self._next
        if name.kind not in ("name", "string", "quoted"):
            raise self._unexpected()
        self._place += 1
        return Variable(name.text if name.kind == "name" else unescape(name.text))

    def _number(self) -> Tree:
        text = self._take().text
        if len(text) > MAX_DIGITS:
            raise FhirPathError(f"a number has more than {MAX_DIGITS} digits")
        number = Decimal(text)
        unit = self._next
        if unit.kind == "string":
            self._place += 1
            return Literal((Quantity(number, unescape(unit.text)),))
        if unit.kind == "name" and unit.text in CALENDAR_UNITS:
            self._place += 1
            return Literal((Quantity(number, CALENDAR_UNITS[unit.text], calendar=True),))
        return Literal((number if "." in text else int(text),))

    def _identifier(self) -> str:
        token = self._next
        if token.kind == "quoted":
            self._place += 1
            return unescape(token.text)
        if token.kind == "name" and token.text not in _RESERVED:
            self._place += 1
            return token.text
        raise self._unexpected()

    def _invocation(self, base: Tree | None) -> Tree:
        if base is not None and self._next.kind == "special":
            # a.$this is allowed by the grammar and means $this
            return Special(self._take().text)
        name = self._identifier()
        if not self._is("("):
            return Member(base, name)
        self._place += 1
        arguments: list[Tree] = []
        while not self._is(")"):
            if arguments:
                self._expect(",")
            arguments.append(self._expression(0))
        self._place += 1
        return Call(base, name, tuple(arguments))

    def _type_name(self) -> str:
        parts = [self._identifier()]
        while self._is("."):
            self._place += 1
            parts.append(self._identifier())
        return ".".join(parts)


def _tokens(expression: str) -> list[_Token]:
    tokens = []
    place = 0
    while place < len(expression):
        found = _TOKEN.match(expression, place)
        if found is None:
            raise FhirPathError(f"unexpected {expression[place]!r} at character {place + 1}")
        kind = found.lastgroup or ""
        if kind != "space":
            tokens.append(_Token(kind, found[0], place))
        place = found.end()
    tokens.append(_Token("end", "", place))
    return tokens
