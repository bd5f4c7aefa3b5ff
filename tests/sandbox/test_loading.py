"""How code is loaded: module systems, handlers, modules, what is in scope, and where errors are shown to be."""

from __future__ import annotations

from typing import Any

import pytest

from bots.sandbox.api import Problem, SandboxPool
from tests.sandbox.conftest import Run, program

NO_HANDLER = "The code does not export a function named handler."


@pytest.mark.parametrize(
    ("filename", "source"),
    [
        ("index.ts", "export async function handler() { return 1 }"),
        ("index.ts", "export const handler = async (): Promise<number> => 1"),
        ("index.ts", "const run = () => 1; export { run as handler }"),
        ("index.ts", "import type { BotEvent } from '@medplum/core'\nexport function handler(_: any, e: BotEvent) { return 1 }"),
        ("index.ts", "import { Patient } from '@medplum/fhirtypes'\nexport const handler = (m: unknown, e: {input: Patient}) => 1"),
        ("index.ts", "const value = await Promise.resolve(1); export function handler() { return value }"),
        ("index.ts", "enum E { A = 1 } namespace N { export const x = E.A } export const handler = () => N.x"),
        ("index.ts", "class P { constructor(readonly x: number) {} } export const handler = () => new P(1).x"),
        ("index.ts", "const twice = (f: any, _: any) => function (this: any) { return f.call(this) * 2 }\n"
                     "class C { @twice half() { return 0.5 } } export const handler = () => new C().half()"),
        ("index.ts", "import { getReferenceString } from '@medplum/core'\nexports.handler = async () => typeof getReferenceString === 'function' ? 1 : 0"),
        ("index.tsx", "export const handler = <T,>(x: T) => 1"),
        ("index.mts", "export const handler = (): number => 1"),
        ("index.cts", "exports.handler = (): number => 1"),
        ("index.js", "export async function handler() { return 1 }"),
        ("index.js", "exports.handler = async function () { return 1 }"),
        ("index.js", "exports.handler = async () => 1;"),
        ("index.js", "module.exports = { handler: async () => 1 }"),
        ("index.js", "module.exports.handler = () => 1 // no newline after this"),
        ("index.js", "// export something\nexports.handler = () => 1"),
        ("index.js", "exports.handler = () => `export const x = 1`.length && 1"),
        ("index.js", "'use strict'; Object.defineProperty(exports, '__esModule', {value: true}); exports.handler = handler;"
                     "const core_1 = require('@medplum/core'); async function handler() { return core_1.ContentType.JSON && 1 }"),
        ("index.js", "#!/usr/bin/env node\nexports.handler = () => 1"),
        ("index.cjs", "exports.handler = () => 1"),
        ("index.mjs", "export const handler = () => 1"),
        ("a b'\"é.js", "exports.handler = () => 1"),
        ("index.js", "\ufeffexports.handler = () => 1"),
        ("index.js", "x = 1; exports.handler = () => x"),
        ("index.js", "const again = require; exports.handler = () => typeof again('path').join === 'function' && 1"),
        ("index.js", "exports.handler = () => 1; if (require.main === module) process.exit(1)"),
        ("index.js", "0 && (module.exports = {handler}); module.exports = {handler: () => 1}; Object.assign(exports, module.exports);"),
        ("index.mjs", "var __require = ((x) => typeof require !== 'undefined' ? require : typeof Proxy !== 'undefined' ? new Proxy(x, {get: (a, b) => (typeof require !== 'undefined' ? require : a)[b]}) : x)(function (x) { if (typeof require !== 'undefined') return require.apply(this, arguments); throw Error(x); });\n"
                      "export const handler = () => __require('node:path').sep.length"),
        ("index.mjs", "import { createRequire } from 'module'; const require = createRequire(import.meta.url); export const handler = () => require('path').sep.length"),
        ("index.js", "exports.handler = function () { return this === exports || this === module.exports || 1 } && (() => 1)"),
    ],
)  # fmt: skip
def test_code_of_every_form_is_loaded(run: Run, filename: str, source: str) -> None:
    result = run(source, filename=filename)
    assert (result.ok, result.value) == (True, 1), result


WHERE = "[here, fileURLToPath(import.meta.url), dirname(fileURLToPath(import.meta.url)), new URL('./x.json', import.meta.url).href]"


