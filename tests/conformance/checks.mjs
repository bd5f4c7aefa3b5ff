// What all files of checks share. Each check prints one JSON line {"name", "error"}; test_medplum_client.py reads them.
// Run by Deno with BASE_URL, CLIENT_ID, CLIENT_SECRET.
import { OperationOutcomeError } from "@medplum/core";

export const base = Deno.env.get("BASE_URL");
export const clientId = Deno.env.get("CLIENT_ID");
export const secret = Deno.env.get("CLIENT_SECRET");

export function equal(actual, expected, what = "value") {
  const [a, e] = [JSON.stringify(actual), JSON.stringify(expected)];
  if (a !== e) throw new Error(`${what}: expected ${e}, got ${a}`);
}

export function ok(value, what) {
  if (!value) throw new Error(`${what}: got ${JSON.stringify(value)}`);
}

export async function fails(work, text) {
  try {
    await work();
  } catch (error) {
    ok(error instanceof OperationOutcomeError, `an OperationOutcomeError, not ${error}`);
    ok(error.message.includes(text), `message with "${text}", got "${error.message}"`);
    return error;
  }
  throw new Error(`expected an error with "${text}"`);
}

export async function check(name, work) {
  let error = null;
  try {
    await work();
  } catch (thrown) {
    error = String(thrown?.stack ?? thrown);
  }
  console.log(JSON.stringify({ name, error }));
}
