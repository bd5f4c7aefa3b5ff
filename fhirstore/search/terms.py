"""How a resource's search values are stored: terms, value rows and sort values. Written by `repository`, read by `sql`.

A *term* is a 64-bit hash of (project, type, parameter, kind, value), keyed per installation, so that nobody can make
two values collide on purpose. What needs order or prefixes stands in the value tables instead.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import lru_cache
from hashlib import blake2b
from itertools import product
from typing import Final, NamedTuple

from fhirstore.search.index import fold_code, normalize, uri_beginnings
from fhirstore.search.model import IndexValues, Quantity, Reference, Token, TypedIdentifier

HEAD: Final = 200
"""Characters of a string in the indexed column; the rest stands in ``tail``."""

COLUMNS: Final = frozenset({"_id", "_lastUpdated"})
"""Parameters that are columns of ``resource`` and need no terms."""

_SORT_LENGTH: Final = 100


class Key(NamedTuple):
    """A search parameter of one resource type in one project, as the tables know it.

    Attributes:
        prefix: begins what is hashed into a term.
        param: in the value tables.
        pid: ``ref_pid`` and ``sort_pid``, where 32 bits are enough to tell the parameters of one type apart.
        present: the term of resources that have any value.
    """

    prefix: bytes
    param: int
    pid: int
    present: int


class Hasher:
    """Makes keys and terms with the secret of this installation.

    Kinds of terms (first letter of the hashed text): ``p`` presence, ``c`` code, ``t`` system and code, ``s`` system,
    ``g`` parts of a composite, ``o`` identifier of a type, ``b`` beginning of a URI, ``e`` exact string, ``r`` typed reference, ``i`` bare id, ``u`` url; behind ``n`` those of an identifier. A typed
    reference to a UUID is no hash but its bits under the parameter's key: SQL can compute that from a row (``_has``).
    Whoever made two ids collide there could as well have written the other reference.
    """

    def __init__(self, secret: bytes) -> None:
        self._base = blake2b(digest_size=8, key=secret)
        self.key = lru_cache(65536)(self._key)

    def _digest(self, content: bytes) -> bytes:
        # Copying the keyed state costs half of keying anew.
        state = self._base.copy()
        state.update(content)
        return state.digest()

    def _key(self, project: str, type_: str, code: str) -> Key:
        prefix = self._digest(f"{project}/{type_}/{code}".encode())
        param = int.from_bytes(prefix, "little", signed=True)
        pid = int.from_bytes(prefix[:4], "little", signed=True)
        return Key(prefix, param, pid, self._term(prefix, "p"))

    def _term(self, prefix: bytes, text: str) -> int:
        return int.from_bytes(self._digest(prefix + text.encode()), "little", signed=True)

    def term(self, key: Key, text: str) -> int:
        """The term of a value, given as its kind and text."""
        return self._term(key.prefix, text)

    def target_key(self, project: str, type_: str, code: str, target: str) -> Key:
        """The key of what a reference parameter says about one type of targets."""
        return self.key(project, type_, f"{code}:{target}")

    def reference(self, project: str, type_: str, code: str, target: str, id_: str) -> int:
        """The term of a typed reference."""
        if canonical_uuid(id_) is None:
            return self.term(self.key(project, type_, code), f"r{target}/{id_}")
        bits = int(id_.replace("-", ""), 16)
        folded = (bits >> 64 ^ bits) & _MASK
        key = self.target_key(project, type_, code, target).param & _MASK
        return ((folded ^ key) + _SIGN & _MASK) - _SIGN


_MASK: Final = 2**64 - 1
_SIGN: Final = 2**63


def token_texts(token: Token, kind: str = "") -> tuple[str, ...]:
    """The hashed texts a token can be found by; ``kind`` is ``n`` for identifiers of references."""
    system = token.system or ""
    if token.value is None:
        return (f"{kind}s{system}",)
    code = fold_code(token.value)
    return f"{kind}s{system}", f"{kind}c{code}", kind + pair_text(system, code)


def pair_text(system: str, code: str) -> str:
    """The text of a system with a folded code. The length tells where one ends: both may hold any character."""
    return f"t{len(system)}|{system}{code}"


def typed_text(system: str, code: str, value: str) -> str:
    """The text of an identifier with a coding of its type, likewise."""
    code, value = fold_code(code), fold_code(value)
    return f"o{len(system)}|{len(code)}|{system}{code}{value}"


@dataclass(slots=True)
class Rows:
    """What is stored of one resource's IndexValues; the dicts serve as ordered sets of rows."""

    idx: set[int] = field(default_factory=set)
    references: dict[tuple[int, str], None] = field(default_factory=dict)
    sort: dict[int, str] = field(default_factory=dict)
    strings: dict[tuple[int, bool, str, str], None] = field(default_factory=dict)
    dates: dict[tuple[int, int, int], None] = field(default_factory=dict)
    numbers: dict[tuple[int, Decimal, Decimal, str | None, str | None, str | None], None] = field(
        default_factory=dict
    )