@pytest.mark.parametrize(
    ("filename", "source"),
    [
        ("index.mjs", f"import {{ fileURLToPath }} from 'node:url'; import {{ dirname }} from 'node:path'; const here = new URL('.', import.meta.url).href; export const handler = () => {WHERE}"),
        ("index.mjs", f"#!/usr/bin/env node\nimport {{ fileURLToPath }} from 'url'; import {{ dirname }} from 'path'; const here = new URL('.', import.meta.url).href; export const handler = () => {WHERE}"),
        ("index.ts", f"import {{ fileURLToPath }} from 'node:url'; import {{ dirname }} from 'node:path'; const here: string = new URL('.', import.meta.url).href; export const handler = () => {WHERE}"),
        ("index.cts", f"import {{ fileURLToPath }} from 'node:url'; import {{ dirname }} from 'node:path'; const here: string = new URL('.', import.meta.url).href; export const handler = () => {WHERE}"),
        ("a b'\"é.mjs", f"import {{ fileURLToPath }} from 'node:url'; import {{ dirname }} from 'node:path'; const here = new URL('.', import.meta.url).href; export const handler = () => {WHERE}"),
    ],
)  # fmt: skip
def test_a_module_knows_its_place(pool: SandboxPool, run: Run, filename: str, source: str) -> None:
    assert pool.check(program(source, filename)) == []
    assert run(source, filename=filename).value == ["file:///", f"/{filename}", "/", "file:///x.json"]


@pytest.mark.parametrize(
    "read", ["fs.readFileSync(x)", "fs.promises.readFile(x)", "Deno.readTextFile(x)", "import(x.href)"]
)
def test_a_module_finds_no_files_at_its_place(run: Run, read: str) -> None:
    result = run(
        "import fs from 'node:fs'; const x = new URL('./x.json', import.meta.url);\n"
        f"export const handler = async () => [import.meta.dirname, await {read}];",
        filename="index.mjs",
    )
    assert not result.ok
    if read.startswith("import"):
        assert result.error.startswith('The module "/x.json" is not available to bots.')
    else:
        assert (
            result.error == 'A bot has no read access to "/x.json": it can use its Medplum client and fetch'
        )


def test_lines_and_columns_are_right_in_a_module_that_asks_for_its_place(run: Run) -> None:
    source = "export const handler = () => { void import.meta.url; throw new Error('x') }"
    result = run(source, filename="index.mjs")
    assert f"index.mjs:1:{source.index('new Error') + 1}" in result.stack


@pytest.mark.parametrize(
    ("filename", "source"),
    [
        ("index.ts", ""),
        ("index.ts", "async function handler() {}"),
        ("index.ts", "export default function handler() {}"),
        ("index.ts", "export const handler = 42"),
        ("index.js", "module.exports = function handler() {}"),
        ("index.js", "module.exports = null"),
        ("index.js", "exports.main = () => 1"),
    ],
)
def test_code_without_a_handler_is_told_so(pool: SandboxPool, run: Run, filename: str, source: str) -> None:
    result = run(source, filename=filename)
    assert (result.ok, result.failure, result.error) == (False, "code", NO_HANDLER)
    assert pool.check(program(source, filename)) == [Problem(0, 0, NO_HANDLER)]


@pytest.mark.parametrize("filename", ["index.mjs", "index.cjs"])
def test_the_core_library_is_one_instance(run: Run, filename: str) -> None:
    imports = {
        "index.mjs": "import * as core from '@medplum/core'; export const handler = async (medplum, event) => {",
        "index.cjs": "const core = require('@medplum/core'); exports.handler = async (medplum, event) => {",
    }
    body = """
        const again = await import("@medplum/core");
        return [medplum instanceof core.MedplumClient, core.MedplumClient === again.MedplumClient, core.ContentType.HL7_V2];
    }"""
    assert run(imports[filename] + body, filename=filename).value == [True, True, "x-application/hl7-v2+er7"]


