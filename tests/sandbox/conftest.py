"""A pool of real bot processes for the whole session, and a short way to run a bot in it."""

from __future__ import annotations

import itertools
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings

from bots.sandbox.api import (
    HostRequest,
    HostResponse,
    Invocation,
    Program,
    Result,
    SandboxPool,
    Transpiled,
    deno_path,
    transpile,
)
from console.assets import esbuild

BASE_URL = "https://fhirbots.example/"

Respond = Callable[[HostRequest], HostResponse]
_numbers = itertools.count()


def no_answer(request: HostRequest) -> HostResponse:
    """The answer of a host that knows nothing."""
    return HostResponse(error=f"Nothing is expected here: {request.method} {request.url}")


def program(source: str, filename: str = "index.ts", key: tuple[str, ...] | None = None) -> Program:
    """The program of a bot, with a key nobody else has unless one is given."""
    made = transpile(source, filename, esbuild())
    assert isinstance(made, Transpiled), made
    return Program(key or ("bot", str(next(_numbers))), made.code, filename, "javascript", made.module)


def python_program(source: str, filename: str = "index.py", key: tuple[str, ...] | None = None) -> Program:
    """The program of a Python bot."""
    return Program(key or ("bot", str(next(_numbers))), source, filename, "python")


def invocation(of: Program, input: Any = None, *, timeout: float = 20, **more: Any) -> Invocation:
    """A call of a program. A text is given as text, anything else as JSON."""
    event = {"bot": {"reference": "Bot/1"}, "input": input, "secrets": {}, **more.pop("event", {})}
    more.setdefault("input_kind", "text" if isinstance(input, str) else "json")
    return Invocation(of, event, BASE_URL, timeout, **more)


Run = Callable[..., Result]


@pytest.fixture(scope="session")
def runtime(assets: None) -> Path:
    """The built runtime."""
    return Path(settings.ASSETS_DIR) / "runtime"


@pytest.fixture(scope="session")
def pool(runtime: Path) -> Iterator[SandboxPool]:
    """The pool that most tests share; every bot has its own processes in it."""
    with SandboxPool(size=4, spare=2, deno=deno_path(), runtime=runtime) as pool:
        yield pool


@pytest.fixture(scope="session")
def python_runtime(assets: None) -> Path:
    """The built runtime for Python."""
    return Path(settings.ASSETS_DIR) / "python"


@pytest.fixture(scope="session")
def python_pool(runtime: Path, python_runtime: Path) -> Iterator[SandboxPool]:
    """The pool for Python bots, with room for two of them."""
    with SandboxPool(size=8, spare=1, deno=deno_path(), runtime=runtime, python=python_runtime) as pool:
        yield pool


@pytest.fixture
def targets(runtime: Path) -> Iterator[dict[str, Any]]:
    """Things to attack: a secret everybody may read, a listening port and socket, a process to kill."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        secret = folder / "secret.json"
        secret.write_text('"the secret"')
        secret.chmod(0o666)
        with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as local:
            local.bind(str(folder / "socket"))
            local.listen()
            (folder / "socket").chmod(0o777)
            with subprocess.Popen(["/bin/sleep", "60"]) as victim:
                yield {
                    "secret": str(secret),
                    "settings": str(Path(settings.BASE_DIR) / "console" / "settings.py"),
                    "home": str(Path.home()),
                    "runtime": str(runtime),
                    "socket": str(folder / "socket"),
                    "port": server.getsockname()[1],
                    "victim": victim.pid,
                }
                assert victim.poll() is None
                victim.kill()
        assert secret.read_text() == '"the secret"'
        assert secret.stat().st_mode & 0o777 == 0o666


@pytest.fixture
def open_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for temporary files that everybody may enter, of one test alone."""
    with tempfile.TemporaryDirectory(prefix="fhirbots-test-") as name:
        Path(name).chmod(0o1777)
        monkeypatch.setattr(tempfile, "tempdir", name)
        yield Path(name)


@pytest.fixture
def run(pool: SandboxPool) -> Run:
    """Run a bot once: `run(source, input, filename=…, respond=…, timeout=…)`."""

    def run(
        source: str,
        input: Any = None,
        *,
        filename: str = "index.ts",
        respond: Respond = no_answer,
        **more: Any,
    ) -> Result:
        return pool.run(invocation(program(source, filename), input, **more), respond)

    return run
