const FormData = require('form-data');
const fetch = require('node-fetch');
const { Readable } = require('node:stream');

/** Sends a stored document to a fax service as a form. */
exports.handler = async (medplum, { input, secrets }) => {
  const blob = await medplum.download(input.content[0].attachment.url);
  const form = new FormData();
  form.append('to', '+49 30 1234');
  form.append('file', Readable.from([Buffer.from(await blob.arrayBuffer())]), { filename: 'document.txt', contentType: 'text/plain' });
  const response = await fetch(secrets.FAX_URL.valueString, { method: 'POST', body: form, headers: form.getHeaders() });
  if (response.status !== 200) throw new Error(`fax: ${response.status}`);
  const { body, headers } = await response.json();
  return { isForm: headers['content-type'].startsWith('multipart/form-data'), holds: body.includes('the document') && body.includes('+49 30 1234') };
};
