"""The door of the sandbox.

>>> with SandboxPool(deno=deno_path(), runtime=settings.ASSETS_DIR / "runtime") as pool:   # doctest: +SKIP
...     result = pool.run(Invocation(program, event, base_url, timeout=10), respond)
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from deno import find_deno_bin

from bots.sandbox.model import (
    DEFAULT_MEMORY_MB,
    HostPart,
    HostRequest,
    HostResponse,
    HostStream,
    Invocation,
    Layer,
    LogLine,
    OnPart,
    Problem,
    Program,
    Respond,
    Result,
    StreamPart,
    Transpiled,
)
from bots.sandbox.modules import import_problems
from bots.sandbox.pool import PoolState, SandboxPool, default_size, default_spare
from bots.sandbox.process import confinement_report
from bots.sandbox.stop import Stop
from bots.sandbox.transpile import transpile

__all__ = [
    "DEFAULT_MEMORY_MB",
    "HostPart",
    "HostRequest",
    "HostResponse",
    "HostStream",
    "Invocation",
    "Layer",
    "LogLine",
    "OnPart",
    "PoolState",
    "Problem",
    "Program",
    "Respond",
    "Result",
    "SandboxPool",
    "Stop",
    "StreamPart",
    "Transpiled",
    "confinement_report",
    "default_size",
    "default_spare",
    "deno_path",
    "import_problems",
    "transpile",
]


@cache
def deno_path() -> Path:
    """The Deno binary that the ``deno`` package of PyPI has brought. Raises :class:`FileNotFoundError`."""
    return Path(find_deno_bin()).resolve()