def rows(hasher: Hasher, project: str, type_: str, values: IndexValues) -> Rows:
    """Compute what to store for ``values`` of a resource of ``type_`` in ``project``."""
    builder = _Builder(hasher, project, type_)
    for add, held in (
        (builder.tokens, values.tokens),
        (builder.types, values.types),
        (builder.identifiers, values.identifiers),
        (builder.references, values.references),
        (builder.uris, values.uris),
        (builder.strings, values.strings),
        (builder.words, values.words),
        (builder.texts, values.texts),
        (builder.dates, values.dates),
        (builder.numbers, values.numbers),
        (builder.quantities, values.quantities),
        (builder.groups, values.groups),
        (builder.positions, values.positions),
    ):
        for code, entries in held.items():
            if code not in COLUMNS:
                key = hasher.key(project, type_, code)
                builder.made.idx.add(key.present)
                add(code, key, entries)  # type: ignore[arg-type]  # each method gets the entries of its own map
    return builder.made


class _Builder:
    """Adds the values of one parameter at a time, by their kind."""

    def __init__(self, hasher: Hasher, project: str, type_: str) -> None:
        self.made = Rows()
        self._hasher, self._project, self._type = hasher, project, type_

    def _add(self, key: Key, *texts: str) -> None:
        for text in texts:
            self.made.idx.add(self._hasher.term(key, text))

    def _sort(self, key: Key, value: str) -> None:
        if key.pid not in self.made.sort:
            self.made.sort[key.pid] = storable(value)[:_SORT_LENGTH]

    def tokens(self, code: str, key: Key, tokens: Sequence[Token]) -> None:
        for token in tokens:
            self._add(key, *token_texts(token))
            if token.value is not None:
                self._sort(key, fold_code(token.value))

    def types(self, code: str, key: Key, types: Sequence[TypedIdentifier]) -> None:
        for each in types:
            self._add(key, typed_text(each.system or "", each.code, each.value))

    def identifiers(self, code: str, key: Key, identifiers: Sequence[Token]) -> None:
        for identifier in identifiers:
            self._add(key, *token_texts(identifier, "n"))

    def references(self, code: str, key: Key, references: Sequence[Reference]) -> None:
        for reference in references:
            if reference.id is not None:
                target = reference.type or ""
                self.made.idx.add(
                    self._hasher.reference(self._project, self._type, code, target, reference.id)
                )
                self._add(key, f"i{reference.id}")
                self._sort(key, f"{target}/{reference.id}")
                if canonical_uuid(reference.id):
                    towards = self._hasher.target_key(self._project, self._type, code, target)
                    self.made.references[towards.pid, reference.id] = None
            if reference.url is not None:
                self._add(key, f"u{reference.url}")
                self._sort(key, reference.url)

    def uris(self, code: str, key: Key, uris: Sequence[str]) -> None:
        for uri in uris:
            self._add(key, f"u{uri}", *(f"b{beginning}" for beginning in uri_beginnings(uri)))
            self._sort(key, uri)

    def strings(self, code: str, key: Key, strings: Sequence[str]) -> None:
        for string in strings:
            self._add(key, f"e{string}")
        self._string_rows(key, strings, whole=True)

    def words(self, code: str, key: Key, words: Sequence[str]) -> None:
        self._string_rows(key, words, whole=False)

    def texts(self, code: str, key: Key, texts: Sequence[str]) -> None:
        self._string_rows(self._hasher.key(self._project, self._type, f"{code}:text"), texts, whole=True)

    def _string_rows(self, key: Key, texts: Sequence[str], *, whole: bool) -> None:
        for text in texts:
            folded = storable(normalize(text))
            self.made.strings[key.param, whole, folded[:HEAD], folded[HEAD:]] = None

    def dates(self, code: str, key: Key, dates: Sequence[tuple[int, int]]) -> None:
        for low, high in dates:
            self.made.dates[key.param, low, high] = None

    def numbers(self, code: str, key: Key, numbers: Sequence[tuple[Decimal, Decimal]]) -> None:
        for low, high in numbers:
            self.made.numbers[key.param, bounded(low), bounded(high), None, None, None] = None

    def quantities(self, code: str, key: Key, quantities: Sequence[Quantity]) -> None:
        for quantity in quantities:
            amount = (key.param, bounded(quantity.low), bounded(quantity.high))
            unit = (optional(quantity.system), optional(quantity.code), optional(quantity.unit))
            self.made.numbers[(*amount, *unit)] = None

    def positions(self, code: str, key: Key, positions: Sequence[tuple[float, float]]) -> None:
        for number, position in enumerate(positions):
            for axis, degrees in zip(AXES, position, strict=True):
                at = self._hasher.key(self._project, self._type, f"{code}:{axis}").param
                exact = Decimal(repr(degrees))
                self.made.numbers[at, exact, exact, None, None, str(number)] = None

    def groups(self, code: str, key: Key, groups: Sequence[IndexValues]) -> None:
        for number, group in enumerate(groups):
            discrete, ranged = group_parts(group)
            for texts in product(*(discrete[part] for part in sorted(discrete))):
                joined = group_text(texts)
                if not ranged:
                    self._add(key, joined)
                for part in ranged:
                    param = self._hasher.term(key, f"{part}{joined}")
                    at = key._replace(param=param)
                    self._string_rows(at, group.strings.get(part, ()), whole=True)
                    self._string_rows(at, group.words.get(part, ()), whole=False)
                    self.dates(code, at, group.dates.get(part, ()))
                    self.quantities(code, at, group.quantities.get(part, ()))
                    for low, high in group.numbers.get(part, ()):
                        # Which of the resource's groups it is: several numbers have to stand in the same.
                        row = (param, bounded(low), bounded(high), None, None, str(number))
                        self.made.numbers[row] = None


