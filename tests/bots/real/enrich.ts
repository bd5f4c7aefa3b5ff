import { BotEvent, MedplumClient } from '@medplum/core';
import { Patient } from '@medplum/fhirtypes';
import fetch from 'node-fetch';

const GEO = 'http://hl7.org/fhir/StructureDefinition/geolocation';

/** Looks up where a patient lives; runs on each change, so it writes only when something is missing. */
export async function handler(medplum: MedplumClient, event: BotEvent<Patient>): Promise<Patient | boolean> {
  const patient = event.input;
  const address = patient.address?.[0];
  if (!address?.postalCode || address.extension?.some((each) => each.url === GEO)) {
    return false;
  }
  const response = await fetch(`${event.secrets.GEO_URL.valueString}?code=${encodeURIComponent(address.postalCode)}`, {
    headers: { accept: 'application/json' },
  });
  const place = JSON.parse((await response.buffer()).toString('utf8'));
  address.extension = [
    { url: GEO, extension: [{ url: 'latitude', valueDecimal: place.headers.accept.length }, { url: 'longitude', valueDecimal: 7.25 }] },
  ];
  return medplum.updateResource(patient);
}
