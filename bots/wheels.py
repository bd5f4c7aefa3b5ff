"""Wheels that a project adds: pure-Python packages its Python Bots may import.

The project has one list. Deploying a Bot writes down what is on it by digest, so that a Bot runs with the wheels it was checked with,
whatever becomes of the list; so their content is never deleted. It reaches the process of a Bot with the code, and is imported from there
(``sdk/fhirbots/wheels.py``): nothing is unpacked, and nothing is fetched.
"""

from __future__ import annotations

import email.parser
import hashlib
import io
import re
import stat
import sys
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Final

from django.db.models import QuerySet
from django.db.models.functions import Length

from bots.models import Wheel
from fhirstore.api import (
    FhirError,
    Repository,
    bad_request,
    connection,
    content_too_large,
    forbidden,
    lock,
    not_found,
    transaction,
)

MAX_PACKED: Final = 16 * 1024 * 1024
"""Bytes of all wheels of a project: every process of its Python Bots is sent them."""
MAX_UNPACKED: Final = 64 * 1024 * 1024
"""Bytes in the files of one wheel."""
MAX_FILES: Final = 10_000
MAX_WHEELS: Final = 50

_COMPILED: Final = (".so", ".pyd", ".dll", ".dylib", ".a", ".o")
_OURS: Final = frozenset({"bot", "fhirbots", "hl7", "js", "pyodide", "pyodide_js"})
_NAME: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,98}[A-Za-z0-9])?")
_VERSION: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+!-]{0,63}")
_PURE: Final = re.compile(r"(?:\S+\.)?py3\d*(?:\.\S+)?-none-any")

_INSERT: Final = """
INSERT INTO bots_wheel (project, name, filename, digest, content, is_listed, author, author_display, created)
VALUES (%(project)s, %(name)s, %(filename)s, %(digest)s, %(content)s, true, %(author)s, %(author_display)s, now())
ON CONFLICT (project, digest) DO UPDATE SET is_listed = true, author = EXCLUDED.author, author_display = EXCLUDED.author_display,
    created = now()
"""


@dataclass(frozen=True, slots=True)
class Facts:
    """What a wheel says of itself: normalized name, and the file name that belongs to it."""

    name: str
    filename: str


# --- the list --------------------------------------------------------------------------------------------------------


def wheels(repository: Repository) -> list[Wheel]:
    """Return the wheels of the project, by name, without content; raises FhirError (403) unless the caller is an admin."""
    _check(repository)
    found = _listed(repository.identity.project).annotate(size=Length("content"))  # type: ignore[no-redef]  # declared for callers
    return list(found)


def wheel_add(repository: Repository, content: bytes) -> Facts:
    """Add a wheel to the project, in place of another one of the same name. Bots have it from their next deployment on.

    Raises FhirError: 403; 400 or 413 with the reason why it cannot be added.
    """
    _check(repository)
    facts = read_wheel(content)
    project = repository.identity.project
    values = {
        "project": project,
        "name": facts.name,
        "filename": facts.filename,
        "digest": hashlib.sha256(content).hexdigest(),
        "content": content,
        "author": repository.identity.profile,
        "author_display": repository.identity.profile_display or "",
    }
    with transaction() as session:
        lock(f"wheels {project}")
        _unlist(project, facts.name)
        session.execute(_INSERT, values)
        row = session.execute(
            "SELECT count(*), sum(length(content)) FROM bots_wheel WHERE project = %s AND is_listed",
            (project,),
        ).fetchone()
        assert row is not None  # of an aggregate there is always one
        if row[0] > MAX_WHEELS:
            raise bad_request(f"A project has at most {MAX_WHEELS} wheels. Remove one that is not needed")
        if row[1] > MAX_PACKED:
            raise content_too_large(f"The wheels of a project have at most {MAX_PACKED >> 20} MB together")
    return facts


def wheel_remove(repository: Repository, name: str) -> None:
    """Take a wheel off the list; what was deployed with it goes on. Raises FhirError (403, 404)."""
    _check(repository)
    with transaction():
        if not _unlist(repository.identity.project, _normalized(name)):
            raise not_found(f"The project has no wheel named {name}")


def _check(repository: Repository) -> None:
    if not repository.identity.is_admin:
        raise forbidden("Only a project admin may change its wheels")