AXES: Final = ("latitude", "longitude")
"""Suffixes of the keys under which a position is stored."""


def group_parts(group: IndexValues) -> tuple[dict[str, list[str]], list[str]]:
    """The parts of a composite in one group: texts of those that are equal or not, and the codes of those in value tables."""
    discrete: dict[str, list[str]] = {}
    for part, tokens in group.tokens.items():
        discrete[part] = list(dict.fromkeys(text for token in tokens for text in token_texts(token)))
    for part, references in group.references.items():
        discrete[part] = list(dict.fromkeys(text for each in references for text in reference_texts(each)))
    for part, uris in group.uris.items():
        discrete[part] = [f"u{uri}" for uri in uris]
    ranged = dict.fromkeys([*group.strings, *group.words, *group.dates, *group.numbers, *group.quantities])
    return discrete, list(ranged)


def reference_texts(reference: Reference) -> tuple[str, ...]:
    """The hashed texts a reference inside a composite can be found by."""
    if reference.id is None:
        return (f"u{reference.url}",)
    return f"i{reference.id}", f"r{reference.type}/{reference.id}"


def group_text(texts: Iterable[str]) -> str:
    """The text of a group's discrete parts. Lengths tell where one ends: each may hold any character."""
    return "g" + "".join(f"{len(text)}|{text}" for text in texts)


def storable(text: str) -> str:
    """PostgreSQL's text has no NUL; both sides of a comparison go through here."""
    return text.replace("\0", "\ufffd") if "\0" in text else text


def optional(text: str | None) -> str | None:
    """:func:`storable`, or None."""
    return None if text is None else storable(text)


def bounded(number: Decimal) -> Decimal:
    """Bring a number into the range of PostgreSQL's numeric, far outside of anything ever measured."""
    if not number.is_finite() or number == 0:
        return number
    if number.adjusted() > 1000:
        return Decimal("Infinity") if number > 0 else Decimal("-Infinity")
    return number if number.adjusted() > -1000 else Decimal(0)


_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


def canonical_uuid(text: str) -> str | None:
    """``text`` if it is a UUID in its usual lower-case form, else None."""
    return text if _UUID.fullmatch(text) else None
