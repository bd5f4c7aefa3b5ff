"""Differences between two texts or two resources, as rows for `components/diff.html`. Pure."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

CONTEXT = 3
"""Unchanged lines kept around each change."""
MAX_LINES = 4000
"""Lines between the first and the last change, old and new, that are compared one by one: it costs their square. More are replaced."""
MAX_ROWS = 10_000
"""Rows of a difference; the rest is left out, and the last one says so."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a diff. `kind` is `added`, `removed`, `skip` (lines left out) or empty (unchanged)."""

    kind: str
    text: str
    old: int | None = None
    new: int | None = None


def text_diff(before: str, after: str) -> list[Row]:
    """Compare two texts line by line; no rows if they are equal."""
    if before == after:
        return []
    old, new = before.splitlines(), after.splitlines()
    rows: list[Row] = []
    end = 0
    for group in _groups(old, new):
        if group[0][1] > end:
            rows.append(Row("skip", _skipped(group[0][1] - end)))
        for tag, old_from, old_to, new_from, new_to in group:
            if tag == "equal":
                rows += [Row("", old[i], i + 1, i - old_from + new_from + 1) for i in range(old_from, old_to)]
                continue
            rows += [Row("removed", old[i], i + 1) for i in range(old_from, old_to)]
            rows += [Row("added", new[i], None, i + 1) for i in range(new_from, new_to)]
        end = group[-1][2]
    if len(old) > end:
        rows.append(Row("skip", _skipped(len(old) - end)))
    if len(rows) > MAX_ROWS:
        rows[MAX_ROWS:] = [Row("skip", "… the rest is not shown")]
    return rows


def _groups(old: list[str], new: list[str]) -> Iterator[list[tuple[str, int, int, int, int]]]:
    """The changes with their context as difflib has them; what is equal at both ends is left out beforehand."""
    start = _equal(old, new)
    end = _equal(old[start:][::-1], new[start:][::-1])
    if len(old) + len(new) - 2 * (start + end) > MAX_LINES:
        yield [("replace", start, len(old) - end, start, len(new) - end)]
        return
    start, end = max(start - CONTEXT, 0), max(end - CONTEXT, 0)
    matcher = difflib.SequenceMatcher(None, old[start : len(old) - end], new[start : len(new) - end])
    for group in matcher.get_grouped_opcodes(CONTEXT):
        yield [(tag, a + start, b + start, c + start, d + start) for tag, a, b, c, d in group]


def _equal(old: list[str], new: list[str]) -> int:
    """How many lines both begin with."""
    pairs = enumerate(zip(old, new, strict=False))
    return next((at for at, (one, other) in pairs if one != other), min(len(old), len(new)))


def resource_diff(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Row]:
    """Compare two versions of a resource as indented JSON. What the server writes itself into `meta` is left out."""
    return text_diff(_text(before), _text(after))


def counts(rows: list[Row]) -> tuple[int, int]:
    """Numbers of added and removed lines."""
    return sum(row.kind == "added" for row in rows), sum(row.kind == "removed" for row in rows)


def _text(resource: Mapping[str, Any]) -> str:
    bare = {name: value for name, value in resource.items() if name != "meta"}
    meta = {
        k: v for k, v in (resource.get("meta") or {}).items() if k in ("profile", "tag", "security", "source")
    }
    if meta:
        bare["meta"] = meta
    return json.dumps(bare, indent=2, ensure_ascii=False) if bare else ""


def _skipped(number: int) -> str:
    return f"… {number} unchanged {'line' if number == 1 else 'lines'}"
