import { BotEvent, createReference, MedplumClient, resolveId } from '@medplum/core';
import { Practitioner, ServiceRequest, Task } from '@medplum/fhirtypes';

/** Gives the work of an order to whoever has the fewest open tasks. */
export async function handler(medplum: MedplumClient, event: BotEvent<ServiceRequest>): Promise<Task> {
  const order = event.input;
  const practitioners: Practitioner[] = [];
  for await (const page of medplum.searchResourcePages('Practitioner', { identifier: 'https://team.example|', _count: '2' })) {
    practitioners.push(...page);
  }
  const loads = await Promise.all(
    practitioners.map(async (owner) => {
      const bundle = await medplum.search('Task', { owner: `Practitioner/${owner.id}`, status: 'requested', _total: 'accurate', _count: '0' });
      return { owner, open: bundle.total ?? 0 };
    })
  );
  loads.sort((a, b) => a.open - b.open || (a.owner.id as string).localeCompare(b.owner.id as string));
  return medplum.createResource<Task>({
    resourceType: 'Task',
    status: 'requested',
    intent: 'order',
    focus: createReference(order),
    owner: createReference(loads[0].owner),
    description: `Order ${resolveId(createReference(order))}, ${loads.length} people, ${loads[0].open} open`,
  });
}
