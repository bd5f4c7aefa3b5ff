// Bot: reroute Tasks to the pool when the assigned provider is out of office.
// Uses Schedule $find to check availability at message receive time.
export async function oooRerouteHandler(medplum: MedplumClient, event: BotEvent<Communication>): Promise<void> {
const message = event.input;
const threadRef = message.partOf?.[0]?.reference;
if (!threadRef) {
return;
}

const openTasks = await medplum.searchResources('Task', {
focus: threadRef,
status: 'requested,accepted',
});

if (openTasks.length === 0) {
return;
}

const rerouteTask = openTasks[0];
if (!rerouteTask.id) {
return;
}
const ownerRef = rerouteTask.owner?.reference;
if (!ownerRef) {
return;
}

const schedules = await medplum.searchResources('Schedule', {
actor: ownerRef,
});

if (schedules.length === 0) {
return;
}

const schedule = schedules[0];
if (!schedule.id) {
return;
}

const now = new Date();
const oneHourLater = new Date(now.getTime() + 60 * 60 * 1000);
const result: Parameters = await medplum.post(medplum.fhirUrl('Schedule', schedule.id, '$find'), {
resourceType: 'Parameters',
parameter: [
{ name: 'start', valueDateTime: now.toISOString() },
{ name: 'end', valueDateTime: oneHourLater.toISOString() },
],
});

const bundle = result.parameter?.[0]?.resource as Bundle<Slot>;
const freeSlots = bundle?.entry?.filter((e) => e.resource?.status === 'free') ?? [];

if (freeSlots.length > 0) {
return;
}

// Provider is unavailable — reroute Task back to the pool
const threadHeaderId = threadRef.split('/')[1];
await medplum.patchResource('Task', rerouteTask.id, [
{ op: 'remove', path: '/owner' },
{ op: 'replace', path: '/status', value: 'requested' },
{
op: 'add',
path: '/note/-',
value: {
text: `Auto-rerouted: ${rerouteTask.owner?.display ?? ownerRef} is currently unavailable`,
time: now.toISOString(),
},
},
]);
await medplum.patchResource('Communication', threadHeaderId, [{ op: 'remove', path: '/recipient' }]);
}
