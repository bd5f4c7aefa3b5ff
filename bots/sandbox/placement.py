"""Prepares the files of a bot process: reachable for its user, with Deno's caches filled, and never written again.

*Reachable.* When the host runs as root, bot processes run as a user that cannot enter ``/root`` or a private temporary
folder. Then the Deno binary and the runtime are copied to a folder that root owns and everybody may read.

*Filled caches.* Deno keeps what it knows of a module, and V8's compiled code, in databases in its ``DENO_DIR``. Bot
processes may not write there, so the runtime runs once outside of the sandbox to fill them; each start then takes half
the time and 9 MB less memory. The caches go by path, so this is done where the runtime finally is, not when it is built.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

FILL_SECONDS = 60.0
_FILL_MEMORY_MB = 128
LISTED = re.compile(r"(?:=> |^\s*)(/\S+) \(0x", re.MULTILINE)
"""A path in what the dynamic linker lists."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a bot process finds its program. ``loader`` and ``libraries`` are what the dynamic linker needs of it."""

    deno: Path
    runtime: Path
    cache: Path
    loader: tuple[str, ...]
    libraries: tuple[str, ...]

    def exists(self) -> bool:
        """Whether everything is still there: temporary folders are tidied, assets are built anew."""
        return self.cache.is_dir() and self.deno.is_file() and (self.runtime / "main.mjs").is_file()


def place(deno: Path, runtime: Path, *, reads: bool = False) -> Placement:
    """Make the files ready for bot processes; ``reads`` as for :func:`command`.

    Raises :class:`OSError`, with a sentence, when that cannot be done.
    """
    if not deno.is_file():
        raise FileNotFoundError(f"There is no Deno binary at {deno}.")
    if not (runtime / "main.mjs").is_file():
        raise FileNotFoundError(f"There is no sandbox runtime in {runtime}. Run: python manage.py assets")
    deno, runtime = deno.resolve(), runtime.resolve()
    made = f"{deno.stat().st_size:x}-{deno.stat().st_mtime_ns:x}"  # the caches of one Deno are nothing for another
    if os.geteuid() == 0:
        if not reachable(deno):
            deno = _copy(deno)
        if not all(map(reachable, (runtime, *_files(runtime)))):
            runtime = _copy(runtime)
    cache = runtime / f"cache-{made}"
    if not cache.is_dir() and not os.access(runtime, os.W_OK):
        runtime = _copy(runtime)
        cache = runtime / cache.name
    if not cache.is_dir():
        _fill(deno, runtime, cache, reads)
    loader, libraries = libraries_of(deno)
    return Placement(deno, runtime, cache, loader, libraries)


def command(
    deno: Path, runtime: Path, memory_mb: int, permissions: Sequence[str] = (), *, reads: bool = False
) -> list[str]:
    """How Deno runs the runtime, with a JavaScript heap of ``memory_mb`` MiB and, unless told otherwise, no permission
    but to read the libraries.

    ``reads`` lets it read its own folder while it starts: Pyodide's files are no modules that Deno would load.
    """
    if reads and "-A" not in permissions:
        permissions = (*permissions, f"--allow-read={runtime}")
    return [
        str(deno),
        "run",
        "--no-prompt",
        "--no-remote",
        "--cached-only",
        "--no-config",
        "--no-lock",
        *(permissions or _reading(runtime)),
        f"--import-map={runtime / 'imports.json'}",
        f"--v8-flags=--max-old-space-size={memory_mb}",
        str(runtime / "main.mjs"),
    ]


def _reading(runtime: Path) -> list[str]:
    """The permission to read the libraries and their data, and nothing else."""
    files = [path for pattern in ("lib-*", "data-*") for path in sorted(runtime.glob(pattern))]
    joined = ",".join(str(path).replace(",", ",,") for path in files)
    return [f"--allow-read={joined}"] if joined else []


def environment(cache: Path) -> dict[str, str]:
    """All the environment that a bot process has."""
    return {
        "DENO_DIR": str(cache),
        "DENO_NO_UPDATE_CHECK": "1",
        "NO_COLOR": "1",
        "HOME": "/nonexistent",
        "TZ": "UTC",
    }


# Caches ---------------------------------------------------------------------------------------------------------------


