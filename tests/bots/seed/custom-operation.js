exports.handler = async function (medplum, event) {
  const patient = event.input;

  // Your custom logic here
  patient.identifier = patient.identifier || [];
  patient.identifier.push({
    system: 'https://example.com/patient-id',
    value: '12345',
  });

  return patient;
};
