const crypto = require('crypto');

/** Checks the signature of a payment service over the raw body before it believes it. */
exports.handler = async (medplum, event) => {
  const given = Buffer.from(String(event.headers['x-signature'] ?? ''), 'hex');
  const expected = crypto.createHmac('sha256', event.secrets.WEBHOOK_SECRET.valueString).update(event.input).digest();
  if (given.length !== expected.length || !crypto.timingSafeEqual(given, expected)) {
    return {
      resourceType: 'OperationOutcome',
      id: 'unauthorized',
      issue: [{ severity: 'error', code: 'login', details: { text: 'Wrong signature' } }],
    };
  }
  const payment = JSON.parse(event.input);
  await medplum.createResourceIfNoneExist(
    { resourceType: 'Basic', code: { text: 'payment' }, identifier: [{ system: 'https://pay.example', value: payment.id }] },
    `identifier=https://pay.example|${payment.id}`
  );
  return { received: payment.id };
};
