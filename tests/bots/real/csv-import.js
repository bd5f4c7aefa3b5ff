import { convertToTransactionBundle } from '@medplum/core';

/** Reads patients from lines of text. Those that are there already stay as they are. */
export async function handler(medplum, event) {
  const [head, ...lines] = event.input.trim().split(/\r?\n/).map((line) => line.split(';').map((cell) => cell.trim()));
  const rows = lines.map((cells) => Object.fromEntries(head.map((name, index) => [name, cells[index]])));
  const bad = rows.filter((row) => !/^\d{4}-\d\d-\d\d$/.test(row.born));
  bad.forEach((row) => console.warn('Skipped line', row.number));
  const bundle = {
    resourceType: 'Bundle',
    type: 'batch',
    entry: rows
      .filter((row) => !bad.includes(row))
      .map((row) => ({
        request: { method: 'POST', url: 'Patient', ifNoneExist: `identifier=https://legacy.example|${row.number}` },
        resource: {
          resourceType: 'Patient',
          identifier: [{ system: 'https://legacy.example', value: row.number }],
          name: [{ family: row.family }],
          birthDate: row.born,
        },
      })),
  };
  const response = await medplum.executeBatch(bundle);
  const statuses = response.entry.map((entry) => entry.response.status);
  return { created: statuses.filter((s) => s === '201').length, kept: statuses.filter((s) => s === '200').length, skipped: bad.length, convert: typeof convertToTransactionBundle };
}
