import { convertCcdaToFhir, convertXmlToCcda, convertCcdaToXml, convertFhirToCcda } from '@medplum/ccda';
import { BotEvent, MedplumClient } from '@medplum/core';

/** Reads a C-CDA document and tells what it holds. */
export async function handler(_medplum: MedplumClient, event: BotEvent<string>): Promise<unknown> {
  const bundle = convertCcdaToFhir(convertXmlToCcda(event.input));
  const functions = [convertCcdaToXml, convertFhirToCcda].map((f) => typeof f);
  const patient = bundle.entry?.map((entry) => entry.resource).find((resource) => resource?.resourceType === 'Patient');
  return { types: bundle.entry?.map((entry) => entry.resource?.resourceType), functions, family: patient?.resourceType === 'Patient' ? patient.name?.[0]?.family : undefined };
}
