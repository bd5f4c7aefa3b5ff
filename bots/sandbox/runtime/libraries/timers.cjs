// `node:timers`: the global ones, which end with the call.
const names = ["setTimeout", "setInterval", "setImmediate", "clearTimeout", "clearInterval", "clearImmediate"];
for (const name of names) exports[name] = globalThis[name];
Object.defineProperty(exports, "promises", { enumerable: true, get: () => require("timers/promises") });
