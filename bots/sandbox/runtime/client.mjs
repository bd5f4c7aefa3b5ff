// The way out of the sandbox: `fetch` and the MedplumClient send their requests over the pipe, bound to one call.
import { MedplumClient } from "@medplum/core";
import { toBytes, writeFrame } from "./frames.mjs";
import { loadLibrary } from "./modules.mjs";

const ENDED = "This call of the bot has ended: nothing it left running can send requests any more.";
const NO_AGENT =
  "An agent (proxy, keep-alive, client certificate) has no effect: the server sends a bot's requests, over connections of its own.";
const GLOBAL_AGENT = Symbol.for("undici.globalDispatcher.1"); // where undici keeps what setGlobalDispatcher was given
const BODY_BYTES = 32 * 1024 * 1024; // what the host takes, see process.py
const HEADER_CHARS = 1024 * 1024;
const BODILESS = new Set([101, 204, 205, 304]);
const localFetch = globalThis.fetch;
let lastRequest = 0;

/** A fetch for one call. It stops working when the call ends. */
export function fetchOf(call) {
  return async (input, init = {}) => {
    if (!call || call.closed) throw new TypeError(ENDED);
    if (/^(data|blob):/i.test(input?.url ?? input)) return localFetch(input, init); // nothing leaves the process
    if (init.agent || init.dispatcher || globalThis[GLOBAL_AGENT]?.constructor?.name?.endsWith("ProxyAgent")) {
      call.log.warnOnce(NO_AGENT);
    }
    const request = await toRequest(input, init);
    request.signal?.throwIfAborted();
    if (call.closed) throw new TypeError(ENDED);
    const id = ++lastRequest;
    const { method, url, headers, body, signal, redirect } = request;
    if (body?.length > BODY_BYTES) {
      throw new TypeError(`The request has a body of ${body.length} bytes; at most ${BODY_BYTES} can be sent.`);
    }
    if (url.length + headers.join().length > HEADER_CHARS) {
      throw new TypeError(`The request's address and headers are longer than ${HEADER_CHARS} characters.`);
    }
    return new Promise((resolve, reject) => {
      let stream; // the controller of a body that comes in parts
      const end = () => {
        call.pending.delete(id);
        signal?.removeEventListener("abort", abort);
      };
      const fail = (error) => {
        end();
        if (stream) stream.error(error);
        else reject(error);
      };
      const abort = () => {
        if (call.closed) return; // nothing goes on after the call
        writeFrame({ type: "abort", call: call.id, id });
        fail(signal.reason);
      };
      const receive = (answer, content) => {
        if (answer.error) return fail(new TypeError(answer.error));
        if (answer.type === "response") {
          end();
          return resolve(toResponse(url, answer, content));
        }
        if (answer.status !== undefined) {
          const body = new ReadableStream({
            start: (controller) => void (stream = controller),
            cancel: () => {
              stream = undefined;
              if (call.pending.has(id) && !call.closed) writeFrame({ type: "abort", call: call.id, id });
              end();
            },
          });
          resolve(toResponse(answer.url, answer, body));
        }
        if (content.length) stream?.enqueue(content);
        if (answer.end) {
          end();
          stream?.close();
        }
      };
      signal?.addEventListener("abort", abort, { once: true });
      call.pending.set(id, { receive, fail });
      const more = redirect === "follow" ? {} : { redirect };
      writeFrame({ type: "request", call: call.id, id, method, url, headers, ...more }, body);
    });
  };
}

/** The parts of a request. What MedplumClient sends (plain headers, text or bytes) needs no Request object. */
async function toRequest(input, init) {
  const { body } = init;
  const url = typeof input === "string" ? input : input instanceof URL ? input.href : undefined;
  const simple = body === undefined || body === null || typeof body === "string" || body instanceof Uint8Array;
  const plain = init.headers === undefined || Object.getPrototypeOf(init.headers) === Object.prototype;
  if (url !== undefined && simple && plain && URL.canParse(url)) {
    const headers = Object.entries(init.headers ?? {})
      .filter(([, value]) => value !== undefined)
      .map(([name, value]) => [name.toLowerCase(), String(value)]);
    if (typeof body === "string" && !headers.some(([name]) => name === "content-type")) {
      headers.push(["content-type", "text/plain;charset=UTF-8"]);
    }
    const bytes = typeof body === "string" ? toBytes(body) : (body ?? undefined);
    const { method = "GET", signal, redirect = "follow" } = init;
    return { method: method.toUpperCase(), url, headers, body: bytes, signal, redirect };
  }
  const request = new Request(input, init);
  const bytes = request.body ? new Uint8Array(await request.arrayBuffer()) : undefined;
  const { method, headers, signal, redirect } = request;
  return { method, url: request.url, headers: [...headers], body: bytes, signal, redirect };
}

function toResponse(url, { status, headers, redirected = false }, content) {
  const response = new Response(BODILESS.has(status) ? null : content, { status, headers });
  return Object.defineProperties(response, { url: { value: url }, redirected: { value: redirected } });
}

/** The client the handler gets: the real MedplumClient, signed in as the bot without a token. */
export function clientOf(call, { baseUrl, profile, event, clientHeaders }) {
  const send = fetchOf(call);
  const trace = event.traceId === undefined ? {} : { "X-Trace-Id": event.traceId, traceparent: event.traceId };
  const client = new MedplumClient({
    baseUrl,
    cacheTime: 0,
    storagePrefix: "",
    createPdf: (...args) => loadLibrary("pdf").createPdf(...args),
    fetch: (url, options = {}) => {
      // What the caller has shown (his cookies) is for this server, not for whatever address the bot asks.
      const callers = String(url).startsWith(baseUrl) ? clientHeaders : {};
      return send(url, { ...options, headers: { ...callers, ...options.headers, ...trace } });
    },
  });
  if (profile) {
    // What the client would keep of an answer of auth/me.
    client.sessionDetails = {
      profile,
      project: { resourceType: "Project" },
      membership: { resourceType: "ProjectMembership" },
    };
  }
  return client;
}
