// `node:timers/promises` on the global timers, which end with the call.
function wait(set, clear, value, signal) {
  return new Promise((resolve, reject) => {
    if (signal?.aborted) return reject(abortError(signal));
    const timer = set(() => {
      signal?.removeEventListener("abort", abort);
      resolve(value);
    });
    const abort = () => {
      clear(timer);
      reject(abortError(signal));
    };
    signal?.addEventListener("abort", abort, { once: true });
  });
}

const abortError = (signal) =>
  Object.assign(new Error("The operation was aborted", { cause: signal.reason }), { name: "AbortError", code: "ABORT_ERR" });

exports.setTimeout = (ms, value, { signal } = {}) => wait((run) => setTimeout(run, ms), clearTimeout, value, signal);
exports.setImmediate = (value, { signal } = {}) => wait((run) => setImmediate(run), clearImmediate, value, signal);
exports.setInterval = async function* (ms, value, options = {}) {
  for (;;) {
    await exports.setTimeout(ms, undefined, options);
    yield value;
  }
};
exports.scheduler = { wait: (ms, options) => exports.setTimeout(ms, undefined, options), yield: () => exports.setImmediate() };