NODE = {
    "assert": "m.strictEqual(1, 1) === undefined",
    "async_hooks": "typeof m.AsyncLocalStorage === 'function'",
    "buffer": "m.Buffer.from('a').toString('hex') === '61'",
    "crypto": "m.createHash('sha256').update('a').digest('hex').startsWith('ca978112') && m.randomUUID().length === 36",
    "events": "new (m.EventEmitter ?? m)().listenerCount('x') === 0",
    "path": "m.join('a', '..', 'b') === 'b'",
    "process": "m.env.HOME === undefined",
    "querystring": "m.parse('a=1').a === '1'",
    "stream": "typeof m.Readable.from(['a']).pipe === 'function'",
    "string_decoder": "new m.StringDecoder('utf8').write(Buffer.from('a')) === 'a'",
    "timers/promises": "typeof m.setTimeout === 'function'",
    "url": "new m.URL('https://a/b').pathname === '/b'",
    "util": "m.inspect({a: 1}).includes('a: 1')",
    "zlib": "m.gunzipSync(m.gzipSync('abc')).toString() === 'abc'",
}


@pytest.mark.parametrize("name", NODE)
def test_harmless_modules_of_node_work(run: Run, name: str) -> None:
    imported = f"import * as m from 'node:{name}'; import * as bare from '{name}';"
    assert (
        run(f"{imported} export const handler = () => {NODE[name]} && m.default === bare.default").value
        is True
    )
    required = (
        f"const m = require('{name}'); exports.handler = () => {NODE[name]} && m === require('node:{name}')"
    )
    assert run(required, filename="index.cjs").value is True


@pytest.mark.parametrize(
    ("filename", "source"),
    [
        ("index.cjs", "require('lodash')"),
        ("index.cjs", "require('./other')"),
        ("index.cjs", "require('node:worker_threads')"),
        ("index.cjs", "exports.handler = () => require('inspector')"),
        ("index.mjs", "import 'lodash'; export const handler = 1"),
        ("index.mjs", "import 'npm:lodash'; export const handler = 1"),
        ("index.mjs", "import 'jsr:@std/path'; export const handler = 1"),
        ("index.mjs", "import 'node:inspector'; export const handler = 1"),
        ("index.mjs", "import 'node:nothing'; export const handler = 1"),
        ("index.mjs", "import 'https://example.com/x.js'; export const handler = 1"),
        ("index.mjs", "import 'file:///etc/passwd'; export const handler = 1"),
        ("index.mjs", "import './other.js'; export const handler = 1"),
        ("index.mjs", "import '/etc/passwd'; export const handler = 1"),
        ("index.mjs", "export const handler = () => import('lodash')"),
    ],
)
def test_a_module_that_is_not_there_is_told_with_those_that_are(run: Run, filename: str, source: str) -> None:
    result = run(source, filename=filename)
    assert (result.ok, result.failure) == (False, "code")
    assert "is not available to bots" in (result.error or ""), result
    assert "Available are @medplum/core" in (result.error or ""), result


def test_bundled_code_that_only_mentions_files_and_network_loads(run: Run) -> None:
    """What bundlers of npm packages leave at the top of a file."""
    names = ["fs", "http", "https", "net", "tls", "os", "child_process", "tty", "dns"]
    requires = ";".join(f"require('{name}')" for name in names)
    assert run(
        f"{requires}; class A extends require('http').Agent {{}}; exports.handler = () => 1", filename="a.js"
    ).ok
    result = run("exports.handler = () => require('fs').readFileSync('/etc/passwd')", filename="a.js")
    assert "A bot has no read access" in (result.error or "")
    assert "--allow" not in str(result)


GLOBALS = [
    "AbortController",
    "AbortSignal",
    "Blob",
    "Buffer",
    "CompressionStream",
    "CustomEvent",
    "DOMException",
    "Event",
    "EventTarget",
    "File",
    "FormData",
    "Headers",
    "Intl",
    "MessageChannel",
    "Promise",
    "ReadableStream",
    "Request",
    "Response",
    "SharedArrayBuffer",
    "TextDecoder",
    "TextEncoder",
    "TransformStream",
    "URL",
    "URLSearchParams",
    "WebAssembly",
    "WebSocket",
    "WritableStream",
    "atob",
    "btoa",
    "clearImmediate",
    "clearInterval",
    "clearTimeout",
    "console",
    "crypto",
    "fetch",
    "global",
    "globalThis",
    "performance",
    "process",
    "queueMicrotask",
    "setImmediate",
    "setInterval",
    "setTimeout",
    "structuredClone",
]


