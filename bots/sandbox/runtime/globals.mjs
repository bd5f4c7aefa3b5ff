// What a bot finds in its global scope. Evaluated before anything else, so that @medplum/core sees it too.
//
// Removing globals is hygiene, not the boundary: the process has no permissions and the operating system confines it.
// It keeps bots from storing data where the next process could find it, from reading the pipe by accident (`prompt`),
// and makes libraries see a server-side JavaScript like the one Medplum's bots run in.

const deno = globalThis.Deno;

export const readInput = deno.stdin.read.bind(deno.stdin);
export const writeOutput = deno.stdout.writeSync.bind(deno.stdout);
export const inspect = deno.inspect;
export const exit = deno.exit;

const HIDDEN = [
  "Worker", "BroadcastChannel", "EventSource", "Cache", "CacheStorage", "caches", "Storage", "localStorage",
  "sessionStorage", "alert", "confirm", "prompt", "close", "closed", "window", "Window", "location", "Location", "onload",
  "onunload", "onbeforeunload",
];
for (const name of HIDDEN) delete globalThis[name];

// Deno's own code for Node's modules uses this global, so it stays, without the pipe to the host.
const { stdin, stdout, stderr, exit: _, ...kept } = Object.getOwnPropertyDescriptors(deno);
Object.defineProperty(globalThis, "Deno", { value: Object.defineProperties({}, kept), enumerable: false });

// @medplum/core names WebSocket when it is loaded, so it has to exist.
globalThis.WebSocket = class WebSocket extends EventTarget {
  constructor() {
    super();
    throw new Error("A bot cannot open a WebSocket: its process has no network. Use fetch.");
  }
};
globalThis.global ??= globalThis;

const environment = {};

/** Make these the variables of `process.env`. */
export function setEnvironment(variables = {}) {
  for (const name of Object.keys(environment)) delete environment[name];
  Object.assign(environment, { NODE_ENV: "production" }, variables);
}
setEnvironment();

/**
 * Give `process` the environment of the bot, and an `exit` and output streams that stay inside the call.
 * Touching `process` costs Deno 8 ms, so this waits until a bot's code names it.
 *
 * @param {(level: string, text: string) => void} log
 */
export function tameProcess(log) {
  const { process } = globalThis;
  if (process.fhirbots) return;
  const fixed = (value) => ({ value, writable: true, configurable: true, enumerable: true });
  const stream = (level) => ({
    isTTY: false,
    columns: 80,
    write(text) {
      log(level, String(text).replace(/\n$/, ""));
      return true;
    },
    end() {},
    on() { return this; },
    once() { return this; },
    emit() { return false; },
  });
  const refuse = (name) => () => {
    throw new Error(`process.${name}() is not available to bots: return from the handler, or throw, to end the call.`);
  };
  Object.defineProperties(process, {
    fhirbots: { value: true },
    env: fixed(environment),
    argv: fixed(["node", "bot"]),
    cwd: fixed(() => "/"),
    stdout: fixed(stream("log")),
    stderr: fixed(stream("error")),
    exit: fixed(refuse("exit")),
    reallyExit: fixed(refuse("reallyExit")),
    abort: fixed(refuse("abort")),
    kill: fixed(refuse("kill")),
  });
}
