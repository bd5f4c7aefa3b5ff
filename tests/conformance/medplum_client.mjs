// The unmodified @medplum/core MedplumClient against a running fhirbots: a walk from login to Bots.
import { ContentType, getDataType, getSearchParameters, MedplumClient } from "@medplum/core";
import { base, check, clientId, equal, fails, ok, secret } from "./checks.mjs";

const medplum = new MedplumClient({ baseUrl: base, cacheTime: 0 });

const family = `Conformance${Date.now()}`;
let patient;
let bot;

await check("startClientLogin logs in and knows the profile", async () => {
  await medplum.startClientLogin(clientId, secret);
  equal(medplum.getProfile()?.resourceType, "ClientApplication", "profile");
  ok(medplum.isProjectAdmin(), "project admin");
  ok(medplum.getProject()?.id, "project id");
});

await check("a wrong secret is refused with a sentence", async () => {
  const other = new MedplumClient({ baseUrl: base });
  await fails(() => other.startClientLogin(clientId, "wrong"), "nvalid");
});

await check("createResource answers id and meta", async () => {
  patient = await medplum.createResource({ resourceType: "Patient", name: [{ given: ["Jane"], family }] });
  ok(patient.id, "id");
  ok(patient.meta.versionId, "versionId");
  ok(patient.meta.lastUpdated, "lastUpdated");
  equal(patient.meta.project, medplum.getProject().id, "project");
  equal(patient.meta.author.reference, `ClientApplication/${clientId}`, "author");
});

await check("an invalid resource is refused with the expression", async () => {
  const error = await fails(
    () => medplum.createResource({ resourceType: "Patient", nmae: [{ family }] }),
    "Invalid additional property",
  );
  equal(error.outcome.issue[0].expression, ["Patient.nmae"], "expression");
});

await check("readResource and readReference", async () => {
  equal((await medplum.readResource("Patient", patient.id)).name, patient.name);
  equal((await medplum.readReference({ reference: `Patient/${patient.id}` })).id, patient.id);
});

await check("an unknown id is Not found", () =>
  fails(() => medplum.readResource("Patient", crypto.randomUUID()), "Not found"));

await check("search, searchOne, searchResources", async () => {
  const bundle = await medplum.search("Patient", { family, _total: "accurate" });
  equal(bundle.total, 1, "total");
  equal(bundle.entry[0].search.mode, "match", "mode");
  equal((await medplum.searchOne("Patient", `family=${family}`)).id, patient.id);
  const found = await medplum.searchResources("Patient", new URLSearchParams({ family: family.toUpperCase() }));
  equal(found.map((each) => each.id), [patient.id]);
  equal(await medplum.searchOne("Patient", "family=NobodyIsCalledThis"), undefined);
});

await check("an unknown search parameter is refused", () =>
  fails(() => medplum.search("Patient", "nmae=x"), "Unknown search parameter: nmae"));

await check("searchResourcePages follows next links", async () => {
  for (const given of ["A", "B", "C", "D", "E"]) {
    await medplum.createResource({ resourceType: "Patient", name: [{ given: [given], family: `${family}-pages` }] });
  }
  const sizes = [];
  for await (const page of medplum.searchResourcePages("Patient", `family=${family}-pages&_count=2`)) {
    sizes.push(page.length);
  }
  equal(sizes, [2, 2, 1], "page sizes");
});

await check("patchResource applies JSON Patch and appends to a missing array", async () => {
  const patched = await medplum.patchResource("Patient", patient.id, [
    { op: "add", path: "/telecom/-", value: { system: "phone", value: "555" } },
    { op: "add", path: "/gender", value: "female" },
  ]);
  equal(patched.gender, "female", "gender");
  equal(patched.telecom[0].value, "555", "telecom");
  patient = patched;
});

await check("a patch whose target is missing is refused", () =>
  fails(() => medplum.patchResource("Patient", patient.id, [{ op: "remove", path: "/photo" }]), "Value required at path"));

await check("updateResource makes a version, no change makes none", async () => {
  const updated = await medplum.updateResource({ ...patient, birthDate: "1980-01-02" });
  ok(updated.meta.versionId !== patient.meta.versionId, "a new version");
  const same = await medplum.updateResource(updated);
  equal(same.meta.versionId, updated.meta.versionId, "version");
  patient = updated;
});

await check("If-Match with an old version is refused", () =>
  fails(
    () =>
      medplum.updateResource({ ...patient, gender: "male" }, { headers: { "If-Match": `W/"${crypto.randomUUID()}"` } }),
    "Precondition Failed",
  ));

await check("readHistory and readVersion", async () => {
  const history = await medplum.readHistory("Patient", patient.id);
  equal(history.entry.length, 3, "versions");
  const first = history.entry[2].resource;
  equal((await medplum.readVersion("Patient", patient.id, first.meta.versionId)).meta.versionId, first.meta.versionId);
});