@pytest.mark.parametrize("filename", ["index.mjs", "index.cjs"])
def test_the_globals_of_node_are_there(run: Run, filename: str) -> None:
    export = "export const handler" if filename.endswith("mjs") else "exports.handler"
    assert (
        run(
            f"{export} = () => {GLOBALS}.filter((name) => globalThis[name] === undefined)", filename=filename
        ).value
        == []
    )


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("Object.keys(process.env)", ["NODE_ENV"]),
        ("process.env.SECRET_KEY === undefined", True),
        ("process.cwd()", "/"),
        ("process.version.startsWith('v2')", True),
        ("(process.stdout.write('to the log\\n'), 1)", 1),
        ("new Promise((r) => process.nextTick(() => r(1)))", 1),
        ("new Promise((r) => setImmediate(() => r(1)))", 1),
        ("new Promise((r) => setTimeout(r, 1, 7))", 7),
        ("crypto.randomUUID().length", 36),
        ("crypto.subtle.digest('SHA-256', new Uint8Array(1)).then((d) => d.byteLength)", 32),
        ("atob(btoa('hello'))", "hello"),
        ("new Intl.DateTimeFormat('de', {timeZone: 'Europe/Berlin', timeStyle: 'short'}).format(0)", "01:00"),
        ("new Date(0).getHours()", 0),
        ("new TextDecoder('windows-1252').decode(new Uint8Array([0xe9]))", "é"),
        ("structuredClone({a: new Date(0)}).a.getTime()", 0),
        ("typeof WebAssembly.instantiate", "function"),
    ],
)
def test_the_globals_work(run: Run, expression: str, value: Any) -> None:
    assert run(f"export const handler = () => ({expression})").value == value


TRACE_TS = """import { MedplumClient } from "@medplum/core";

interface Big {
  a: string;
}

// a comment
function inner(value: Big): never {
  throw new TypeError(`bad ${value.a}`);
}

export async function handler(medplum: MedplumClient): Promise<void> {
  await null;
  inner({ a: "value" });
}
"""


def test_a_stack_speaks_of_the_source(run: Run) -> None:
    result = run(TRACE_TS)
    assert result.stack == (
        "TypeError: bad value\n    at inner (index.ts:9:9)\n    at handler (index.ts:14:3)"
    ), result.stack


@pytest.mark.parametrize("filename", ["my-bot.js", "my-bot.mjs"])
def test_a_stack_of_javascript_speaks_of_its_lines(run: Run, filename: str) -> None:
    export = "exports.handler" if filename == "my-bot.js" else "export const handler"
    result = run(
        f"{export} = function () {{ inner() }}\n\n  function inner() {{ throw new Error('x') }}",
        filename=filename,
    )
    column = len(export) + len(" = function () { ") + 1
    lines = (result.stack or "").splitlines()
    assert lines[:2] == ["Error: x", f"    at inner ({filename}:3:28)"]
    assert lines[2].endswith(f"({filename}:1:{column})")


def test_a_stack_names_the_core_library_but_not_the_runtime(run: Run) -> None:
    result = run("export const handler = (medplum) => medplum.readResource('Patient', '')", filename="a.js")
    assert "a.js:1:" in (result.stack or "")
    assert "@medplum/core" in (result.stack or "")
    assert not any(word in str(result) for word in ("blob:", "file:", "main.mjs", "ext:"))


@pytest.mark.parametrize(
    ("filename", "source", "problem"),
    [
        ("index.js", "\nthrow new Error('at the top')", Problem(2, 7, "at the top")),
        ("index.ts", "export const a: number = 1;\n\nnull!.x; export function handler() {}", Problem(3, 7, "Cannot read properties of null (reading 'x')")),
        ("index.mjs", "import { nothing } from '@medplum/core'; export const handler = () => nothing", None),
        ("index.mjs", "await fetch('https://example.com'); export const handler = () => 1", None),
        ("index.mjs", "await new Promise(() => {}); export const handler = () => 1", None),
    ],
)  # fmt: skip
def test_a_dry_load_finds_what_only_running_finds(
    pool: SandboxPool, filename: str, source: str, problem: Problem | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bots.sandbox.pool.CHECK_SECONDS", 0.5)
    found = pool.check(program(source, filename))
    assert len(found) == 1
    assert problem is None or found == [problem]


def test_a_dry_load_of_good_code_finds_nothing_and_does_not_run_the_handler(pool: SandboxPool) -> None:
    assert pool.check(program("export const handler = () => { throw new Error('it ran') }")) == []
