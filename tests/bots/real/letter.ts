import { BotEvent, createReference, formatDate, formatHumanName, getReferenceString, MedplumClient } from '@medplum/core';
import { HumanName, Patient } from '@medplum/fhirtypes';

/** Writes a letter to a patient and files it. */
export async function handler(medplum: MedplumClient, event: BotEvent<Patient>) {
  const patient = event.input;
  const name = formatHumanName(patient.name?.[0] as HumanName);
  const binary = await medplum.createPdf({
    docDefinition: {
      defaultStyle: { font: 'Helvetica', fontSize: 11 },
      header: { text: 'Clinic of the Test', alignment: 'right', margin: [0, 20, 40, 0] },
      content: [
        { text: `Dear ${name},`, margin: [0, 40, 0, 10] },
        { text: ['Your date of birth is ', { text: formatDate(patient.birthDate), bold: true }, '.'] },
        { table: { headerRows: 1, body: [['Code', 'Value'], ['Grüße', '1.2 µg']] } },
      ],
      footer: (page: number, pages: number) => ({ text: `${page} / ${pages}`, alignment: 'center' }),
    },
    filename: 'letter.pdf',
  });
  return medplum.createResource({
    resourceType: 'DocumentReference',
    status: 'current',
    subject: createReference(patient),
    description: `Letter about ${getReferenceString(patient)}`,
    content: [{ attachment: { contentType: 'application/pdf', title: 'letter.pdf', url: getReferenceString(binary) } }],
  });
}