await check("createResourceIfNoneExist and upsertResource", async () => {
  const again = await medplum.createResourceIfNoneExist(
    { resourceType: "Patient", name: [{ family }] },
    `_id=${patient.id}`,
  );
  equal(again.id, patient.id);
  const identifier = [{ system: "https://example.com/mrn", value: family }];
  const made = await medplum.upsertResource(
    { resourceType: "Organization", name: "One", identifier },
    `identifier=https://example.com/mrn|${family}`,
  );
  const changed = await medplum.upsertResource(
    { resourceType: "Organization", name: "Two", identifier },
    `identifier=https://example.com/mrn|${family}`,
  );
  equal([changed.id, changed.name], [made.id, "Two"]);
});

await check("deleteResource, then Gone", async () => {
  const doomed = await medplum.createResource({ resourceType: "Patient", name: [{ family: "Doomed" }] });
  await medplum.deleteResource("Patient", doomed.id);
  await fails(() => medplum.readResource("Patient", doomed.id), "Gone");
});

await check("validateResource", async () => {
  equal((await medplum.validateResource({ resourceType: "Patient" })).id, "ok", "outcome");
  await fails(() => medplum.validateResource({ resourceType: "Patient", gender: 3 }), "");
});

await check("executeBatch answers each entry", async () => {
  const answer = await medplum.executeBatch({
    resourceType: "Bundle",
    type: "batch",
    entry: [
      { request: { method: "POST", url: "Patient" }, resource: { resourceType: "Patient", name: [{ family }] } },
      { request: { method: "GET", url: `Patient/${patient.id}` } },
      { request: { method: "GET", url: `Patient/${crypto.randomUUID()}` } },
    ],
  });
  equal(answer.entry.map((entry) => entry.response.status), ["201", "200", "404"], "statuses");
});

await check("createBinary, createAttachment and download", async () => {
  const binary = await medplum.createBinary({ data: "hello bytes", filename: "a.txt", contentType: "text/plain" });
  ok(binary.url, "url");
  equal(await (await medplum.download(`Binary/${binary.id}`)).text(), "hello bytes", "by reference");
  equal(await (await medplum.download(binary.url)).text(), "hello bytes", "by presigned URL");
  const attachment = await medplum.createAttachment({ data: "x", filename: "x.txt", contentType: "text/plain" });
  ok(attachment.url, "attachment url");
});

await check("a Bot is created, deployed and executed", async () => {
  const project = medplum.getProject().id;
  bot = await medplum.post(`admin/projects/${project}/bot`, { name: "Conformance" });
  equal(bot.resourceType, "Bot", "type");
  const deployed = await medplum.post(medplum.fhirUrl("Bot", bot.id, "$deploy"), {
    code: "export async function handler(medplum, event) {\n" +
      "  if (event.input === 'text') return 'a text';\n" +
      "  if (event.input.fail) throw new Error('as asked');\n" +
      "  return { input: event.input, bot: event.bot.reference, requester: event.requester.reference };\n}\n",
    filename: "conformance.js",
  });
  equal(deployed.id, "ok", JSON.stringify(deployed));
  const result = await medplum.executeBot(bot.id, { foo: "bar" }, ContentType.JSON);
  equal(result, {
    input: { foo: "bar" },
    bot: `Bot/${bot.id}`,
    requester: `ClientApplication/${clientId}`,
  });
  equal(await medplum.executeBot(bot.id, "text", ContentType.TEXT), "a text", "text");
  const got = await medplum.get(medplum.fhirUrl("Bot", bot.id, "$execute").toString() + "?foo=bar");
  equal(got.input, { foo: "bar" }, "GET input");
});

await check("a Bot is executed by identifier", async () => {
  const identifier = { system: "https://example.com/bots", value: family };
  await medplum.patchResource("Bot", bot.id, [{ op: "add", path: "/identifier", value: [identifier] }]);
  equal((await medplum.executeBot(identifier, { foo: "baz" })).input, { foo: "baz" });
});

await check("what a Bot throws is an OperationOutcomeError", () =>
  fails(() => medplum.executeBot(bot.id, { fail: true }, ContentType.JSON), "as asked"));

await check("code that does not parse is refused and the old code keeps running", async () => {
  await fails(
    () => medplum.post(medplum.fhirUrl("Bot", bot.id, "$deploy"), { code: "export async function handler( {" }),
    "",
  );
  equal((await medplum.executeBot(bot.id, { still: 1 })).input, { still: 1 });
});