def _fill(deno: Path, runtime: Path, cache: Path, reads: bool) -> None:
    """Run the runtime, and nothing else, until the caches are filled. Only this host's user can write in them."""
    building = Path(tempfile.mkdtemp(prefix=".cache-", dir=runtime))
    building.chmod(0o755)
    try:
        for _ in range(
            2
        ):  # Deno learns the modules in the first run, V8 the functions they call in the second
            try:
                subprocess.run(  # noqa: S603 - our own program
                    command(deno, runtime, _FILL_MEMORY_MB, reads=reads),
                    env=environment(building),
                    cwd="/",
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    timeout=FILL_SECONDS,
                    check=True,
                )
            except subprocess.SubprocessError as error:
                complaint = (getattr(error, "stderr", None) or b"").decode(errors="replace").strip()
                raise OSError(f"The sandbox runtime does not start: {complaint or error}") from error
        for blocked in ("gen", "location_data"):
            # Deno keeps compiled sources and localStorage in folders of these names; a file there stops it, even where
            # nothing else does.
            (building / blocked).touch()
        for path in building.rglob("*"):
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() else 0o444)  # read-only also where Landlock is missing
        rename(building, cache)
    finally:
        shutil.rmtree(building, ignore_errors=True)


# Copies ---------------------------------------------------------------------------------------------------------------


def reachable(path: Path) -> bool:
    """May everybody read the file (and run it, or list it), and enter each folder above it?"""
    needed = stat.S_IROTH | (stat.S_IXOTH if path.is_dir() or os.access(path, os.X_OK) else 0)
    if path.stat().st_mode & needed != needed:
        return False
    return all(folder.stat().st_mode & stat.S_IXOTH for folder in path.parents)


def _files(runtime: Path) -> list[Path]:
    """The files of a runtime, without caches and marks."""
    return sorted(path for path in runtime.glob("*.*") if not path.name.startswith("."))


def _copy(source: Path) -> Path:
    """A copy of the file or folder, under a name made from its content."""
    name = f"{source.name}-{_digest(source)[:32]}"
    shared = shared_folder()
    target = shared / name
    if target.exists():  # nobody else may write in the folder
        return target
    building = Path(tempfile.mkdtemp(dir=shared))
    try:
        copy = building / source.name
        if source.is_dir():
            copy.mkdir()
            for path in _files(source):
                shutil.copyfile(path, copy / path.name)
                (copy / path.name).chmod(0o644)
        else:
            shutil.copyfile(source, copy)
        copy.chmod(0o755)
        rename(copy, target)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return target


def rename(made: Path, target: Path) -> None:
    """Give what was made its name, unless another process was faster. Raises :class:`OSError`."""
    try:
        made.rename(target)
    except OSError:
        if not target.exists():  # else another process was faster, and made the same
            raise


def shared_folder() -> Path:
    """A folder of this user that others may enter and read, where programs may be run, and nobody else may write.

    The name is fixed so that copies are found again. Where somebody else has taken it, a new folder is made: whatever
    stands under the name, a link too, is not followed.
    """
    parent = _open_folder()
    fixed = parent / f"fhirbots-sandbox-{os.geteuid()}"
    try:
        fixed.mkdir(mode=0o755)
        fixed.chmod(0o755)  # whatever the umask
    except FileExistsError:
        found = fixed.lstat()
        mine = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
        if not mine or stat.S_IMODE(found.st_mode) != 0o755:
            fixed = Path(tempfile.mkdtemp(prefix="fhirbots-sandbox-", dir=parent))
            fixed.chmod(0o755)
    return fixed


def _open_folder() -> Path:
    """A folder for temporary files that everybody can enter and whose programs can be run."""
    for folder in (Path(tempfile.gettempdir()), Path("/tmp"), Path("/var/tmp"), Path("/dev/shm")):  # noqa: S108
        with suppress(OSError):
            if reachable(folder.resolve()) and not os.statvfs(folder).f_flag & os.ST_NOEXEC:
                return folder.resolve()
    raise FileNotFoundError(
        "Bot processes need Deno and their runtime in a folder that everybody may enter: install fhirbots outside of "
        "/root, or set TMPDIR to such a folder."
    )


def _digest(source: Path) -> str:
    digest = hashlib.blake2b()
    for path in [source] if source.is_file() else _files(source):
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def libraries_of(program: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(the dynamic linker, the shared libraries and the linker's cache) of a program; empty where that is not known."""
    if sys.platform != "linux":
        return (), ()
    listing = subprocess.run(  # noqa: S603 - our own program
        [str(program)], env={"LD_TRACE_LOADED_OBJECTS": "1"}, capture_output=True, text=True, check=False
    ).stdout  # what ldd does
    paths = [os.path.realpath(path) for path in LISTED.findall(listing)]
    loader = tuple(path for path in paths if Path(path).name.startswith(("ld-", "ld.")))
    return loader, (*(path for path in paths if path not in loader), "/etc/ld.so.cache")
