"""Making uploaded code ready to run: transpile, then load it once in a sandbox. Done by workers, which own the sandboxes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Final

import orjson
from django.conf import settings

from bots import execution
from bots.calls import Reply
from bots.context import wheel_contents
from bots.sandbox.api import Problem, Program, import_problems, transpile

PYTHON: Final = ".py"
SUFFIXES: Final = {".ts", ".mts", ".cts", ".js", ".mjs", ".cjs", PYTHON}
MAX_CODE: Final = 20 * 1024 * 1024
"""Bytes of code."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """Code that loads and exports a handler, or the problems that keep it from doing so."""

    problems: tuple[Problem, ...]
    code: str = ""
    filename: str = ""
    language: str = "javascript"
    module: str = "esm"

    def encode(self) -> bytes:
        """Return the value as JSON."""
        return orjson.dumps(self)

    @classmethod
    def decode(cls, data: bytes) -> Prepared:
        """The reverse of :meth:`encode`."""
        values = orjson.loads(data)
        problems = tuple(Problem(**problem) for problem in values.pop("problems"))
        return cls(problems, **values)


def prepare(
    source: str, filename: str, project: str, native: bool = False, wheels: Sequence[Mapping[str, str]] = ()
) -> Prepared:
    """Transpile code and load it once in a sandbox process of its own.

    Args:
        source: JavaScript, TypeScript or Python.
        filename: decides about the language, and stands in stack traces.
        project: whose code it is.
        native: check Python code in CPython, which will run it.
        wheels: of the project, that Python code may import, as a deployment names them.
    """
    suffix = PurePosixPath(filename).suffix.lower()
    if suffix not in SUFFIXES:
        wanted = ", ".join(sorted(SUFFIXES))
        return Prepared((Problem(0, 0, f"Unknown kind of code: the file name must end in one of {wanted}"),))
    if "\0" in source:
        return Prepared(
            (Problem(source[: source.index("\0")].count("\n") + 1, 0, "The code holds a NUL character"),)
        )
    if suffix == PYTHON:  # the Python that will run it also checks it
        contents = wheel_contents(project, wheels)
        program = Program(("check",), source, filename, "python", native=native, wheels=contents)
        return Prepared(tuple(execution.pool().check(program)), source, filename, "python", "")
    done = transpile(source, filename, _esbuild())
    if isinstance(done, list):
        return Prepared(tuple(done))
    if missing := import_problems(source, done.imports):
        return Prepared(tuple(missing))
    program = Program(key=("check",), code=done.code, filename=filename, module=done.module)
    problems = execution.pool().check(program)
    return Prepared(tuple(problems), done.code, filename, "javascript", done.module)


def prepare_call(body: bytes, reply: Reply) -> None:
    """:func:`prepare` for a process that waits."""
    reply.send(prepare(**orjson.loads(body)).encode())


@cache
def _esbuild() -> Path:
    """The native esbuild binary that `manage.py assets` has installed."""
    found = sorted(
        Path(settings.BASE_DIR).glob("node_modules/.deno/@esbuild+*/node_modules/@esbuild/*/bin/esbuild")
    )
    if not found:
        raise FileNotFoundError("esbuild is not installed. Run: python manage.py assets")
    return found[0]
