import { XMLParser, XMLValidator } from 'fast-xml-parser';
import { badRequest, OperationOutcomeError } from '@medplum/core';

const parser = new XMLParser({ ignoreAttributes: false, attributeNamePrefix: '@', isArray: (name) => name === 'result' });

export const handler = async (medplum, { input }) => {
  const valid = XMLValidator.validate(input);
  if (valid !== true) {
    throw new OperationOutcomeError(badRequest(`The XML is damaged in line ${valid.err.line}`));
  }
  const { results } = parser.parse(input);
  const made = [];
  for (const result of results.result) {
    made.push(
      await medplum.createResource({
        resourceType: 'Observation',
        status: 'final',
        code: { coding: [{ system: 'http://loinc.org', code: result['@code'] }] },
        valueQuantity: { value: Number(result['#text']), unit: result['@unit'] },
      })
    );
  }
  return made.map((each) => each.valueQuantity.value);
};