await check("the Bot's own client reads, creates, searches and patches", async () => {
  const worker = await medplum.post(`admin/projects/${medplum.getProject().id}/bot`, { name: "Worker" });
  await medplum.post(medplum.fhirUrl("Bot", worker.id, "$deploy"), {
    code: `import { createReference } from '@medplum/core';
      export async function handler(medplum, event) {
        const patient = await medplum.readResource('Patient', event.input.id);
        const task = await medplum.createResource({ resourceType: 'Task', status: 'requested', intent: 'order', for: createReference(patient) });
        await medplum.patchResource('Task', task.id, [{ op: 'add', path: '/note/-', value: { text: 'noted' } }]);
        const found = await medplum.searchResources('Task', { patient: 'Patient/' + patient.id });
        return { count: found.length, note: found[0].note[0].text, author: found[0].meta.author.reference };
      }`,
    filename: "worker.ts",
  });
  equal(await medplum.executeBot(worker.id, { id: patient.id }, ContentType.JSON), {
    count: 1,
    note: "noted",
    author: `Bot/${worker.id}`,
  });
});

await check("a 5xx that a Bot sends on purpose is not repeated", async () => {
  const made = await medplum.post(`admin/projects/${medplum.getProject().id}/bot`, { name: "Unavailable" });
  await medplum.post(medplum.fhirUrl("Bot", made.id, "$deploy"), {
    code: "exports.handler = async () => new Response('later', { status: 503 });",
    filename: "unavailable.cjs",
  });
  let failed = false;
  await medplum.executeBot(made.id, {}, ContentType.JSON).catch(() => failed = true);
  ok(failed, "rejected");
  medplum.invalidateAll();
  const events = await medplum.search("AuditEvent", { entity: `Bot/${made.id}`, _total: "accurate" });
  equal(events.total, 1, "runs");
});

await check("an asynchronous run is polled to its end", async () => {
  const options = { headers: { Prefer: "respond-async" }, pollStatusOnAccepted: true, pollStatusPeriod: 50 };
  const job = await medplum.executeBot(bot.id, "text", ContentType.TEXT, options);
  equal([job.resourceType, job.status], ["AsyncJob", "completed"], "job");
  equal(job.output.parameter[0], { name: "responseBody", valueString: "a text" }, "output");
});

await check("bulkExport polls, and its files can be downloaded", async () => {
  const manifest = await medplum.bulkExport("Patient", "Patient", undefined, { pollStatusOnAccepted: true, pollStatusPeriod: 50 });
  equal(manifest.output.map((file) => file.type), ["Patient"], "types");
  const lines = (await (await medplum.download(manifest.output[0].url)).text()).trim().split("\n");
  ok(lines.map((line) => JSON.parse(line)).some((each) => each.id === patient.id), "the patient");
});

await check("readCanonical finds published definitions", async () => {
  const url = "http://hl7.org/fhir/StructureDefinition/Patient";
  equal((await medplum.readCanonical("StructureDefinition", url)).name, "Patient", "name");
});

await check("requestSchema loads the elements of a type", async () => {
  await medplum.requestSchema("Appointment");
  ok(getDataType("Appointment").elements.participant, "element");
  ok(getSearchParameters("Appointment").practitioner ?? getSearchParameters("Appointment").actor, "search parameter");
});

await check("createMedia, uploadMedia, createDocumentReference and createPdf", async () => {
  const file = { data: "a photo", filename: "a.txt", contentType: "text/plain" };
  const media = await medplum.createMedia(file);
  equal([media.status, media.content.title], ["completed", "a.txt"], "media");
  equal(await (await medplum.download(media.content.url)).text(), "a photo", "media content");
  const binary = (await medplum.searchOne("Media", `_id=${media.id}`)).content.url;
  ok(binary.includes("/storage/"), "a presigned url");
  equal((await medplum.uploadMedia("more", "text/plain", "b.txt", { height: 1 })).height, 1, "additional fields");
  const document = await medplum.createDocumentReference(file);
  equal(await (await medplum.download(document.content[0].attachment.url)).text(), "a photo", "document");
  const pdf = new MedplumClient({ baseUrl: base, createPdf: () => Promise.resolve(new TextEncoder().encode("%PDF")) });
  await pdf.startClientLogin(clientId, secret);
  equal((await pdf.createPdf({ docDefinition: { content: [] }, filename: "a.pdf" })).contentType, "application/pdf");
});

await check("readPatientEverything, readPatientSummary and valueSetExpand", async () => {
  equal((await medplum.readPatientEverything(patient.id)).entry[0].resource.id, patient.id, "everything");
  const summary = await medplum.readPatientSummary(patient.id);
  equal([summary.type, summary.entry[0].resource.resourceType], ["document", "Composition"], "summary");
  const url = "http://hl7.org/fhir/ValueSet/administrative-gender";
  const expanded = await medplum.valueSetExpand({ url, filter: "fem" });
  equal(expanded.expansion.contains.map((each) => each.code), ["female"], "codes");
});

await check("graphql queries and changes", async () => {
  const made = await medplum.graphql(`mutation { PatientCreate(res: { name: [{ given: "Homer" }] }) { id } }`);
  const found = await medplum.graphql(`{ Patient(id: "${made.data.PatientCreate.id}") { name { given } } }`);
  equal(found.data.Patient.name, [{ given: ["Homer"] }], "name");
});
