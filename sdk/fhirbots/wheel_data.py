"""What :mod:`importlib.metadata` and :mod:`importlib.resources` find in the wheels of :mod:`fhirbots.wheels`."""

from __future__ import annotations

import importlib.metadata
import zipfile
from importlib.resources.abc import TraversableResources
from typing import Any


class WheelResources(TraversableResources):
    """The files beside a module."""

    def __init__(self, archive: zipfile.ZipFile, folder: str) -> None:
        self._archive = archive
        self._folder = folder

    def files(self) -> Any:
        return zipfile.Path(self._archive, f"{self._folder}/")


class WheelDistribution(importlib.metadata.Distribution):
    """What a wheel says of itself."""

    def __init__(self, archive: zipfile.ZipFile, folder: str) -> None:
        self._archive = archive
        self._folder = folder

    def read_text(self, filename: Any) -> str | None:
        try:
            return self._archive.read(f"{self._folder}/{filename}").decode("utf-8")
        except KeyError:
            return None

    def locate_file(self, path: Any) -> Any:
        return zipfile.Path(self._archive, str(path))
