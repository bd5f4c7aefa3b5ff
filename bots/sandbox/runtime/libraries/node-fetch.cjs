// `node-fetch` on the bot's fetch: the answer's `body` is a Node stream, and has `buffer()`, as in version 2.
const { toBody, toNode } = require("./bodies.cjs");

class FetchError extends Error {
  constructor(message, type, cause) {
    super(message, { cause });
    this.name = "FetchError";
    this.type = type;
  }
}

class AbortError extends Error {
  constructor(message = "The operation was aborted.") {
    super(message);
    this.name = "AbortError";
    this.type = "aborted";
  }
}

async function fetch(input, init = {}) {
  const headers = new Headers(init.headers ?? (input instanceof Request ? input.headers : undefined));
  const body = await toBody(init.body, headers);
  let response;
  try {
    response = await globalThis.fetch(input, { ...init, headers, ...(body === undefined ? {} : { body }) });
  } catch (error) {
    if (error?.name === "AbortError") throw new AbortError();
    throw new FetchError(`request to ${typeof input === "string" ? hostOf(input) : "the server"} failed, reason: ${error.message}`, "system", error);
  }
  return asNode(response);
}

const hostOf = (url) => (URL.canParse(url) ? new URL(url).host : url);

function asNode(response) {
  let stream;
  const web = response.body;
  return Object.defineProperties(response, {
    body: { get: () => (web === null ? null : (stream ??= toNode(web))), configurable: true },
    buffer: { value: async () => Buffer.from(await response.arrayBuffer()) },
    textConverted: { value: () => response.text() },
    size: { value: 0 },
    timeout: { value: 0 },
  });
}

Object.defineProperty(exports, "__esModule", { value: true });
module.exports = Object.assign(fetch, {
  default: fetch,
  fetch,
  Headers,
  Request,
  Response,
  FormData,
  Blob,
  File,
  FetchError,
  AbortError,
  isRedirect: (status) => [301, 302, 303, 307, 308].includes(status),
});
