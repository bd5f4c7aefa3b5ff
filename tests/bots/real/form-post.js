/** A text message service posts forms, and wants XML back. */
exports.handler = async (medplum, event) => {
  const { From, Body } = event.input;
  const patient = await medplum.searchOne('Patient', { phone: From });
  await medplum.createResource({
    resourceType: 'Communication',
    status: 'completed',
    sent: new Date().toISOString(),
    sender: patient && { reference: `Patient/${patient.id}` },
    payload: [{ contentString: Body }],
  });
  return `<?xml version="1.0"?><Response><Message>Thank you${patient ? `, ${patient.name[0].given[0]}` : ''}</Message></Response>`;
};
