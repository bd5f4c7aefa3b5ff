import { BotEvent, MedplumClient } from '@medplum/core';
import { request } from 'undici';

/** Keeps the token of another service between runs. */
export async function handler(medplum: MedplumClient, event: BotEvent): Promise<{ token: string; cached: boolean }> {
  const known = await medplum.keyValue.get('partner-token').catch(() => undefined);
  if (known) {
    const { token, until } = JSON.parse(known);
    if (until > Date.now()) {
      return { token, cached: true };
    }
  }
  const { statusCode, body } = await request(event.secrets.PARTNER.valueString as string, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ grant: 'client' }),
  });
  const answer = (await body.json()) as { method: string };
  const token = `${statusCode}-${answer.method}`;
  await medplum.keyValue.set('partner-token', JSON.stringify({ token, until: Date.now() + 60_000 }));
  return { token, cached: false };
}
