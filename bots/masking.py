"""Keeping secrets out of what is written down: a Bot that prints one has told it to whoever reads its log."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Final

import orjson

from bots.sandbox.api import Result
from fhirstore.api import MASK

MIN_LENGTH: Final = 6
"""Shorter values would blank out ordinary words."""


class Masker:
    """Replaces values of secrets by :data:`~fhirstore.api.MASK`, exact matches only, also as they look inside JSON
    and inspected objects."""

    def __init__(self, values: Iterable[str]) -> None:
        forms = set()
        for value in values:
            if len(value) >= MIN_LENGTH:
                in_json = orjson.dumps(value).decode()[1:-1]
                # consoles show strings inside objects in single quotes
                forms |= {value, value.strip(), in_json, in_json.replace('\\"', '"')}
        longest_first = sorted((form for form in forms if len(form) >= MIN_LENGTH), key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

    def text(self, text: str) -> str:
        """The text without the values."""
        return self._pattern.sub(MASK, text) if self._pattern else text

    def value(self, value: Any) -> Any:
        """A JSON value in which no string holds one of the values."""
        if self._pattern is None:
            return value
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, list):
            return [self.value(item) for item in value]
        if isinstance(value, dict):
            return {self.text(key): self.value(item) for key, item in value.items()}
        return value

    def result(self, run: Result, *, is_kept: bool = False) -> Result:
        """A run whose log and error hold none of the values. What the handler returned is for its caller and stays.

        Args:
            is_kept: what it returned is stored for others to read, and holds none of them either.
        """
        if self._pattern is None:
            return run
        run = replace(
            run,
            log=tuple(replace(line, text=self.text(line.text)) for line in run.log),
            error=None if run.error is None else self.text(run.error),
            stack=None if run.stack is None else self.text(run.stack),
            outcome=run.outcome if run.ok and not is_kept else self.value(run.outcome),
        )
        if not is_kept:
            return run
        value = self._bytes(run.value) if isinstance(run.value, bytes) else self.value(run.value)
        return replace(run, value=value, value_json=self._bytes(run.value_json))

    def _bytes(self, content: bytes) -> bytes:
        """The same for bytes, if they are text."""
        try:
            return self.text(content.decode()).encode()
        except UnicodeDecodeError:
            return content
