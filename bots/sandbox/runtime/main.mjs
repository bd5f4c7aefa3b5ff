// The process of a bot. It waits for frames from the host: "invoke" runs the handler (the first one brings the code),
// "check" only loads the code, "response" answers a request the bot has made.
import { exit, setEnvironment, tameProcess } from "./globals.mjs";
import { AsyncLocalStorage } from "node:async_hooks";
import { Hl7Message, OperationOutcomeError } from "@medplum/core";
import "@medplum/fhirtypes";
import { clientOf, fetchOf } from "./client.mjs";
import { readFrames, toBytes, toJson, toText, writeFrame } from "./frames.mjs";
import { captureConsole, Log, show } from "./log.mjs";
import { clearError, loadHandler } from "./modules.mjs";
import { clearTimers, installTimers } from "./timers.mjs";
import { cleanText, installTraces } from "./trace.mjs";

const RESULT_BYTES = 16 * 1024 * 1024;
const CHUNK_BYTES = 256 * 1024;
const STACK_CHARS = 16384;
const GOOD_OUTCOMES = new Set(["ok", "created", "not-modified", "accepted"]);

const calls = new AsyncLocalStorage(); // ties console, fetch and errors to the call that caused them
let current; // the call that runs now
let handler;

const log = (level, text) => {
  const call = calls.getStore() ?? current;
  if (call && !call.closed) call.log.write(level, text);
};
captureConsole(log);
installTraces();
installTimers(() => calls.getStore() ?? current);
globalThis.fetch = (input, init) => fetchOf(calls.getStore())(input, init);
Object.defineProperty(globalThis, "process", {
  configurable: true,
  get: ((original) => () => {
    Object.defineProperty(globalThis, "process", original);
    tameProcess(log);
    return globalThis.process;
  })(Object.getOwnPropertyDescriptor(globalThis, "process")),
});

addEventListener("unhandledrejection", (event) => {
  event.preventDefault(); // the handler's own result decides; a promise nobody awaited is told in the log
  log("error", `Unhandled rejection: ${explain(event.reason)}`);
});
addEventListener("error", (event) => {
  event.preventDefault(); // an error in a timer or listener: nobody could catch it, so it ends the call
  const call = calls.getStore() ?? current;
  if (call) finishWithError(call, event.error);
});

async function load(program, body) {
  const source = toText(body);
  if (/\bprocess\b/.test(source)) void globalThis.process;
  return await loadHandler(program, source);
}

async function invoke(header, body) {
  setEnvironment(header.env);
  const call = { id: header.call, closed: false, pending: new Map(), timers: new Map(), log: new Log(header.call) };
  current = call;
  await calls.run(call, async () => {
    try {
      if (header.program) handler = await load(header.program, body);
      const { event } = header;
      if (header.inputKind === "hl7" && event.input) {
        try {
          event.input = Hl7Message.parse(event.input);
        } catch (error) {
          const message = `The input could not be parsed as an HL7 v2 message: ${error.message}`;
          return finish(call, { ok: false, failure: "input", error: message });
        }
      }
      if (header.streams) event.responseStream = streamOf(call);
      const value = await handler(clientOf(call, header), event);
      if (value instanceof Response) finish(call, ...(await describeResponse(value)));
      else finish(call, ...describeValue(value, header.inputKind));
    } catch (error) {
      finishWithError(call, error);
    }
  });
}

/** event.responseStream: the answer in parts while the bot runs. Writing waits until the host takes it. */
function streamOf(call) {
  let state = "new";
  const send = (op, more, body) => {
    if (call.closed) throw new Error("The call has ended: its response cannot be written any more.");
    writeFrame({ type: "stream", call: call.id, op, ...more }, body);
  };
  const stream = {
    startStreaming(status = 200, headers = {}) {
      if (state !== "new") throw new Error("The response has been started before.");
      const { status: code, headers: pairs } = new Response(null, { status, headers });
      state = "started";
      send("start", { status: code, headers: [...pairs] });
    },
    write(chunk) {
      if (state === "ended") throw new Error("The response has been ended before.");
      if (state === "new") stream.startStreaming();
      let bytes;
      if (typeof chunk === "string") bytes = toBytes(chunk);
      else if (chunk instanceof ArrayBuffer) bytes = new Uint8Array(chunk);
      else if (ArrayBuffer.isView(chunk)) bytes = new Uint8Array(chunk.buffer, chunk.byteOffset, chunk.byteLength);
      else throw new TypeError("A chunk must be a string or bytes.");
      for (let at = 0; at < bytes.length; at += CHUNK_BYTES) send("write", {}, bytes.subarray(at, at + CHUNK_BYTES));
      return true;
    },
    end(chunk) {
      if (state === "ended") return;
      if (chunk !== undefined && chunk !== null) stream.write(chunk);
      if (state === "new") stream.startStreaming();
      state = "ended";
      send("end", {});
    },
  };
  return stream;
}

