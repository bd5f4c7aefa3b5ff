/** Fills in what the front desk leaves out. */
export async function handler(medplum, event) {
  const patient = event.input;
  const before = JSON.stringify(patient);
  patient.active ??= true;
  patient.communication ??= [{ language: { text: 'German' }, preferred: true }];
  for (const phone of patient.telecom?.filter(({ system }) => system === 'phone') ?? []) {
    phone.value = phone.value.replace(/[^\d+]/g, '');
  }
  if (JSON.stringify(patient) === before) {
    console.log('Nothing to do');
    return false;
  }
  await medplum.updateResource(patient);
  return true;
}
