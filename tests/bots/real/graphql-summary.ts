import { BotEvent, MedplumClient } from '@medplum/core';

export async function handler(medplum: MedplumClient, event: BotEvent<{ id: string }>): Promise<string> {
  const { data } = await medplum.graphql(`{
    Patient(id: "${event.input.id}") {
      name { family }
      observations: ObservationList(_reference: subject) { code { text } valueQuantity { value unit } }
    }
  }`);
  const lines = data.Patient.observations.map((each: any) => `${each.code.text}: ${each.valueQuantity.value} ${each.valueQuantity.unit}`);
  return `${data.Patient.name[0].family}\n${lines.sort().join('\n')}`;
}