function finish(call, result, body) {
  if (call.closed) return;
  call.closed = true;
  clearTimers(call);
  call.pending.clear(); // never settled: what would go on from there is over
  call.log.flush();
  writeFrame({ type: "result", call: call.id, ...result }, body);
}

function finishWithError(call, error) {
  if (!call.closed) finish(call, describeError(clearError(error)));
}

/** [header of the result, its body] for what the handler returned. The body is JSON text, or the bytes of a binary. */
function describeValue(value, inputKind) {
  try {
    return encodeValue(value, inputKind);
  } catch (error) {
    return [{ ok: false, failure: "output", error: `The result cannot be sent as JSON: ${error?.message ?? error}` }];
  }
}

function encodeValue(value, inputKind) {
  if (value === undefined) return [{ ok: true, kind: "undefined" }];
  if (value instanceof ArrayBuffer || ArrayBuffer.isView(value)) {
    const bytes = value instanceof ArrayBuffer ? new Uint8Array(value) : new Uint8Array(value.buffer, value.byteOffset, value.byteLength);
    return sized({ ok: true, kind: "binary" }, bytes);
  }
  if (isHl7(value)) return sized({ ok: true, kind: "hl7" }, toBytes(toJson(value.toString())));
  const text = toJson(value);
  if (text === undefined) {
    if (typeof value === "object") return [{ ok: true, kind: "undefined" }]; // its toJSON() says so
    return [{ ok: false, failure: "output", error: `The handler returned a ${typeof value}, which cannot be sent.` }];
  }
  const kind = text === "null" ? "null" : typeof value === "object" ? kindOfJson(text) : typeof value;
  const failed = value?.resourceType === "OperationOutcome" && !GOOD_OUTCOMES.has(value.id);
  const outcome = value?.resourceType === "OperationOutcome";
  return sized({ ok: !failed, failure: failed ? "code" : undefined, kind, outcome }, toBytes(text));
}

/** [header of the result, its body] for a Response the handler returned: the whole HTTP answer, made by the bot. */
async function describeResponse(response) {
  if (response.type === "error" || response.bodyUsed) {
    const error = "The Response that the handler returned cannot be sent: its body has been read, or it is an error.";
    return [{ ok: false, failure: "output", error }];
  }
  const body = new Uint8Array(await response.arrayBuffer());
  return sized({ ok: true, kind: "response", status: response.status, headers: [...response.headers] }, body);
}

/** Of an object that JSON made: a Date is a string then. */
function kindOfJson(text) {
  if (text[0] === '"') return "string";
  if (text === "true" || text === "false") return "boolean";
  return text[0] === "{" || text[0] === "[" ? "object" : "number";
}

function sized(header, body) {
  if (body.length <= RESULT_BYTES) return [header, body];
  const error = `The result has ${body.length} bytes; at most ${RESULT_BYTES} can be sent.`;
  return [{ ok: false, failure: "output", error }];
}

/** An Hl7Message, also one of a copy of @medplum/core that the author bundled. */
function isHl7(value) {
  return value instanceof Hl7Message || (Array.isArray(value?.segments) && typeof value.buildAck === "function");
}

/** The header of the result for what the handler threw. */
function describeError(error) {
  const result = { ok: false, failure: "code" };
  try {
    const outcome = error instanceof OperationOutcomeError || error instanceof Error ? error.outcome : error;
    if (outcome?.resourceType === "OperationOutcome") result.outcome = JSON.parse(toJson(outcome));
    result.error = error instanceof Error ? cleanText(String(error.message || error.name)) : explain(error);
    if (error instanceof Error) result.stack = cleanText(String(error.stack)).slice(0, STACK_CHARS);
    if (error instanceof RangeError && /allocat|memory/i.test(error.message)) {
      result.failure = "memory";
      result.error = `The bot used more memory than it may have: ${result.error}`;
    }
  } catch (second) {
    result.error = `The bot threw something that cannot be shown: ${second?.message}`; // a getter of it threw
  }
  return result;
}

/** An error as the log shows it: message and stack; anything else as pretty JSON. */
function explain(error) {
  try {
    if (error instanceof Error) return cleanText(`${error.message}\n${error.stack}`);
    if (typeof error === "object" && error !== null) return JSON.stringify(error, undefined, 2);
    return show(error);
  } catch {
    return show(error);
  }
}

async function check(header, body) {
  const call = { id: header.call, closed: false, pending: new Map(), timers: new Map(), log: new Log(header.call) };
  current = call;
  await calls.run(call, async () => {
    try {
      await load(header.program, body);
      finish(call, { ok: true, kind: "undefined" });
    } catch (error) {
      finish(call, describeError(clearError(error)));
    }
  });
}

function receive(header, body) {
  if (header.type === "response" || header.type === "part") {
    current?.pending.get(header.id)?.receive(header, body);
  } else if (header.type === "invoke") {
    invoke(header, body);
  } else if (header.type === "check") {
    check(header, body);
  } else {
    exit(70);
  }
}

writeFrame({ type: "ready" });
await readFrames(receive);
