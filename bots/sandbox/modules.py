"""Which modules bots may import, from ``runtime/modules.json``, and what is said of the others."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from bots.sandbox.model import Problem

SOURCE: Final = Path(__file__).parent / "runtime"

_MODULES: Final[dict[str, Any]] = json.loads((SOURCE / "modules.json").read_text(encoding="utf-8"))
LIBRARIES: Final[dict[str, str]] = _MODULES["libraries"]
"""Name to slug: the file ``lib-{slug}.js`` of the runtime."""
ALIASES: Final[dict[str, str]] = _MODULES["aliases"]
REPLACED: Final[dict[str, str]] = _MODULES["replaced"]
"""Modules of Node that are ours: the originals would go on after the call, or look for files."""
PROVIDED: Final[list[str]] = _MODULES["provided"]
"""Modules of Node that work."""
INERT: Final[list[str]] = _MODULES["inert"]
"""Modules of Node that can be imported, as bundles do, but whose functions are refused by the sandbox."""
REFUSED: Final[list[str]] = _MODULES["refused"]


def unrestricted() -> list[str]:
    """Modules of Node that are Deno's own."""
    return [name for name in (*PROVIDED, *INERT) if name not in REPLACED]


def refusal(name: str) -> str:
    """The sentence about a module that is not available; the runtime makes the same one."""
    libraries = ", ".join(["@medplum/core", "@medplum/fhirtypes (types only)", *LIBRARIES])
    text: str = _MODULES["refusal"]
    return (
        text.replace("{name}", name)
        .replace("{hint}", _MODULES["hints"].get(name, ""))
        .replace("{libraries}", libraries)
        .replace("{provided}", ", ".join(PROVIDED))
    )


def is_available(name: str) -> bool:
    """Can a bot import this?"""
    if name in ("@medplum/core", "@medplum/fhirtypes") or name in LIBRARIES or name in ALIASES:
        return True
    return name.removeprefix("node:") in {*PROVIDED, *INERT}


def import_problems(source: str, imports: Iterable[str]) -> list[Problem]:
    """A problem, with its place, for each module that static imports of the code name and that is not available."""
    problems = []
    for name in dict.fromkeys(imports):
        if is_available(name):
            continue
        found = re.search(rf"""\b(?:from|import)\s*["']{re.escape(name)}["']""", source)
        line = source.count("\n", 0, found.start()) + 1 if found else 0
        column = found.start() - source.rfind("\n", 0, found.start()) if found else 0
        problems.append(Problem(line, column, refusal(name)))
    return problems
