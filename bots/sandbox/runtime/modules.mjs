// Loading a bot: ES modules by import, CommonJS by a function around the code; both get the same few modules.
import * as core from "@medplum/core";
import { libraryLoader } from "./library.mjs";
import { nameScript, splitMap } from "./trace.mjs";
import available from "./modules.json";

const builtins = new Set([...available.provided, ...available.inert]);
const libraries = new Map(Object.entries({ ...available.libraries, ...available.aliases, ...available.replaced }));
const coreForRequire = Object.defineProperty({ ...core }, "__esModule", { value: true });
const fhirtypes = Object.defineProperty({}, "__esModule", { value: true });
const libraryOf = libraryLoader(new URL("./", import.meta.url).href, require);

const missing = (name) =>
  Object.assign(
    new Error(
      available.refusal
        .replace("{name}", name)
        .replace("{hint}", available.hints[name] ?? "")
        .replace("{libraries}", ["@medplum/core", "@medplum/fhirtypes (types only)", ...Object.keys(available.libraries)].join(", "))
        .replace("{provided}", available.provided.join(", ")),
    ),
    { code: "MODULE_NOT_FOUND" },
  );

function require(name) {
  if (name === "@medplum/core") return coreForRequire;
  if (name === "@medplum/fhirtypes") return fhirtypes;
  const bare = String(name).replace(/^node:/, "");
  if (libraries.has(name) || bare in available.replaced) return libraryOf(libraries.get(bare));
  if (builtins.has(bare)) return globalThis.process.getBuiltinModule(bare);
  throw missing(name);
}
require.resolve = (name) => name;
require.cache = {};

// What the import map's entries for libraries ask.
Object.defineProperty(globalThis, Symbol.for("fhirbots.require"), { value: require });

/** A library that the runtime itself uses. */
export const loadLibrary = (slug) => libraryOf(slug);

/** What Medplum's bots find in their global scope besides what Node gives. */
Object.assign(globalThis, { ContentType: core.ContentType, Hl7Message: core.Hl7Message, MedplumClient: core.MedplumClient });
const hidden = (name, value) => Object.defineProperty(globalThis, name, { value, writable: true, configurable: true });
hidden("require", require);
hidden("module", { exports: {}, id: ".", children: [], paths: [] });
hidden("exports", globalThis.module.exports);
hidden("__filename", "/bot");
hidden("__dirname", "/");

/** Load the code of a bot and return its handler. Throws what the code throws, or a sentence saying what is wrong. */
export async function loadHandler({ filename, module }, source) {
  globalThis.__filename = globalThis.module.filename = filename;
  const [code, map] = splitMap(source);
  const exports = module === "esm" ? await loadModule(filename, code, map) : loadScript(filename, code, map);
  if (typeof exports?.handler !== "function") {
    throw new Error("The code does not export a function named handler.");
  }
  return exports.handler;
}

async function loadModule(filename, source, map) {
  const head = source.includes("import.meta") ? placeOf(filename) : "";
  const text = head && source.startsWith("#!") ? `//${source}` : source;
  const url = URL.createObjectURL(new Blob([head, text], { type: "text/javascript" }));
  nameScript(url, filename, map, head.length);
  try {
    return await import(url);
  } finally {
    URL.revokeObjectURL(url);
  }
}

/** What goes before a module's first line, and tells it where it is: its own file, in a folder where nothing can be read. */
function placeOf(filename) {
  const place = { url: `file:///${encodeURIComponent(filename)}`, filename: `/${filename}`, dirname: "/" };
  return `Object.assign(import.meta,${JSON.stringify(place)});`;
}

/** The resolver's many ways to say that a module is not there, as one sentence; any other error as it is. */
export function clearError(error) {
  const linked = error instanceof SyntaxError && /requested module '(?:node:)?([^']+)' does not provide/.exec(error.message);
  if (linked && available.refused.includes(linked[1])) return missing(linked[1]);
  if (!(error instanceof Error) || error.code !== "ERR_MODULE_NOT_FOUND") return error;
  const message = String(error.message);
  const [, name] =
    /^Import "([^"]+)" not a dependency/.exec(message) ?? /package "([^"]+)"/.exec(message) ??
    /"([^"]+)"/.exec(message) ?? ["", message];
  return missing(name);
}

const HEAD = "(function (exports, require, module, __filename, __dirname) {";

function loadScript(filename, source, map) {
  const url = `bot:///${encodeURIComponent(filename)}`;
  nameScript(url, filename, map, HEAD.length);
  // Indirect eval: global scope and sloppy mode, as Node gives CommonJS; lines stay those of the source.
  const text = source.startsWith("#!") ? `//${source}` : source;
  const run = (0, eval)(`${HEAD}${text}\n})\n//# sourceURL=${url}`);
  const module = { exports: {}, id: ".", filename, loaded: false, children: [], paths: [] };
  run.call(module.exports, module.exports, require, module, filename, "/");
  module.loaded = true;
  return module.exports;
}
