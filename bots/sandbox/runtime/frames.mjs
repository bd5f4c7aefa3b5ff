// Frames on the pipe to the host: u32 length of the JSON, u32 length of the body (big-endian), the JSON, the body.
import { exit, readInput, writeOutput } from "./globals.mjs";

const encoder = new TextEncoder();
const decoder = new TextDecoder();
const EMPTY = new Uint8Array(0);

/**
 * JSON text of a value in which every string is well-formed Unicode: a lone surrogate would make bytes no UTF-8 reader
 * accepts. Returns undefined where JSON.stringify does.
 */
export function toJson(value) {
  const text = JSON.stringify(value);
  if (text === undefined || !/\\ud[89a-f]/i.test(text)) return text;
  return JSON.stringify(value, (_, item) => (typeof item === "string" ? item.toWellFormed() : item));
}

/** Bytes of a text in UTF-8. */
export const toBytes = (text) => encoder.encode(text);
/** Text of bytes in UTF-8. */
export const toText = (bytes) => decoder.decode(bytes);

/** Write one frame, waiting until the pipe has taken all of it: a bot in an endless loop has still sent its log. */
export function writeFrame(header, body = EMPTY) {
  const json = encoder.encode(toJson(header));
  const small = body.length <= 65536;
  const frame = new Uint8Array(8 + json.length + (small ? body.length : 0));
  const view = new DataView(frame.buffer);
  view.setUint32(0, json.length);
  view.setUint32(4, body.length);
  frame.set(json, 8);
  if (small) frame.set(body, 8 + json.length);
  writeAll(frame);
  if (!small) writeAll(body);
}

function writeAll(bytes) {
  for (let done = 0; done < bytes.length; ) done += writeOutput(bytes.subarray(done));
}

/** Call `receive(header, body)` for each frame that arrives, until the host closes the pipe; then end the process. */
export async function readFrames(receive) {
  let buffer = new Uint8Array(65536);
  let start = 0; // the unread part of the buffer
  let end = 0;
  for (;;) {
    if (end - start >= 8) {
      const view = new DataView(buffer.buffer, start, 8);
      const json = view.getUint32(0);
      const body = view.getUint32(4);
      const size = 8 + json + body;
      if (end - start >= size) {
        const header = JSON.parse(decoder.decode(buffer.subarray(start + 8, start + 8 + json)));
        receive(header, body ? buffer.slice(start + 8 + json, start + size) : EMPTY);
        start += size;
        continue;
      }
      if (start + size > buffer.length) {
        const larger = size > buffer.length ? new Uint8Array(size) : buffer;
        larger.set(buffer.subarray(start, end));
        [buffer, end, start] = [larger, end - start, 0];
      }
    } else if (start === end) {
      if (buffer.length > 1048576) buffer = new Uint8Array(65536); // do not keep the room of one large frame for ever
      start = end = 0;
    } else if (buffer.length - start < 8) {
      buffer.copyWithin(0, start, end);
      [end, start] = [end - start, 0];
    }
    const read = await readInput(buffer.subarray(end));
    if (read === null) exit(0);
    end += read;
  }
}
