const { Hl7Message, Hl7Segment, Hl7Field, formatHl7DateTime } = require('@medplum/core');

/** Sends an order to the laboratory's interface and notes the number it gives. */
exports.handler = async function (medplum, event) {
  const order = event.input;
  const patient = await medplum.readReference(order.subject);
  const segment = (...fields) => new Hl7Segment(fields.map((f) => (typeof f === 'string' ? f : f.toString())));
  const message = new Hl7Message([
    segment('MSH', '^~\\&', 'CLINIC', '', 'LAB', '', formatHl7DateTime(new Date()), '', 'OML^O21', order.id, 'P', '2.5.1'),
    segment('PID', '1', '', patient.id, '', new Hl7Field([[patient.name[0].family, patient.name[0].given[0]]])),
    segment('ORC', 'NW', order.id),
    segment('OBR', '1', order.id, '', `${order.code.coding[0].code}^${order.code.coding[0].display}`),
  ]);
  const response = await fetch(event.secrets.LAB_URL.valueString, {
    method: 'POST',
    headers: { 'Content-Type': 'x-application/hl7-v2+er7', Authorization: `Bearer ${event.secrets.LAB_TOKEN.valueString}` },
    body: message.toString(),
  });
  if (!response.ok) {
    throw new Error(`The laboratory answered ${response.status}`);
  }
  const { headers } = await response.json();
  return medplum.patchResource('ServiceRequest', order.id, [
    { op: 'test', path: '/meta/versionId', value: order.meta.versionId },
    { op: 'add', path: '/identifier', value: [{ system: 'https://lab.example/order', value: headers['content-length'] }] },
  ]);
};
