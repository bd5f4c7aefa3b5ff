// The part of `undici` that bots use, on the bot's fetch. Connections are the host's business: agents have no effect, which
// the bot's log says when it uses one.
const { toBody, toNode } = require("./bodies.cjs");

class Dispatcher {
  close() { return Promise.resolve(); }
  destroy() { return Promise.resolve(); }
}
class Agent extends Dispatcher {}
class ProxyAgent extends Dispatcher {}
class EnvHttpProxyAgent extends Dispatcher {}

const refuse = (name) =>
  class {
    constructor() {
      throw new Error(`undici's ${name} is not available to bots: connections are made by the server. Use fetch or request.`);
    }
  };

const GLOBAL_AGENT = Symbol.for("undici.globalDispatcher.1");

async function fetch(input, init = {}) {
  return globalThis.fetch(input, init);
}

async function request(url, { method = "GET", headers = {}, body, query, signal, dispatcher, maxRedirections = 0 } = {}) {
  const target = new URL(url);
  for (const [name, value] of Object.entries(query ?? {})) target.searchParams.append(name, value);
  const sent = new Headers(Array.isArray(headers) ? pairs(headers) : headers);
  const content = await toBody(body, sent);
  const redirect = maxRedirections > 0 ? "follow" : "manual";
  const response = await globalThis.fetch(target, { method, headers: sent, body: content, signal, dispatcher, redirect });
  const stream = toNode(response.body);
  const bytes = async () => {
    const chunks = [];
    for await (const chunk of stream) chunks.push(Buffer.from(chunk));
    return Buffer.concat(chunks);
  };
  Object.assign(stream, {
    text: async () => (await bytes()).toString("utf8"),
    json: async () => JSON.parse((await bytes()).toString("utf8")),
    arrayBuffer: async () => new Uint8Array(await bytes()).buffer,
    bytes: async () => new Uint8Array(await bytes()),
    blob: async () => new Blob([await bytes()]),
    dump: async () => void (await bytes()),
  });
  const answered = {};
  for (const [name, value] of response.headers) {
    answered[name] = name in answered ? [answered[name], value].flat() : value;
  }
  return { statusCode: response.status, headers: answered, trailers: {}, opaque: null, body: stream };
}

const pairs = (flat) => flat.reduce((all, item, index) => (index % 2 ? all.at(-1).push(item) : all.push([item]), all), []);

module.exports = {
  fetch,
  request,
  Headers,
  Request,
  Response,
  FormData,
  File,
  Dispatcher,
  Agent,
  Pool: refuse("Pool"),
  Client: refuse("Client"),
  ProxyAgent,
  EnvHttpProxyAgent,
  setGlobalDispatcher(dispatcher) {
    globalThis[GLOBAL_AGENT] = dispatcher;
  },
  getGlobalDispatcher: () => globalThis[GLOBAL_AGENT] ?? new Agent(),
};
