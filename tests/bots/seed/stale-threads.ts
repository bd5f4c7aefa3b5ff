// Bot (cron-triggered): find threads with no activity for N days, create a reminder Task per thread if none exists. Export as 'handler' when deploying.
export async function staleThreadRemindersHandler(medplum: MedplumClient, _event: BotEvent): Promise<void> {
const staleDays = 3;
const cutoff = new Date();
cutoff.setDate(cutoff.getDate() - staleDays);

const staleThreads = await medplum.searchResources('Communication', {
'part-of:missing': true,
status: 'in-progress',
_lastUpdated: `lt${cutoff.toISOString()}`,
});

for (const thread of staleThreads) {
if (!thread.subject) {
continue;
}
const existingTasks = await medplum.searchResources('Task', {
focus: `Communication/${thread.id}`,
code: 'https://medplum.com/task-codes|respond-to-old-message',
status: 'requested,accepted',
});

if (existingTasks.length > 0) {
continue;
}

await medplum.createResource({
resourceType: 'Task',
status: 'requested',
intent: 'order',
priority: 'urgent',
code: {
coding: [
{
system: 'https://medplum.com/task-codes',
code: 'respond-to-old-message',
display: 'Respond to old message',
},
],
},
focus: { reference: `Communication/${thread.id}` },
for: thread.subject,
description: `Thread "${thread.topic?.text ?? 'Untitled'}" has been open for ${staleDays}+ days without a response`,
authoredOn: new Date().toISOString(),
});
}
}
