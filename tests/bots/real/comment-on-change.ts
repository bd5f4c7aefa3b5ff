import { BotEvent, MedplumClient } from '@medplum/core';
import { Patient } from '@medplum/fhirtypes';

/** Notes on the patient's timeline what has changed since the last version. */
export async function handler(medplum: MedplumClient, event: BotEvent<Patient>): Promise<string> {
  const history = await medplum.readHistory('Patient', event.input.id as string);
  const [now, before] = (history.entry ?? []).map((entry) => entry.resource as Patient);
  const changed = before ? Object.keys(now).filter((key) => JSON.stringify(now[key as keyof Patient]) !== JSON.stringify(before[key as keyof Patient])) : [];
  const text = before ? `Changed: ${changed.filter((key) => key !== 'meta').join(', ')}` : 'New patient';
  await medplum.createComment(event.input, text);
  return text;
}
