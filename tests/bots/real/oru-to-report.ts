import { BotEvent, createReference, Hl7Message, MedplumClient } from '@medplum/core';
import { Bundle, Observation } from '@medplum/fhirtypes';

/** Results of a laboratory: one Observation for each OBX, and a report over them, in one transaction. */
export async function handler(medplum: MedplumClient, event: BotEvent<Hl7Message>) {
  const message = event.input;
  const mrn = message.getSegment('PID')?.getField(3)?.getComponent(1);
  const patient = await medplum.searchOne('Patient', { identifier: `https://hospital.example/mrn|${mrn}` });
  if (!patient) {
    throw new Error(`No patient with MRN ${mrn}`);
  }
  const subject = createReference(patient);
  const bundle: Bundle = { resourceType: 'Bundle', type: 'transaction', entry: [] };
  for (const [index, obx] of message.getAllSegments('OBX').entries()) {
    const observation: Observation = {
      resourceType: 'Observation',
      status: 'final',
      subject,
      code: { coding: [{ system: 'http://loinc.org', code: obx.getField(3).getComponent(1) }] },
      valueQuantity: { value: Number.parseFloat(obx.getField(5).toString()), unit: obx.getField(6).toString() },
    };
    bundle.entry!.push({
      fullUrl: `urn:uuid:00000000-0000-4000-8000-00000000000${index}`,
      request: { method: 'POST', url: 'Observation' },
      resource: observation,
    });
  }
  bundle.entry!.push({
    request: { method: 'POST', url: 'DiagnosticReport' },
    resource: {
      resourceType: 'DiagnosticReport',
      status: 'final',
      subject,
      code: { text: message.getSegment('OBR')?.getField(4)?.getComponent(2) },
      result: bundle.entry!.map((entry) => ({ reference: entry.fullUrl })),
    },
  });
  const response = await medplum.executeBatch(bundle);
  return response.entry?.map((entry) => entry.response?.status);
}
