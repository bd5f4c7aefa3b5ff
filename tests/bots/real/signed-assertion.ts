import { BotEvent, MedplumClient } from '@medplum/core';
import { importPKCS8, SignJWT } from 'jose';

/** Gets a token of another FHIR server by a signed assertion (SMART backend services). */
export async function handler(_medplum: MedplumClient, event: BotEvent): Promise<unknown> {
  const { PRIVATE_KEY, TOKEN_URL } = event.secrets;
  const key = await importPKCS8(PRIVATE_KEY.valueString as string, 'ES384');
  const assertion = await new SignJWT({})
    .setProtectedHeader({ alg: 'ES384', typ: 'JWT', kid: 'key-1' })
    .setIssuer('client')
    .setSubject('client')
    .setAudience(TOKEN_URL.valueString as string)
    .setJti(crypto.randomUUID())
    .setExpirationTime('4m')
    .sign(key);
  const response = await fetch(TOKEN_URL.valueString as string, {
    method: 'POST',
    body: new URLSearchParams({
      grant_type: 'client_credentials',
      client_assertion_type: 'urn:ietf:params:oauth:client-assertion-type:jwt-bearer',
      client_assertion: assertion,
    }),
  });
  const { body, headers } = (await response.json()) as { body: string; headers: Record<string, string> };
  return { type: headers['content-type'], parts: new URLSearchParams(body).get('client_assertion')?.split('.').length };
}
