import { BotEvent, Hl7Message, MedplumClient, getIdentifier, parseHl7DateTime } from '@medplum/core';
import { Patient } from '@medplum/fhirtypes';

const MRN = 'https://hospital.example/mrn';
const GENDERS: Record<string, Patient['gender']> = { M: 'male', F: 'female', O: 'other' };

/** Takes admissions and updates of the hospital's system, and acknowledges them. */
export async function handler(medplum: MedplumClient, event: BotEvent<Hl7Message>): Promise<Hl7Message> {
  const message = event.input;
  const pid = message.getSegment('PID');
  const mrn = pid?.getField(3)?.getComponent(1);
  if (!pid || !mrn) {
    return message.buildAck({ ackCode: 'AE' });
  }
  const patient = await medplum.upsertResource<Patient>(
    {
      resourceType: 'Patient',
      identifier: [{ system: MRN, value: mrn }],
      name: [{ family: pid.getField(5).getComponent(1), given: [pid.getField(5).getComponent(2)] }],
      birthDate: parseHl7DateTime(pid.getField(7).toString())?.slice(0, 10),
      gender: GENDERS[pid.getField(8).toString()] ?? 'unknown',
    },
    `identifier=${MRN}|${mrn}`
  );
  console.log(`Stored ${getIdentifier(patient, MRN)} for ${message.getSegment('MSH')?.getField(9).toString()}`);
  return message.buildAck();
}
