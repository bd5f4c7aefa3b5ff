// Timers that end with the call that set them: what is left over of one call does nothing during the next.
const native = {};
for (const name of ["setTimeout", "setInterval", "setImmediate", "clearTimeout", "clearInterval", "clearImmediate"]) {
  native[name] = globalThis[name];
}

/** Make the global timers belong to the call that `currentCall()` names; it has a set `timers` and a flag `closed`. */
export function installTimers(currentCall) {
  const wrap = (name, clear, repeats) =>
    function (callback, ...rest) {
      if (typeof callback !== "function") return native[name](callback, ...rest); // throws what it always throws
      const call = currentCall();
      let timer;
      const run = (...args) => {
        if (!repeats) call?.timers.delete(timer);
        if (!call?.closed) return callback(...args);
      };
      timer = native[name](run, ...rest);
      if (call?.closed) native[clear](timer);
      else call?.timers.set(timer, clear);
      return timer;
    };
  const wait = (name) => (...args) => new Promise((resolve) => globalThis[name](resolve, ...args));
  const promisified = Symbol.for("nodejs.util.promisify.custom");
  const replace = (name, clear, repeats = false) => {
    const timer = wrap(name, clear, repeats);
    Object.defineProperty(timer, "name", { value: name });
    globalThis[name] = timer;
    return timer;
  };
  replace("setTimeout", "clearTimeout")[promisified] = (ms, value) => wait("setTimeout")(ms, value);
  replace("setInterval", "clearInterval", true);
  replace("setImmediate", "clearImmediate")[promisified] = (value) => wait("setImmediate")(value);
}

/** End the timers of a call. */
export function clearTimers(call) {
  for (const [timer, clear] of call.timers) native[clear](timer);
  call.timers.clear();
}
