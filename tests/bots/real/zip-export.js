import JSZip from 'jszip';

/** Packs a patient's observations into an archive to download. */
export async function handler(medplum, event) {
  const zip = new JSZip();
  const observations = await medplum.searchResources('Observation', { subject: event.input.patient, _sort: '_lastUpdated' });
  const lines = observations.map((each) => [each.id, each.code.text, each.valueQuantity?.value].join(','));
  zip.file('observations.csv', ['id,code,value', ...lines].join('\n'));
  zip.folder('raw').file('bundle.json', JSON.stringify(observations.bundle));
  const data = await zip.generateAsync({ type: 'uint8array', compression: 'DEFLATE' });
  return await medplum.createBinary({ data, filename: 'export.zip', contentType: 'application/zip' });
}
