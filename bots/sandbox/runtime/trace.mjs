// Stack traces that speak of the bot's own file: lines and columns of the source the author sees in the editor.
//
// JavaScript runs as it was written, so its lines are right. TypeScript carries the source map that the transpiler put
// at its end; it is taken off, because at times Deno would apply it too, and decoded when the first error is shown.

const scripts = new Map(); // script url → {filename, mapText, columns, map}

const MAP_COMMENT = /^\/\/# sourceMappingURL=data:application\/json;(?:charset=utf-8;)?base64,([\w+/=]+)\s*$/;

/** [the source without its inline source map, the map in base64 or undefined] */
export function splitMap(source) {
  const start = source.lastIndexOf("//# sourceMappingURL=");
  const comment = start < 0 ? null : MAP_COMMENT.exec(source.slice(start));
  return comment ? [source.slice(0, start), comment[1]] : [source, undefined];
}

/** Make frames of the script at `url` show as `filename`; `columns` were put before its first line. */
export function nameScript(url, filename, mapText, columns = 0) {
  scripts.set(url, { filename, mapText, columns, map: undefined });
}

const DIGITS = new Map([..."ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"].map((c, i) => [c, i]));

/** Per generated line: segments [generated column, source line, source column], all counted from 0. */
function decodeMap(text) {
  const { mappings } = JSON.parse(atob(text));
  let [line, column] = [0, 0];
  return mappings.split(";").map((group) => {
    let generated = 0;
    const segments = [];
    for (const text of group ? group.split(",") : []) {
      const fields = [];
      let [value, shift] = [0, 0];
      for (const character of text) {
        const digit = DIGITS.get(character);
        value |= (digit & 31) << shift;
        shift += 5;
        if (digit & 32) continue;
        fields.push(value & 1 ? -(value >> 1) : value >> 1);
        [value, shift] = [0, 0];
      }
      generated += fields[0];
      if (fields.length < 4) continue;
      line += fields[2];
      column += fields[3];
      segments.push([generated, line, column]);
    }
    return segments;
  });
}

/** [file name, line, column] in the author's source, or null for code that is not the bot's. */
function locate(url, line, column) {
  const script = scripts.get(url);
  if (!script) return null;
  if (line === 1) column -= script.columns;
  if (script.mapText) {
    try {
      script.map = decodeMap(script.mapText);
    } catch {
      // A broken map in uploaded code must not hide the error.
    }
    script.mapText = undefined;
  }
  const segments = script.map?.[line - 1];
  const segment = segments?.findLast(([generated]) => generated < column) ?? segments?.[0];
  return segment ? [script.filename, segment[1] + 1, segment[2] + 1] : [script.filename, line, Math.max(column, 1)];
}

function describeFrame(frame) {
  const place = locate(frame.getScriptNameOrSourceURL() ?? "", frame.getLineNumber(), frame.getColumnNumber());
  const url = frame.getFileName() ?? "";
  if (!place && !url.endsWith("/core.mjs")) return null;
  const name = frame.getFunctionName();
  const type = frame.isToplevel() ? "" : frame.getTypeName();
  let label = name ?? "";
  if (name && frame.isConstructor()) label = `new ${name}`;
  else if (name && type && type !== "Object" && !name.startsWith(type)) label = `${type}.${name}`;
  if (frame.isAsync()) label = label ? `async ${label}` : "async";
  const where = place ? place.join(":") : "@medplum/core";
  return `    at ${label ? `${label} (${where})` : where}`;
}

/** Replace the addresses under which the runtime loaded the bot by the bot's file name, and Deno's advice by ours. */
export function cleanText(text) {
  for (const [url, { filename }] of scripts) {
    text = text.replaceAll(new RegExp(`${RegExp.escape(url)}:(\\d+):(\\d+)`, "g"), (_, line, column) =>
      (locate(url, Number(line), Number(column)) ?? [filename]).join(":"));
    text = text.replaceAll(url, filename);
  }
  return text.replaceAll(
    /Requires (\w+) access( to [^\n]*?)?, (?:run again with|specify) the --allow-\w+ flag/g,
    (_, kind, what) => `A bot has no ${kind} access${what ?? ""}: it can use its Medplum client and fetch`,
  );
}

/** Install the stack traces. */
export function installTraces() {
  Error.stackTraceLimit = 30;
  Error.prepareStackTrace = (error, frames) => {
    let head;
    try {
      head = Error.prototype.toString.call(error);
    } catch {
      head = "Error";
    }
    return [cleanText(head), ...frames.map(describeFrame).filter(Boolean).slice(0, 20)].join("\n");
  };
}
