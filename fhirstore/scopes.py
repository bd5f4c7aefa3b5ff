"""SMART scopes of a token (https://hl7.org/fhir/smart-app-launch/scopes-and-launch-context.html): what it may be used for.

A scope only takes away: what its holder may not do, no scope allows. ``user/`` and ``system/`` scopes differ in who asks
for them and mean the same here; ``patient/`` is confined to the compartment of the Patient who holds the token.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal

Interaction = Literal["create", "read", "vread", "history", "update", "delete", "search"]

_SCOPE: Final = re.compile(
    r"(patient|user|system)/(\*|[A-Z][A-Za-z]+)\.(?:(read|write|\*)|(c?r?u?d?s?))(?:\?([^\s]+))?"
)
_LETTERS: Final[dict[str, tuple[Interaction, ...]]] = {
    "c": ("create",),
    "r": ("read", "vread", "history"),
    "u": ("update",),
    "d": ("delete",),
    "s": ("search",),
}
_WORDS: Final = {"read": "rs", "write": "cud", "*": "cruds"}


@dataclass(frozen=True, slots=True)
class Scope:
    """One SMART scope.

    Attributes:
        type: a resource type or ``*``.
        interactions: what it lets through.
        patient: only what is in the compartment of the token's Patient.
        criteria: only what fits this search.
    """

    type: str
    interactions: frozenset[Interaction]
    patient: bool = False
    criteria: str | None = None


def parse_scopes(text: str) -> tuple[Scope, ...] | None:
    """Return the SMART scopes in a token's ``scope``; None if there is none, and so no limit."""
    found = []
    for part in text.split():
        scope = _SCOPE.fullmatch(part)
        if scope is None:
            continue
        level, type_, word, letters, criteria = scope.groups()
        allowed = frozenset(each for letter in _WORDS.get(word, letters or "") for each in _LETTERS[letter])
        found.append(Scope(type_, allowed, level == "patient", criteria))
    return tuple(found) or None
