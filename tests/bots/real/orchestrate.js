import { ContentType, isOperationOutcome } from '@medplum/core';

/** Calls other Bots, and goes on when one of them fails. */
export async function handler(medplum, event) {
  const results = await Promise.allSettled(event.input.bots.map((id) => medplum.executeBot(id, { from: 'orchestra' }, ContentType.JSON)));
  return results.map((each) => (each.status === 'fulfilled' ? each.value : isOperationOutcome(each.reason.outcome) && each.reason.message));
}
