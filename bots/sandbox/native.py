"""CPython under the system's layers alone: for Python bots that the operator trusts.

Ten times less memory and three times faster than Pyodide, and one wall instead of two: without Landlock and seccomp there is
nothing between such a bot and the machine, so it is refused where a layer is missing.

The interpreter is the host's own. Everything it reads is listed for Landlock: the program, its libraries and standard library (without
installed packages), and a folder with the packages of bots. When the host runs as root from a folder that others cannot enter,
these are copied to one they can.
"""

from __future__ import annotations

import compileall
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from bots.sandbox import placement
from bots.sandbox.process import BotProcess, confinement_report, launch

NATIVE_MEMORY_MB = 96
"""Private memory of a process (RLIMIT_DATA) beyond what its bot may use: the interpreter, and the stacks of threads."""
PROGRAM_MB = 256
"""Address space for the interpreter's files and libraries. There is a limit, since memory can also be shared memory."""
_LIST_SECONDS = 60.0
_LEFT_OUT = shutil.ignore_patterns(
    "site-packages",
    "test",
    "tests",
    "idlelib",
    "tkinter",
    "turtledemo",
    "ensurepip",
    "lib2to3",
    "config-*",
    "*.opt-*.pyc",
)


@dataclass(frozen=True, slots=True)
class _Interpreter:
    program: Path
    home: Path
    """``PYTHONHOME``: the folder with ``lib/python3.x``."""
    packages: Path
    loader: tuple[str, ...]
    readable: tuple[str, ...]


class NativeLauncher:
    """Starts processes as :class:`~bots.sandbox.process.Launcher` does."""

    def __init__(self, runtime: Path) -> None:
        """``runtime`` is the folder that :func:`~bots.sandbox.build.build_python` made, for its packages.

        Raises :class:`OSError`, with a sentence, when a layer is missing or the files cannot be placed.
        """
        missing = [layer.name for layer in confinement_report() if not layer.active]
        if missing:
            raise OSError(
                f"Native Python is not run without these layers of the system: {', '.join(missing)}."
            )
        self._runtime = runtime
        self._interpreter = _place(runtime)

    def start(self, memory_mb: int) -> BotProcess:
        """A new process whose bot may use ``memory_mb`` MiB. Raises :class:`OSError`."""
        if not self._interpreter.packages.is_dir():  # temporary folders are tidied
            self._interpreter = _place(self._runtime)
        interpreter = self._interpreter
        environment = {
            "PYTHONHOME": str(interpreter.home),
            "LD_LIBRARY_PATH": str(interpreter.home / "lib"),  # libpython, where the interpreter is a copy
            "PYTHONPATH": str(interpreter.packages),
            "HOME": "/nonexistent",
            "TZ": "UTC",
            "LANG": "C.UTF-8",
        }
        memory = (NATIVE_MEMORY_MB + memory_mb) << 20
        process = launch(
            memory,
            (str(interpreter.program), *interpreter.loader),
            interpreter.readable,
            [str(interpreter.program), "-S", "-s", "-P", "-B", "-m", "fhirbots.sandbox"],
            environment,
            memory + (PROGRAM_MB << 20),
        )
        return BotProcess(process, memory_mb)


def _place(runtime: Path) -> _Interpreter:
    program = Path(os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable))
    home = Path(sys.base_prefix)
    packages = _packages(runtime / "packages.zip")
    if os.geteuid() == 0 and not (placement.reachable(program) and placement.reachable(_library(home))):
        home = _copy(program, home)
        program = home / "bin" / "python"
    loader, libraries = placement.libraries_of(program)
    extensions = [
        path for path in (_library(home) / "lib-dynload").glob("*.so") if not path.name.startswith("_test")
    ]
    needed = {library for path in extensions for library in _libraries_of_extension(loader, path)}
    copied = home != Path(sys.base_prefix)
    folders = (str(home / "lib" if copied else _library(home)), str(packages))
    readable = (*folders, *libraries, *sorted(needed - set(libraries)))
    return _Interpreter(program, home, packages, loader, readable)


def _library(home: Path) -> Path:
    return home / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}"


def _packages(archive: Path) -> Path:
    """A folder with the packages, compiled, since the process cannot write."""
    if not archive.is_file():
        raise FileNotFoundError(f"There is no {archive}. Run: python manage.py assets")
    digest = hashlib.blake2b(archive.read_bytes(), digest_size=16).hexdigest()
    target = placement.shared_folder() / f"packages-{sys.implementation.cache_tag}-{digest}"
    if target.is_dir():
        return target
    building = Path(tempfile.mkdtemp(dir=target.parent))
    try:
        with zipfile.ZipFile(archive) as packages:
            packages.extractall(building)
        compileall.compile_dir(building, quiet=2)
        _open(building)
        placement.rename(building, target)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return target


def _copy(program: Path, home: Path) -> Path:
    """A copy of the interpreter and its standard library where everybody can read it."""
    stat = program.stat()
    made = hashlib.blake2b(
        f"{program}\0{stat.st_size}\0{stat.st_mtime_ns}".encode(), digest_size=16
    ).hexdigest()
    target = placement.shared_folder() / f"python-{made}"
    if target.is_dir():
        return target
    building = Path(tempfile.mkdtemp(dir=target.parent))
    try:
        (building / "bin").mkdir()
        shutil.copyfile(program, building / "bin" / "python")
        shutil.copytree(_library(home), _library(building), ignore=_LEFT_OUT, symlinks=False)
        for name in {sysconfig.get_config_var("LDLIBRARY"), sysconfig.get_config_var("INSTSONAME")} - {None}:
            shared = home / "lib" / str(name)
            if shared.suffix != ".a" and shared.is_file():
                shutil.copyfile(shared, building / "lib" / shared.name)
        _open(building)
        (building / "bin" / "python").chmod(0o755)
        placement.rename(building, target)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return target


def _open(folder: Path) -> None:
    """Let everybody read, and nobody write."""
    folder.chmod(0o755)
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o444)


def _libraries_of_extension(loader: tuple[str, ...], extension: Path) -> list[str]:
    """The shared libraries that a module in C needs; none where they cannot be told."""
    if not loader:
        return []
    listing = subprocess.run(  # noqa: S603 - the system's own linker, on a file of the interpreter
        [loader[0], "--list", str(extension)],
        capture_output=True,
        text=True,
        check=False,
        timeout=_LIST_SECONDS,
    ).stdout
    return [os.path.realpath(path) for path in placement.LISTED.findall(listing)]
