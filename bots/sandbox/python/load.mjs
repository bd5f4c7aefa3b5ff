// Loads Pyodide from the files beside this one, with the packages that bots find: `fhirbots` (the client) and `hl7`.
import { folder, readFile } from "./host.mjs";
import createPyodideModule from "./pyodide.asm.mjs";
import { loadPyodide } from "./pyodide.mjs";
import lock from "./lock.json" with { type: "json" };

export const PACKAGES = "/lib/packages.zip";

/** Pyodide, from a snapshot of its memory if there is one in `options`. */
export const load = (options) =>
  loadPyodide({
    indexURL: folder,
    createPyodideModule,
    lockFileContents: lock,
    env: { HOME: "/home/bot", TZ: "UTC", LANG: "C.UTF-8" },
    fsInit: async (files) => files.writeFile(PACKAGES, readFile(`${folder}packages.zip`)),
    ...options,
  });
