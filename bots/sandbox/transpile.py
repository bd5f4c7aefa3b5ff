"""TypeScript and JavaScript to what a bot process runs, by npm's esbuild.

Where lines come from: JavaScript runs as it was written (esbuild only checks it), so its lines need no mapping.
TypeScript gets an inline source map without the source in it; the runtime decodes it when it shows a stack.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from pathlib import Path
from urllib.parse import quote

from bots.sandbox.build import TARGET
from bots.sandbox.model import Module, Problem, Transpiled

TIMEOUT_SECONDS = 30.0

_ERROR = re.compile(
    r"^✘ \[ERROR\] (?P<text>.*?)(?: \[[\w-]+\])?\n(?:\n\s+[^\n]*?:(?P<line>\d+):(?P<column>\d+):\n)?",
    re.MULTILINE,
)
_LOADERS = {".ts": "ts", ".mts": "ts", ".cts": "ts", ".tsx": "tsx", ".jsx": "jsx"}
_MODULE_OF_SUFFIX: dict[str, Module] = {".mjs": "esm", ".mts": "esm", ".cjs": "commonjs", ".cts": "commonjs"}


def transpile(source: str, filename: str, esbuild: Path) -> Transpiled | list[Problem]:
    """Make the source runnable, or list what is wrong with it.

    The suffix of ``filename`` decides the language (TypeScript for ``.ts``, ``.mts``, ``.cts`` and ``.tsx``). The module
    system follows Medplum: ``.mjs`` and ``.cjs`` by name; else an ES module if the code exports with ``export`` and does
    not use ``module.exports``, else CommonJS. CommonJS code that imports with ``import`` is converted.

    Raises :class:`OSError` when esbuild cannot be run.
    """
    suffix = Path(filename).suffix
    loader = _LOADERS.get(suffix, "js")
    with tempfile.TemporaryDirectory(prefix="fhirbots-transpile-") as folder:
        report = Path(folder) / "report.json"
        analysed = _esbuild(
            esbuild,
            source,
            f"--loader={loader}",
            f"--sourcefile={filename}",
            f"--outfile={Path(folder) / 'out.js'}",
            f"--metafile={report}",
            "--bundle",
            "--external:*",
            "--format=esm",
            f"--target={TARGET}",
        )
        if isinstance(analysed, list):
            return analysed
        facts = json.loads(report.read_text(encoding="utf-8"))
    (input_facts,) = facts["inputs"].values()
    (output_facts,) = facts["outputs"].values()
    has_module_syntax = input_facts.get("format") == "esm"
    exports = has_module_syntax and bool(output_facts["exports"])
    module = _MODULE_OF_SUFFIX.get(suffix)
    if module is None:
        module = "esm" if exports and not re.search(r"\bmodule\.exports\b", source) else "commonjs"
    convert = has_module_syntax and module == "commonjs"
    imports = tuple(
        each["path"]
        for each in input_facts["imports"]
        if each["kind"] == "import-statement"
        and each["path"] != "<runtime>"  # what esbuild itself would add where `require` is used as a value
    )
    if loader == "js" and not convert:
        return Transpiled(source, module, imports)
    code = _esbuild(
        esbuild,
        source,
        f"--loader={loader}",
        f"--sourcefile={filename}",
        f"--format={'cjs' if module == 'commonjs' else 'esm'}",
        *((f'--define:import.meta.url="file:///{quote(filename)}"',) if module == "commonjs" else ()),
        f"--target={TARGET}",
        "--sourcemap=inline",
        "--sources-content=false",
        "--charset=utf8",
        # Decorators as TypeScript's own settings file would turn them on are not asked for: the standard ones are used.
        "--tsconfig-raw={}",
    )
    return code if isinstance(code, list) else Transpiled(code, module, imports)


def _esbuild(esbuild: Path, source: str, *options: str) -> str | list[Problem]:
    """Run esbuild on the source: what it writes to stdout, or its errors."""
    try:
        done = subprocess.run(  # noqa: S603 - the source goes to its input
            [str(esbuild), "--log-level=error", "--log-limit=50", "--color=false", *options],
            input=source.encode("utf-8", "replace"),
            capture_output=True,
            timeout=TIMEOUT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return [Problem(0, 0, f"The code could not be compiled within {TIMEOUT_SECONDS:g} s.")]
    if done.returncode == 0:
        return done.stdout.decode()
    return _problems(done.stderr.decode(errors="replace"), source)


def _problems(report: str, source: str) -> list[Problem]:
    lines = source.split("\n")
    problems = []
    for found in _ERROR.finditer(report):
        line, column = int(found["line"] or 0), 0
        if 0 < line <= len(lines):
            # esbuild counts bytes, editors and V8 count UTF-16 units
            before = (
                lines[line - 1].encode("utf-8", "replace")[: int(found["column"])].decode(errors="replace")
            )
            column = len(before.encode("utf-16-le", "replace")) // 2 + 1
        problems.append(Problem(line, column, found["text"].strip()))
    return problems or [Problem(0, 0, report.strip() or "The code could not be compiled.")]
