// What the process of a Python bot needs of Deno, taken before anything else runs; then the globals are tidied.
//
// As in the JavaScript runtime this is hygiene, not the boundary: Python reaches all of JavaScript (`import js`), and finds
// a process without permissions, confined by the operating system.
const deno = globalThis.Deno;

export const read = deno.stdin.readSync.bind(deno.stdin);
export const write = deno.stdout.writeSync.bind(deno.stdout);
export const readFile = deno.readFileSync;
export const writeFile = deno.writeFileSync;
export const exit = deno.exit;
/** Give up the one permission: to read the folder of this runtime. */
export const revokeReading = () => deno.permissions.revokeSync({ name: "read" });

export const folder = new URL(".", import.meta.url).pathname;

const HIDDEN = [
  "Worker", "BroadcastChannel", "EventSource", "Cache", "CacheStorage", "caches", "Storage", "localStorage",
  "sessionStorage", "alert", "confirm", "prompt", "close", "closed", "window", "Window", "location", "Location", "onload",
  "onunload", "onbeforeunload", "WebSocket",
];
for (const name of HIDDEN) delete globalThis[name];

const { stdin, stdout, stderr, exit: _, ...kept } = Object.getOwnPropertyDescriptors(deno);
Object.defineProperty(globalThis, "Deno", { value: Object.defineProperties({}, kept), enumerable: false });

// Deno's console writes into the pipe to the host; Pyodide and bots' JavaScript use it at times.
let note = () => {};
/** Send what is written to the console to `note(level, text)`. */
export const sendConsoleTo = (function_) => void (note = function_);
for (const name of Object.keys(console)) {
  const level = { debug: "debug", trace: "debug", info: "info", warn: "warn", error: "error", assert: "error" }[name] ?? "log";
  console[name] = (...args) => note(level, args.map((each) => (typeof each === "string" ? each : deno.inspect(each))).join(" "));
}

// An error that nobody catches is told in the log; the handler's own result decides.
const tell = (event, error) => {
  event.preventDefault();
  note("error", `Uncaught in JavaScript: ${error?.stack ?? error}`);
};
addEventListener("error", (event) => tell(event, event.error));
addEventListener("unhandledrejection", (event) => tell(event, event.reason));
