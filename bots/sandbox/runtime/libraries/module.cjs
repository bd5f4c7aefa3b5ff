// `node:module`: bundles in ES modules take their `require` from it, which is the one of every Bot.
const original = process.getBuiltinModule("module");
module.exports = { ...original, createRequire: () => globalThis.require };
