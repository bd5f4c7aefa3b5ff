"""Builds what browsers load from third parties: Monaco with its workers, Tabler's CSS, the icon sprite, type files.

Called by `manage.py assets`. Everything comes out of `node_modules`; nothing is downloaded, nothing is committed.
Source-map comments are cut off, because the maps are not served and the manifest storage of static files refuses
references to missing files.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

ICONS: Final = [
    "activity",
    "alert-circle",
    "alert-triangle",
    "apps",
    "arrow-back-up",
    "arrow-left",
    "arrow-right",
    "arrows-diff",
    "bell",
    "braces",
    "check",
    "circle-check",
    "circle-x",
    "clock",
    "code",
    "copy",
    "database",
    "device-desktop",
    "device-floppy",
    "dots",
    "download",
    "edit",
    "file-text",
    "filter",
    "folder",
    "git-compare",
    "help",
    "history",
    "home",
    "info-circle",
    "key",
    "list",
    "lock",
    "logout",
    "menu-2",
    "moon",
    "package",
    "player-pause",
    "player-play",
    "plus",
    "refresh",
    "robot",
    "rocket",
    "search",
    "settings",
    "shield",
    "sun",
    "trash",
    "user",
    "users",
    "x",
]
"""Names of the Tabler outline icons the templates use; `tests/console/test_frontend.py` keeps both in step."""

MONACO: Final = """
import "monaco-editor/features/register.all.js";
import "monaco-editor/languages/definitions/typescript/register.js";
import "monaco-editor/languages/definitions/javascript/register.js";
import "monaco-editor/languages/definitions/python/register.js";
export * as json from "monaco-editor/languages/features/json/register.js";
export * as typescript from "monaco-editor/languages/features/typescript/register.js";
export * from "monaco-editor/editor.js";
"""
"""Monaco as one ES module: all editing features, only the languages of Bots and their input."""

WORKERS: Final = {
    "editor.worker": "monaco-editor/editor/editor.worker.js",
    "json.worker": "monaco-editor/languages/features/json/json.worker.js",
    "ts.worker": "monaco-editor/languages/features/typescript/ts.worker.js",
}

_SOURCE_MAP = re.compile(rb"\n?/[/*]# sourceMappingURL=[^\s*]*(?: ?\*/)?\s*\Z")
"""Only at the end of a file: the TypeScript compiler has the same words in its code."""

_STRING_OR_COMMENT = re.compile(
    r"""('(?:\\.|[^'\\\n])*'|"(?:\\.|[^"\\\n])*"|`(?:\\.|[^`\\])*`)|//[^\n]*|/\*.*?\*/""", re.DOTALL
)


class FrontendError(Exception):
    """The front end cannot be built; the text says why in one sentence."""


def build_frontend(node_modules: Path, esbuild: Path, target: Path) -> None:
    """Build the served third-party files.

    Args:
        node_modules: folder with the packages of `package.json`.
        esbuild: the native esbuild binary of this platform.
        target: folder for the static files; they land in ``vendor/`` below it.

    Raises:
        FrontendError: a package is missing or esbuild refuses.
    """
    vendor = target / "vendor"
    try:
        _build_monaco(node_modules, esbuild, vendor / "monaco")
        _build_tabler(node_modules / "@tabler/core", vendor / "tabler")
        _build_icons(node_modules / "@tabler/icons", vendor / "icons.svg")
        _build_types(node_modules / "@medplum", vendor / "types")
    except FileNotFoundError as error:
        raise FrontendError(f"The front end cannot be built: {error.filename} is missing.") from error


def strip_comments(source: str) -> str:
    """Return TypeScript declarations without comments and blank lines; string literals keep their slashes."""
    bare = _STRING_OR_COMMENT.sub(lambda found: found.group(1) or "", source)
    return "\n".join(line.rstrip() for line in bare.splitlines() if line.strip()) + "\n"


def _build_monaco(node_modules: Path, esbuild: Path, target: Path) -> None:
    package = node_modules / "monaco-editor"
    with tempfile.TemporaryDirectory() as folder:
        entry = Path(folder) / "monaco.js"
        entry.write_text(MONACO)
        command = [
            str(esbuild),
            f"editor={entry}",
            *(f"{name}={source}" for name, source in WORKERS.items()),
            "--bundle",
            "--format=esm",
            "--minify",
            "--legal-comments=none",
            "--target=es2022",
            "--loader:.ttf=file",
            "--asset-names=[name]",
            "--log-level=error",
            f"--outdir={target}",
        ]
        # The entry lies outside of the package folder, so the packages are found by NODE_PATH.
        environment = {**os.environ, "NODE_PATH": str(node_modules)}
        built = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)  # noqa: S603
    if built.returncode:
        raise FrontendError(f"The front end cannot be built: esbuild says {built.stderr.strip()[:500]}")
    for file in (*target.glob("*.js"), *target.glob("*.css")):
        _edit(file, lambda content: _SOURCE_MAP.sub(b"", content))
    _write(target / "LICENSE.txt", (package / "LICENSE").read_bytes())
    _write(target / "ThirdPartyNotices.txt", (package / "ThirdPartyNotices.txt").read_bytes())


def _build_tabler(package: Path, target: Path) -> None:
    css = (package / "dist/css/tabler.min.css").read_bytes()
    _write(target / "tabler.css", _SOURCE_MAP.sub(b"", css))


def _build_icons(package: Path, target: Path) -> None:
    symbols = []
    for name in ICONS:
        svg = (package / "icons/outline" / f"{name}.svg").read_text()
        drawing = svg[svg.index(">", svg.index("<svg")) + 1 : svg.rindex("</svg>")]
        symbols.append(
            f'<symbol id="{name}" viewBox="0 0 24 24" fill="none" stroke="currentColor" stroke-width="1.75" '
            f'stroke-linecap="round" stroke-linejoin="round">{" ".join(drawing.split())}</symbol>'
        )
    notice = "<!-- Tabler Icons, MIT licence, https://tabler.io/icons -->"
    lines = ['<svg xmlns="http://www.w3.org/2000/svg">', notice, *symbols, "</svg>"]
    _write(target, ("\n".join(lines) + "\n").encode())


def _build_types(medplum: Path, target: Path) -> None:
    """The editor's hints: one declaration file for the FHIR types, one for the SDK, both without comments."""
    fhirtypes = [
        re.sub(
            r"^(import|export) type [^;]*? from '[^']*';\n", "", strip_comments(file.read_text()), flags=re.M
        )
        for file in sorted((medplum / "fhirtypes/dist").glob("*.d.ts"))
    ]
    _write(target / "fhirtypes.d.ts", "".join(fhirtypes).encode())
    core = strip_comments((medplum / "core/dist/esm/index.d.ts").read_text())
    _write(target / "core.d.ts", core.encode())


def _edit(file: Path, change: Callable[[bytes], bytes]) -> None:
    file.write_bytes(change(file.read_bytes()))


def _write(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
