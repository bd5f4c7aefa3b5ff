"""Modules of the wheels a project has added, imported from memory: there are no files in the sandbox.

The finder stands behind all others, so that nothing of Python itself, ``fhirbots`` or ``hl7`` can be replaced.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import io
import sys
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from importlib.machinery import ModuleSpec
from pathlib import PurePosixPath
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from importlib.metadata import Distribution
    from importlib.resources.abc import TraversableResources

ROOT = "/wheels"
"""What paths of these modules begin with; there is no such folder."""


def install(wheels: Iterable[bytes]) -> None:
    """Let the wheels' modules be imported; of two with the same file the first counts."""
    sys.meta_path.append(_Finder([zipfile.ZipFile(io.BytesIO(wheel)) for wheel in wheels]))


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, archives: Sequence[zipfile.ZipFile]) -> None:
        self._archives = archives
        self._files: dict[str, zipfile.ZipFile] = {}
        for archive in archives:
            for name in archive.namelist():
                self._files.setdefault(name, archive)
        self._folders = {str(parent) for name in self._files for parent in PurePosixPath(name).parents}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        base = fullname.replace(".", "/")
        places = [f"{ROOT}/{base}"]
        for name, inside in ((f"{base}/__init__.py", places), (f"{base}.py", None)):
            if archive := self._files.get(name):
                loader = _Loader(archive, name)
                return importlib.util.spec_from_file_location(
                    fullname, f"{ROOT}/{name}", loader=loader, submodule_search_locations=inside
                )
        if base not in self._folders:
            return None
        spec = ModuleSpec(fullname, None, is_package=True)  # a namespace
        spec.submodule_search_locations = places
        return spec

    def find_distributions(self, context: Any = None) -> Iterator[Distribution]:
        """What :mod:`importlib.metadata` asks for: packages often want to know their own version."""
        from fhirbots.wheel_data import WheelDistribution  # much to load, and most Bots do not ask

        wanted = _plain(context.name) if context is not None and context.name else None
        for archive in self._archives:
            for folder in {name.partition("/")[0] for name in archive.namelist()}:
                if folder.endswith(".dist-info") and wanted in (None, _plain(folder.partition("-")[0])):
                    yield WheelDistribution(archive, folder)


class _Loader(importlib.abc.SourceLoader):
    def __init__(self, archive: zipfile.ZipFile, name: str) -> None:
        self._archive = archive
        self._name = name

    def get_filename(self, fullname: str) -> str:
        return f"{ROOT}/{self._name}"

    def get_data(self, path: str | bytes) -> bytes:
        name = str(path).removeprefix(f"{ROOT}/")
        try:
            return self._archive.read(name)
        except KeyError:
            raise FileNotFoundError(f"The wheel holds no {name}") from None

    def get_resource_reader(self, fullname: str) -> TraversableResources:
        """What :mod:`importlib.resources` asks for."""
        from fhirbots.wheel_data import WheelResources  # much to load, and most Bots do not ask

        return WheelResources(self._archive, self._name.rpartition("/")[0])


def _plain(name: str) -> str:
    return name.replace("-", "_").replace(".", "_").lower()
