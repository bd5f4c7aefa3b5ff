import { BotEvent, MedplumClient, normalizeErrorString } from '@medplum/core';
import { Appointment, Patient } from '@medplum/fhirtypes';

/** Reminds patients of their appointments of the coming day. */
export async function handler(medplum: MedplumClient, _event: BotEvent): Promise<{ sent: number; failed: string[] }> {
  const failed: string[] = [];
  let sent = 0;
  const soon = new Date(Date.now() + 36 * 3600 * 1000).toISOString();
  const appointments = await medplum.searchResources('Appointment', `status=booked&date=gt${new Date().toISOString()}&date=lt${soon}`);
  for (const appointment of appointments as Appointment[]) {
    const reference = appointment.participant.find((each) => each.actor?.reference?.startsWith('Patient/'))?.actor;
    try {
      const patient = (await medplum.readReference(reference as { reference: string })) as Patient;
      const to = patient.telecom?.find((each) => each.system === 'email')?.value;
      await medplum.sendEmail({ to, subject: 'Your appointment', text: `See you at ${appointment.start}`, attachments: [{ filename: 'visit.ics', content: 'BEGIN:VCALENDAR' }] });
      sent++;
    } catch (error) {
      failed.push(normalizeErrorString(error));
    }
  }
  return { sent, failed };
}
