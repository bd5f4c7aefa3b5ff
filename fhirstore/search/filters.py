"""The language of ``_filter``: from its text to a tree of comparisons, which :mod:`fhirstore.search.parse` reads.

Grammar (https://hl7.org/fhir/R4/search_filter.html), ``and`` before ``or``::

    filter     = term { ("and" | "or") term }
    term       = "(" filter ")" | "not" "(" filter ")" | path operator value
    path       = a parameter, a chain (patient.name, subject:Patient.name) or _has:Type:parameter:path
    value      = "a string" with \\\\" and \\\\\\\\ as escapes, or what stands up to the next blank or bracket
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from fhirstore import errors

MAX_LENGTH: Final = 8000
"""Characters of a filter; longer ones are refused."""
MAX_COMPARISONS: Final = 100
"""Comparisons in a filter; more are refused."""
MAX_NESTING: Final = 20
"""Brackets in brackets; deeper ones are refused."""

OPERATORS: Final = frozenset(
    {"eq", "ne", "co", "sw", "ew", "gt", "lt", "ge", "le", "ap", "sa", "eb", "pr", "re", "po", "ss", "sb"}
    | {"in", "ni"}
)


@dataclass(frozen=True, slots=True)
class Comparison:
    """``path operator value``; ``quoted`` tells that the value was a string in quotation marks."""

    path: str
    operator: str
    value: str
    quoted: bool


@dataclass(frozen=True, slots=True)
class Combination:
    """Filters joined by ``and``, ``or``, or a single one behind ``not``."""

    operator: str
    parts: tuple[Filter, ...]


Filter = Comparison | Combination

_TOKEN: Final = re.compile(
    r'\s*(?:(?P<bracket>[()])|"(?P<string>(?:[^"\\]|\\.)*)"|(?P<word>[^\s()"]+))', re.DOTALL
)


def parse_filter(text: str) -> Filter:
    """Parse a filter.

    Raises:
        FhirError: 400, the text says where and what is wrong.
    """
    if len(text) > MAX_LENGTH:
        raise errors.bad_request(f"Invalid _filter: it is longer than {MAX_LENGTH} characters")
    return _Parser(text).whole()


class _Parser:
    """Recursive descent over the tokens: (kind, text, position)."""

    def __init__(self, text: str) -> None:
        self._tokens: list[tuple[str, str, int]] = []
        position, end = 0, len(text.rstrip())
        while position < end:
            found = _TOKEN.match(text, position)
            if found is None:
                raise errors.bad_request(f"Invalid _filter: a string has no end (character {position + 1})")
            kind = found.lastgroup or ""
            self._tokens.append((kind, found[kind], found.start(kind)))
            position = found.end()
        self._tokens.append(("end", "", end))
        self._position = 0
        self._comparisons = 0

    def whole(self) -> Filter:
        found = self._filter(0)
        if self._next[0] != "end":
            raise self._expected("and, or, or the end")
        return found

    @property
    def _next(self) -> tuple[str, str, int]:
        return self._tokens[self._position]

    def _take(self) -> tuple[str, str, int]:
        token = self._next
        self._position += token[0] != "end"
        return token

    def _accept(self, kind: str, text: str) -> bool:
        if self._next[:2] == (kind, text):
            self._position += 1
            return True
        return False

    def _expected(self, what: str) -> errors.FhirError:
        kind, text, position = self._next
        found = "the end" if kind == "end" else repr(text)
        return errors.bad_request(
            f"Invalid _filter: expected {what} but found {found} (character {position + 1})"
        )

    def _filter(self, depth: int) -> Filter:
        """``or`` of ``and`` of terms."""
        alternatives = []
        while True:
            parts = [self._term(depth)]
            while self._accept("word", "and"):
                parts.append(self._term(depth))
            alternatives.append(parts[0] if len(parts) == 1 else Combination("and", tuple(parts)))
            if not self._accept("word", "or"):
                break
        return alternatives[0] if len(alternatives) == 1 else Combination("or", tuple(alternatives))

    def _term(self, depth: int) -> Filter:
        if depth > MAX_NESTING:
            raise errors.bad_request(f"Invalid _filter: brackets are nested more than {MAX_NESTING} deep")
        negated = self._accept("word", "not")
        if negated or self._next[:2] == ("bracket", "("):
            if not self._accept("bracket", "("):
                raise self._expected("( after not")
            inner = self._filter(depth + 1)
            if not self._accept("bracket", ")"):
                raise self._expected(")")
            return Combination("not", (inner,)) if negated else inner
        return self._comparison()

    def _comparison(self) -> Comparison:
        self._comparisons += 1
        if self._comparisons > MAX_COMPARISONS:
            raise errors.bad_request(f"Invalid _filter: more than {MAX_COMPARISONS} comparisons")
        if self._next[0] != "word":
            raise self._expected("a search parameter")
        path = self._take()[1]
        if self._next[0] != "word" or self._next[1] not in OPERATORS:
            raise self._expected("an operator (eq, ne, co, sw, ew, gt, lt, ge, le, ap, sa, eb, pr, re)")
        operator = self._take()[1]
        if self._next[0] not in ("word", "string"):
            raise self._expected("a value")
        kind, value, _ = self._take()
        quoted = kind == "string"
        return Comparison(path, operator, re.sub(r"\\(.)", r"\1", value) if quoted else value, quoted)
