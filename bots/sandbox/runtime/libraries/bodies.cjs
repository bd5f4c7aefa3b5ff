// Bodies as Node's libraries give and take them.

/** A request body that `fetch` understands: Node streams and form-data become bytes, with the headers they know. */
exports.toBody = async function (body, headers) {
  if (body === undefined || body === null) return undefined;
  if (typeof body.getHeaders === "function" && typeof body.getBoundary === "function") {
    for (const [name, value] of Object.entries(body.getHeaders())) if (!headers.has(name)) headers.set(name, value);
  }
  if (typeof body.pipe === "function" || (typeof body === "object" && Symbol.asyncIterator in body && !(body instanceof ReadableStream))) {
    return await collect(body);
  }
  return body;
};

async function collect(stream) {
  if (typeof stream[Symbol.asyncIterator] !== "function" || typeof stream.getBuffer === "function") {
    const { PassThrough } = require("stream");
    stream = stream.pipe(new PassThrough()); // old streams, as form-data's, cannot be iterated
  }
  const chunks = [];
  for await (const chunk of stream) chunks.push(Buffer.from(chunk));
  return Buffer.concat(chunks);
}

/** A web stream as a Node stream. */
exports.toNode = (stream) => require("stream").Readable.fromWeb(stream ?? new Blob([]).stream());