def _unlist(project: str, name: str) -> bool:
    with connection() as session:
        done = session.execute(
            "UPDATE bots_wheel SET is_listed = false WHERE project = %s AND name = %s AND is_listed",
            (project, name),
        )
    return done.rowcount > 0


def _listed(project: str) -> QuerySet[Wheel]:
    return Wheel.objects.filter(project=project, is_listed=True).order_by("name").defer("content")


# --- what a deployment uses ------------------------------------------------------------------------------------------


def wheels_of_project(project: str) -> list[dict[str, str]]:
    """What a deployment made now writes down: ``{filename, digest}`` of each wheel."""
    return [{"filename": wheel.filename, "digest": wheel.digest} for wheel in _listed(project)]


# --- reading a wheel -------------------------------------------------------------------------------------------------


def read_wheel(content: bytes) -> Facts:
    """Check that a file is a wheel of pure Python that Bots can import; raises FhirError with the reason why not."""
    if len(content) > MAX_PACKED:
        raise content_too_large(f"The wheel is larger than {MAX_PACKED >> 20} MB")
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            _check_entries(archive.infolist())
            facts = _facts(archive)
            _check_modules(archive.namelist())
            if damaged := archive.testzip():
                raise _refused(f"its file {damaged} is damaged")
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError, UnicodeDecodeError, ValueError):
        raise _refused("it is not a ZIP archive, or a damaged one") from None
    return facts


def _refused(reason: str) -> FhirError:
    return bad_request(f"The wheel cannot be added: {reason}")


def _check_entries(entries: Sequence[zipfile.ZipInfo]) -> None:
    if len(entries) > MAX_FILES:
        raise _refused(f"it holds more than {MAX_FILES} files")
    if sum(entry.file_size for entry in entries) > MAX_UNPACKED:
        raise _refused(f"its files have more than {MAX_UNPACKED >> 20} MB")
    seen: set[str] = set()
    for entry in entries:
        name = entry.filename
        parts = name.removesuffix("/").split("/")
        if "\\" in name or any(part in ("", ".", "..") for part in parts):
            raise _refused(f"{name!r} is no path inside of it")
        if stat.S_ISLNK(entry.external_attr >> 16):
            raise _refused(f"{name} is a link")
        if entry.flag_bits & 1:
            raise _refused(f"{name} is encrypted")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise _refused(f"{name} is compressed in a way that Bots cannot read")
        if name in seen:
            raise _refused(f"it holds {name} twice")
        if PurePosixPath(name).suffix.lower() in _COMPILED:
            raise _refused(f"it is not pure Python: {name} is compiled code")
        seen.add(name)


def _facts(archive: zipfile.ZipFile) -> Facts:
    found = [name for name in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/WHEEL", name)]
    if len(found) != 1:
        raise _refused("it holds no file *.dist-info/WHEEL, so it is none")
    folder = found[0].partition("/")[0]
    wheel = _headers(archive, found[0])
    tags = wheel.get_all("Tag") or []
    if wheel.get("Root-Is-Purelib", "").strip().lower() != "true" or not any(map(_PURE.fullmatch, tags)):
        named = ", ".join(tags) or "no tag"
        raise _refused(f"it is not pure Python for Python 3 (py3-none-any) but made for {named}")
    if f"{folder}/METADATA" not in archive.namelist():
        raise _refused(f"it holds no {folder}/METADATA")
    metadata = _headers(archive, f"{folder}/METADATA")
    name, version = metadata.get("Name", "").strip(), metadata.get("Version", "").strip()
    if not _NAME.fullmatch(name) or not _VERSION.fullmatch(version):
        raise _refused("its METADATA has no usable Name and Version")
    normalized = _normalized(name)
    return Facts(normalized, f"{normalized.replace('-', '_')}-{version}-py3-none-any.whl")


def _headers(archive: zipfile.ZipFile, name: str) -> Any:
    return email.parser.HeaderParser().parsestr(archive.read(name).decode("utf-8"))


def _normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _check_modules(names: Sequence[str]) -> None:
    """It has modules, and none that Bots have already: such a one would never be imported."""
    modules = {
        name.partition("/")[0].removesuffix(".py")
        for name in names
        if name.endswith(".py") and not re.match(r"[^/]+\.(?:dist-info|data)/", name)
    }
    if not modules:
        raise _refused("it holds no modules")
    if taken := sorted(modules & (sys.stdlib_module_names | _OURS)):
        raise _refused(f"Bots have a module named {taken[0]} already")
