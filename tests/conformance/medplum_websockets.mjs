// Subscriptions over WebSocket with the unmodified @medplum/core (shared/medplum/subscriptions-and-cron.md §10).
import { MedplumClient } from "@medplum/core";
import { base, check, clientId, equal, ok, secret } from "./checks.mjs";

const medplum = new MedplumClient({ baseUrl: base, cacheTime: 0 });
const family = `Socket${Date.now()}`;
const criteria = `Patient?family=${family}`;
await medplum.startClientLogin(clientId, secret);

const told = [];
let wake = () => {};
function hear(emitter) {
  for (const kind of ["connect", "message", "error"]) {
    emitter.addEventListener(kind, (event) => {
      told.push(event);
      wake();
    });
  }
}

async function next(kind) {
  for (;;) {
    const at = told.findIndex((event) => event.type === kind);
    if (at >= 0) return told.splice(at, 1)[0];
    const error = told.find((event) => event.type === "error");
    if (error) throw error.payload;
    await new Promise((done) => (wake = done));
  }
}

let patient;

await check("subscribeToCriteria connects", async () => {
  hear(medplum.subscribeToCriteria(criteria));
  const { payload } = await next("connect");
  ok(payload.subscriptionId, "the id of the Subscription");
});

await check("a create that matches is heard, with the resource", async () => {
  patient = await medplum.createResource({ resourceType: "Patient", name: [{ family }] });
  const { payload } = await next("message");
  equal(payload.type, "history", "type of the Bundle");
  equal(payload.entry[0].resource.type, "event-notification", "type of the SubscriptionStatus");
  equal(payload.entry[1].resource.id, patient.id, "id of the Patient");
  equal(payload.entry[1].request.method, "POST", "method");
});

await check("what does not match is not heard, what comes afterwards is", async () => {
  await medplum.createResource({ resourceType: "Patient", name: [{ family: "Other" }] });
  await medplum.updateResource({ ...patient, gender: "female" });
  const { payload } = await next("message");
  equal(payload.entry[1].resource.gender, "female", "gender of the update");
  equal(told.filter((event) => event.type === "message").length, 0, "further messages");
});

await check("a deletion is heard, with what was deleted", async () => {
  await medplum.deleteResource("Patient", patient.id);
  const { payload } = await next("message");
  equal(payload.entry[1].request.method, "DELETE", "method");
  equal(payload.entry[1].resource.gender, "female", "the resource as it was");
});

await check("two Subscriptions share the connection, each hears its own", async () => {
  const other = `Observation?code=${family}`;
  hear(medplum.subscribeToCriteria(other));
  await next("connect");
  await medplum.createResource({
    resourceType: "Observation",
    status: "final",
    code: { coding: [{ code: family }] },
  });
  const { payload } = await next("message");
  equal(payload.entry[1].resource.resourceType, "Observation", "type");
  medplum.unsubscribeFromCriteria(other);
});

await check("after a lost connection the client subscribes again by itself", async () => {
  medplum.getSubscriptionManager().reconnectWebSocket();
  await next("connect");
  await medplum.createResource({ resourceType: "Patient", name: [{ family }] });
  const { payload } = await next("message");
  equal(payload.entry[1].resource.name[0].family, family, "family");
});

medplum.unsubscribeFromCriteria(criteria);
medplum.getSubscriptionManager().closeWebSocket();
Deno.exit(0);
