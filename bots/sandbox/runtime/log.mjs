// The console of a bot: every line goes to the host as it is written, so that a bot that is stopped has still told its
// story. A flood is cut: the first lines and the last lines are kept, with a line between that counts what was left out.
import { inspect } from "./globals.mjs";
import { writeFrame } from "./frames.mjs";

const HEAD_LINES = 1000;
const HEAD_CHARS = 131072;
const TAIL_LINES = 100;
const TAIL_CHARS = 32768;
const LINE_CHARS = 16384;
const TAIL_PERIOD = 250; // ms between two snapshots of a flood's tail

const INSPECT = { depth: 4, iterableLimit: 100, strAbbreviateSize: 4096, colors: false };

/** The log of one call. */
export class Log {
  constructor(call) {
    this.call = call;
    this.started = performance.now();
    this.lines = 0;
    this.chars = 0;
    this.tail = [];
    this.tailChars = 0;
    this.skipped = 0;
    this.snapshot = 0;
    this.warned = new Set();
  }

  /** Add a line. `level` is the console's method: debug, log, info, warn or error. */
  write(level, text) {
    if (text.length > LINE_CHARS) {
      text = `${text.slice(0, LINE_CHARS)}… (${text.length - LINE_CHARS} more characters left out)`;
    }
    const offset = performance.now() - this.started;
    if (this.lines < HEAD_LINES && this.chars + text.length <= HEAD_CHARS) {
      this.lines += 1;
      this.chars += text.length;
      writeFrame({ type: "log", call: this.call, level, offset, text });
      return;
    }
    this.lines = HEAD_LINES; // the head is closed, also to a short line after a long one
    this.tail.push([level, offset, text]);
    this.tailChars += text.length;
    while (this.tail.length > TAIL_LINES || this.tailChars > TAIL_CHARS) {
      this.tailChars -= this.tail.shift()[2].length;
      this.skipped += 1;
    }
    if (offset - this.snapshot > TAIL_PERIOD) {
      this.snapshot = offset;
      this.flush();
    }
  }

  /** Add a warning, unless it was given before. */
  warnOnce(text) {
    if (this.warned.has(text)) return;
    this.warned.add(text);
    this.write("warn", text);
  }

  /** Tell the host the present tail of a log that was cut; a later tail replaces an earlier one. */
  flush() {
    if (this.tail.length) writeFrame({ type: "tail", call: this.call, skipped: this.skipped, lines: this.tail });
  }
}

/** Text of a console call's arguments, with the placeholders of console.log (%s %d %i %f %j %o %O %c %%). */
export function format(args) {
  let index = 0;
  let text = "";
  if (typeof args[0] === "string") {
    index = 1;
    text = args[0];
    if (args.length > 1 && text.includes("%")) {
      text = text.replace(/%[sdifjoOc%]/g, (placeholder) => {
        if (placeholder === "%%") return "%";
        if (index >= args.length) return placeholder;
        return fill(placeholder, args[index++]);
      });
    }
  }
  for (; index < args.length; index++) text += (index ? " " : "") + show(args[index]);
  return text;
}

function fill(placeholder, value) {
  switch (placeholder) {
    case "%s":
      return show(value);
    case "%d":
      return typeof value === "bigint" ? `${value}n` : String(Number(value));
    case "%i":
      return String(Number.parseInt(value, 10));
    case "%f":
      return String(Number.parseFloat(value));
    case "%j":
      return String(JSON.stringify(value));
    case "%c":
      return "";
    default:
      return inspect(value, INSPECT);
  }
}

/** A value as the console shows it: strings as they are, anything else inspected. */
export function show(value) {
  if (typeof value === "string") return value;
  try {
    return inspect(value, INSPECT);
  } catch (error) {
    return `[an object that cannot be shown: ${error?.message}]`;
  }
}

/** Make the global console write through `log(level, text)`. */
export function captureConsole(log) {
  let indent = "";
  const counts = new Map();
  const timers = new Map();
  const write = (level, args) => {
    const text = format(args);
    log(level, indent ? indent + text.replaceAll("\n", `\n${indent}`) : text);
  };
  const elapsed = (label, rest) => {
    if (!timers.has(label)) return write("warn", [`Timer '${label}' does not exist`]);
    write("log", [`${label}: ${(performance.now() - timers.get(label)).toFixed(3)}ms`, ...rest]);
  };
  const level = (name) => (...args) => write(name, args);
  Object.assign(console, {
    debug: level("debug"),
    log: level("log"),
    info: level("info"),
    warn: level("warn"),
    error: level("error"),
    trace(...args) {
      const { stack } = new Error();
      write("debug", [`Trace${args.length ? `: ${format(args)}` : ""}\n${String(stack).split("\n").slice(1).join("\n")}`]);
    },
    dir: (value, options) => write("log", [inspect(value, { ...INSPECT, ...options, colors: false })]),
    dirxml: level("log"),
    table: level("log"),
    assert(condition, ...args) {
      if (!condition) write("error", args.length ? ["Assertion failed:", ...args] : ["Assertion failed"]);
    },
    count(label = "default") {
      counts.set(label, (counts.get(label) ?? 0) + 1);
      write("log", [`${label}: ${counts.get(label)}`]);
    },
    countReset: (label = "default") => counts.delete(label),
    time: (label = "default") => timers.set(label, performance.now()),
    timeLog: (label = "default", ...rest) => elapsed(label, rest),
    timeEnd(label = "default") {
      elapsed(label, []);
      timers.delete(label);
    },
    group(...args) {
      if (args.length) write("log", args);
      indent += "  ";
    },
    groupCollapsed: (...args) => console.group(...args),
    groupEnd() {
      indent = indent.slice(2);
    },
    clear() {},
    profile() {},
    profileEnd() {},
    timeStamp() {},
  });
}
