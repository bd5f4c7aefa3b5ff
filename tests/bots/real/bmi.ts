import { BotEvent, evalFhirPath, MedplumClient } from '@medplum/core';
import { Observation, Patient } from '@medplum/fhirtypes';

const LOINC = 'http://loinc.org';
const code = (value: string, display: string) => ({ coding: [{ system: LOINC, code: value, display }] });

export async function handler(medplum: MedplumClient, event: BotEvent<Patient>): Promise<Observation | string> {
  const bundle = await medplum.search('Observation', { subject: `Patient/${event.input.id}`, code: `${LOINC}|8302-2,${LOINC}|29463-7` });
  const [cm] = evalFhirPath("Bundle.entry.resource.where(code.coding.code='8302-2').valueQuantity.value", bundle) as number[];
  const [kg] = evalFhirPath("Bundle.entry.resource.where(code.coding.code='29463-7').valueQuantity.value", bundle) as number[];
  if (!cm || !kg) {
    return 'height or weight is missing';
  }
  return medplum.createResource<Observation>({
    resourceType: 'Observation',
    status: 'final',
    subject: { reference: `Patient/${event.input.id}` },
    code: code('39156-5', 'Body mass index'),
    valueQuantity: { value: Math.round((kg / (cm / 100) ** 2) * 10) / 10, unit: 'kg/m2', system: 'http://unitsofmeasure.org', code: 'kg/m2' },
  });
}
