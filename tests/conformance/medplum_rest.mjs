// The unmodified MedplumClient: every method that reads, writes, searches or moves files (client-surface.md §3, §4, §6).
import { createReference, MedplumClient } from "@medplum/core";
import { base, check, clientId, equal, fails, ok, secret } from "./checks.mjs";

const medplum = new MedplumClient({
  baseUrl: base,
  cacheTime: 0,
  createPdf: async (definition) => new Blob([`%PDF-1.4 ${definition.content[0]}`], { type: "application/pdf" }),
});
const family = `Rest${Date.now()}`;
const system = "https://example.com/rest";
let patient;

await check("a client logs in and has a project", async () => {
  await medplum.startClientLogin(clientId, secret);
  ok(medplum.getProject()?.id, "project id");
});

// --- create, read, update, delete ---

await check("createResource, readResource, readReference", async () => {
  patient = await medplum.createResource({
    resourceType: "Patient",
    name: [{ given: ["Ann"], family }],
    birthDate: "1990-02-03",
    identifier: [{ system, value: family }],
    active: null,
  });
  ok(!("active" in patient), "no null");
  equal((await medplum.readResource("Patient", patient.id)).id, patient.id);
  equal((await medplum.readReference(createReference(patient))).id, patient.id);
  equal((await medplum.readReference({ reference: "system" })).resourceType, "Device", "system is answered locally");
});

await check("createResourceIfNoneExist finds the one that is there", async () => {
  const found = await medplum.createResourceIfNoneExist({ resourceType: "Patient" }, `identifier=${system}|${family}`);
  equal(found.id, patient.id);
  const made = await medplum.createResourceIfNoneExist({ resourceType: "Patient" }, `identifier=${system}|${family}-new`);
  ok(made.id !== patient.id, "a new one");
  await medplum.createResource({ resourceType: "Patient", identifier: [{ system, value: `${family}-twice` }] });
  await medplum.createResource({ resourceType: "Patient", identifier: [{ system, value: `${family}-twice` }] });
  await fails(
    () => medplum.createResourceIfNoneExist({ resourceType: "Patient" }, `identifier=${system}|${family}-twice`),
    "Multiple resources found matching condition",
  );
});

await check("upsertResource creates, then updates", async () => {
  const identifier = [{ system, value: `${family}-upsert` }];
  const query = { identifier: `${system}|${family}-upsert` };
  const made = await medplum.upsertResource({ resourceType: "Organization", name: "One", identifier }, query);
  const changed = await medplum.upsertResource({ resourceType: "Organization", name: "Two", identifier }, query);
  equal([changed.id, changed.name], [made.id, "Two"]);
});

await check("updateResource, with If-Match too, and without any change", async () => {
  const updated = await medplum.updateResource(
    { ...patient, gender: "female" },
    { headers: { "If-Match": `W/"${patient.meta.versionId}"` } },
  );
  const same = await medplum.updateResource(updated);
  equal(same.meta.versionId, updated.meta.versionId);
  await fails(
    () => medplum.updateResource({ ...patient, gender: "male" }, { headers: { "If-Match": `W/"${patient.meta.versionId}"` } }),
    "Precondition Failed",
  );
  await fails(() => medplum.updateResource({ resourceType: "Patient", id: crypto.randomUUID() }), "Not found");
  patient = updated;
});

await check("patchResource in all its verbs", async () => {
  patient = await medplum.patchResource("Patient", patient.id, [
    { op: "test", path: "/gender", value: "female" },
    { op: "add", path: "/telecom/-", value: { system: "phone", value: "1" } },
    { op: "add", path: "/telecom/-", value: { system: "phone", value: "2" } },
    { op: "copy", from: "/name/0/given", path: "/name/0/prefix" },
    { op: "move", from: "/telecom/1", path: "/telecom/0" },
    { op: "replace", path: "/birthDate", value: "1991-02-03" },
    { op: "remove", path: "/gender" },
  ]);
  equal(patient.telecom.map((each) => each.value), ["2", "1"]);
  equal([patient.name[0].prefix, patient.birthDate, patient.gender], [["Ann"], "1991-02-03", undefined]);
  await fails(
    () => medplum.patchResource("Patient", patient.id, [{ op: "test", path: "/active", value: true }]),
    "Test failed: undefined != true",
  );
  await fails(
    () => medplum.patchResource("Patient", patient.id, [{ op: "add", path: "/nonsense", value: 1 }]),
    'Invalid additional property "nonsense"',
  );
});

await check("a FHIRPath Patch by the generic patch method", async () => {
  const part = [
    { name: "type", valueCode: "replace" },
    { name: "path", valueString: "Patient.telecom.where(value = '1').system" },
    { name: "value", valueCode: "email" },
  ];
  const body = { resourceType: "Parameters", parameter: [{ name: "operation", part }] };
  const answer = await fetch(medplum.fhirUrl("Patient", patient.id), {
    method: "PATCH",
    headers: { Authorization: `Bearer ${medplum.getAccessToken()}`, "Content-Type": "application/fhir+json" },
    body: JSON.stringify(body),
  });
  equal((await answer.json()).telecom[1].system, "email");
});

await check("readHistory by pages, readVersion", async () => {
  const history = await medplum.readHistory("Patient", patient.id);
  equal([history.type, history.entry.length, history.total], ["history", 4, 4]);
  const page = await medplum.readHistory("Patient", patient.id, { count: 2, offset: 1 });
  equal(page.entry.map((each) => each.resource.meta.versionId), history.entry.slice(1, 3).map((each) => each.resource.meta.versionId));
  const first = history.entry[3].resource;
  equal(await medplum.readVersion("Patient", patient.id, first.meta.versionId), first);
  await fails(() => medplum.readVersion("Patient", patient.id, crypto.randomUUID()), "Not found");
});

await check("deleteResource, twice; the version is gone, a PUT restores", async () => {
  const doomed = await medplum.createResource({ resourceType: "Patient", name: [{ family: `${family}-doomed` }] });
  equal((await medplum.deleteResource("Patient", doomed.id)).id, "ok");
  await medplum.deleteResource("Patient", doomed.id);
  await fails(() => medplum.readResource("Patient", doomed.id), "Gone");
  const history = await medplum.readHistory("Patient", doomed.id);
  equal(history.entry[0].response.outcome.id, "gone");
  ok(!history.entry[0].resource, "no resource in a deletion");
  const restored = await medplum.updateResource(doomed);
  ok(restored.meta.versionId !== doomed.meta.versionId, "a new version");
  await fails(() => medplum.deleteResource("Patient", crypto.randomUUID()), "Not found");
});

await check("validateResource says what is wrong", async () => {
  equal((await medplum.validateResource({ resourceType: "Patient", gender: "male" })).id, "ok");
  const error = await fails(() => medplum.validateResource({ resourceType: "Observation" }), "Missing required property");
  equal(error.outcome.issue.map((each) => each.expression[0]), ["Observation.status", "Observation.code"]);
});

await check("createComment", async () => {
  const comment = await medplum.createComment(patient, "a word");
  equal([comment.basedOn, comment.subject].flat()[0]?.reference, `Patient/${patient.id}`);
  equal(comment.sender.reference, `ClientApplication/${clientId}`);
});

await check("executeBatch: a transaction with references, all or nothing", async () => {
  const urn = `urn:uuid:${crypto.randomUUID()}`;
  const weight = { resourceType: "Observation", status: "final", code: { text: "Weight" }, subject: { reference: urn } };
  const entry = [
    { request: { method: "POST", url: "Observation" }, resource: weight },
    { fullUrl: urn, request: { method: "POST", url: "Patient" }, resource: { resourceType: "Patient", name: [{ family }] } },
  ];
  const answer = await medplum.executeBatch({ resourceType: "Bundle", type: "transaction", entry });
  equal(answer.type, "transaction-response");
  equal(answer.entry.map((each) => each.response.status), ["201", "201"]);
  equal(answer.entry[0].resource.subject.reference, `Patient/${answer.entry[1].resource.id}`);
  const before = (await medplum.search("Patient", { family, _total: "accurate" })).total;
  const bad = { request: { method: "POST", url: "Patient" }, resource: { resourceType: "Patient", nonsense: 1 } };
  await fails(
    () => medplum.executeBatch({ resourceType: "Bundle", type: "transaction", entry: [...entry, bad] }),
    "Invalid additional property",
  );
  equal((await medplum.search("Patient", { family, _total: "accurate" })).total, before);
});

await check("auto-batch joins reads", async () => {
  const joined = new MedplumClient({ baseUrl: base, cacheTime: 0, autoBatchTime: 20, accessToken: medplum.getAccessToken() });
  const [one, two, missing] = await Promise.allSettled([
    joined.readResource("Patient", patient.id),
    joined.search("Patient", { family, _count: "1" }),
    joined.readResource("Patient", crypto.randomUUID()),
  ]);
  equal([one.value?.id, two.value?.entry.length, missing.status], [patient.id, 1, "rejected"]);
});

await check("a client with Basic credentials works alike", async () => {
  const basic = new MedplumClient({ baseUrl: base, cacheTime: 0 });
  basic.setBasicAuth(clientId, secret);
  equal((await basic.readResource("Patient", patient.id)).id, patient.id);
});

await check("without extended mode meta has no extended elements", async () => {
  const plain = new MedplumClient({ baseUrl: base, cacheTime: 0, extendedMode: false, accessToken: medplum.getAccessToken() });
  const meta = (await plain.readResource("Patient", patient.id)).meta;
  equal([meta.project, meta.author, meta.compartment], [undefined, undefined, undefined]);
});

// --- search ---

await check("search takes text, objects, URLSearchParams and pairs", async () => {
  for (
    const query of [
      `family=${family}&_count=1`,
      { family, _count: 1 },
      new URLSearchParams({ family, _count: "1" }),
      [["family", family], ["_count", "1"]],
    ]
  ) {
    equal((await medplum.search("Patient", query)).entry.length, 1, JSON.stringify(query));
  }
  const bundle = await medplum.search("Patient", { family, birthdate: ["1991-02-03", "1800"], "identifier:missing": false });
  equal(bundle.entry.map((each) => each.resource.id), [patient.id]);
  equal([bundle.type, bundle.entry[0].search.mode], ["searchset", "match"]);
});

await check("searchOne, searchResources", async () => {
  equal((await medplum.searchOne("Patient", { identifier: `${system}|${family}` })).id, patient.id);
  equal(await medplum.searchOne("Patient", "identifier=nobody-has-this"), undefined);
  const found = await medplum.searchResources("Patient", { identifier: `${system}|${family}` });
  equal([found.length, found.bundle.type], [1, "searchset"]);
  equal((await medplum.searchResources("Patient", "identifier=nobody-has-this")).length, 0);
});

await check("searchResourcePages by offset and by cursor", async () => {
  const tag = `${family}-pages`;
  const entry = Array.from({ length: 45 }, () => ({
    request: { method: "POST", url: "Basic" },
    resource: { resourceType: "Basic", code: { text: "x" }, meta: { tag: [{ code: tag }] } },
  }));
  await medplum.executeBatch({ resourceType: "Bundle", type: "transaction", entry });
  for (const sort of ["_lastUpdated", "-_lastUpdated", "_id"]) {
    const seen = new Set();
    const sizes = [];
    for await (const page of medplum.searchResourcePages("Basic", { _tag: tag, _count: 20, _sort: sort })) {
      sizes.push(page.length);
      page.forEach((each) => seen.add(each.id));
    }
    equal([sizes, seen.size], [[20, 20, 5], 45], sort);
  }
  const all = [];
  for await (const page of medplum.searchResourcePages("Basic", { _tag: tag })) all.push(page.length);
  equal(all, [45], "a page of 1000");
});

await check("_include, _revinclude, _has and chains", async () => {
  const clinic = await medplum.createResource({ resourceType: "Organization", name: family });
  await medplum.patchResource("Patient", patient.id, [{ op: "add", path: "/managingOrganization", value: createReference(clinic) }]);
  const observation = await medplum.createResource({
    resourceType: "Observation",
    status: "final",
    code: { coding: [{ code: family }] },
    subject: createReference(patient),
  });
  const bundle = await medplum.search("Patient", {
    _id: patient.id,
    _include: "Patient:organization",
    _revinclude: "Observation:subject",
  });
  equal(bundle.entry.map((each) => [each.resource.id, each.search.mode]), [
    [patient.id, "match"],
    [clinic.id, "include"],
    [observation.id, "include"],
  ]);
  equal((await medplum.searchOne("Patient", { "_has:Observation:patient:code": family })).id, patient.id);
  equal((await medplum.searchOne("Observation", { "subject:Patient.organization.name": family })).id, observation.id);
  equal((await medplum.searchOne("Patient", { _filter: `family eq ${family} and birthdate eq 1991-02-03` })).id, patient.id);
});

await check("_total, _summary, _elements, _fields, _count=0", async () => {
  equal((await medplum.search("Patient", { _id: patient.id, _summary: "count" })).total, 1);
  const empty = await medplum.search("Patient", { _id: patient.id, _count: "0" });
  equal([empty.total, empty.entry], [1, undefined]);
  for (const name of ["_elements", "_fields"]) {
    const only = (await medplum.searchOne("Patient", { _id: patient.id, [name]: "birthDate" }));
    equal([only.birthDate, only.name], ["1991-02-03", undefined], name);
  }
  equal((await medplum.search("Patient", { _id: patient.id })).total, undefined);
});

await check("a search across types, and one by POST", async () => {
  const bundle = await medplum.get(`fhir/R4/?_type=Patient,Organization&_lastUpdated=gt2020&_count=5`);
  equal(bundle.entry.length, 5);
  const posted = await medplum.post(medplum.fhirUrl("Patient", "_search"), `_id=${patient.id}`, "application/x-www-form-urlencoded");
  equal(posted.entry.length, 1);
});

await check("errors of searches say what is wrong", async () => {
  await fails(() => medplum.search("Patient", "nonsense=1"), "Unknown search parameter: nonsense");
  await fails(() => medplum.search("Patient", "_sort=nonsense"), "Unknown search parameter: nonsense");
  await fails(() => medplum.search("Patient", "_offset=10001"), "Search offset exceeds maximum");
  await fails(() => medplum.search("Patient", "birthdate=nonsense"), "Invalid format for date search parameter");
  await fails(() => medplum.search("Binary", "_id=1"), "Cannot search on Binary resource type");
});

await check("readCanonical finds by url", async () => {
  if (!medplum.readCanonical) return; // core 4
  const url = `https://example.com/${family}`;
  const made = await medplum.createResource({ resourceType: "Questionnaire", status: "active", url });
  equal((await medplum.readCanonical("Questionnaire", url)).id, made.id);
});

await check("valueSetExpand", async () => {
  const expanded = await medplum.valueSetExpand({ url: "http://hl7.org/fhir/ValueSet/administrative-gender", filter: "fem", count: 5 });
  equal(expanded.expansion.contains.map((each) => each.code), ["female"]);
});

await check("readPatientEverything", async () => {
  const bundle = await medplum.readPatientEverything(patient.id);
  ok(bundle.entry.some((each) => each.resource.resourceType === "Observation"), "an Observation");
});

await check("readPatientSummary", async () => {
  const bundle = await medplum.readPatientSummary(patient.id);
  equal([bundle.resourceType, bundle.type, bundle.entry[0].resource.resourceType], ["Bundle", "document", "Composition"]);
});

await check("readResourceGraph", async () => {
  const name = `${family}-graph`;
  const link = [{ path: "Patient.managingOrganization", target: [{ type: "Organization" }] }];
  await medplum.createResource({ resourceType: "GraphDefinition", name, status: "active", start: "Patient", link });
  const bundle = await medplum.readResourceGraph("Patient", patient.id, name);
  equal(bundle.entry.map((each) => each.resource.resourceType), ["Patient", "Organization"]);
});

await check("graphql", async () => {
  const answer = await medplum.graphql(
    "query One($id: ID!) { Patient(id: $id) { birthDate ObservationList(_reference: subject) { id } } }",
    "One",
    { id: patient.id },
  );
  equal([answer.data.Patient.birthDate, answer.data.Patient.ObservationList.length], ["1991-02-03", 1]);
});

await check("requestSchema", async () => {
  await medplum.requestSchema("Patient");
});

await check("rateLimitStatus reads what answers say", async () => {
  await medplum.readResource("Patient", patient.id);
  equal(medplum.rateLimitStatus().map((each) => each.name).sort(), ["fhirInteractions", "requests"]);
});

// --- files ---

await check("createBinary, createAttachment, download, downloadResponse", async () => {
  const bytes = new Uint8Array([0, 255, 1, 254]);
  const binary = await medplum.createBinary({ data: bytes, filename: "b.bin", contentType: "application/octet-stream" });
  equal([binary.resourceType, binary.contentType], ["Binary", "application/octet-stream"]);
  for (const address of [`Binary/${binary.id}`, binary.url]) {
    equal([...new Uint8Array(await (await medplum.download(address)).arrayBuffer())], [...bytes], address);
  }
  if (medplum.downloadResponse) {
    equal((await medplum.downloadResponse(`Binary/${binary.id}`)).headers.get("content-type"), "application/octet-stream");
  }
  const attachment = await medplum.createAttachment({ data: "text", filename: "t.txt", contentType: "text/plain" });
  equal([attachment.contentType, attachment.title], ["text/plain", "t.txt"]);
  equal(await (await medplum.download(attachment.url)).text(), "text");
});

await check("a Binary with a security context, read back", async () => {
  const binary = await medplum.createBinary({
    data: "secret",
    filename: "s.txt",
    contentType: "text/plain",
    securityContext: createReference(patient),
  });
  equal((await medplum.readResource("Binary", binary.id)).securityContext.reference, `Patient/${patient.id}`);
});

await check("createPdf", async () => {
  const binary = await medplum.createPdf({ docDefinition: { content: ["Hello"] }, filename: "hello.pdf" });
  equal(binary.contentType, "application/pdf");
  equal(await (await medplum.download(binary.url)).text(), "%PDF-1.4 Hello");
});

await check("createMedia, uploadMedia", async () => {
  const media = await medplum.createMedia({ data: "a picture", filename: "a.png", contentType: "image/png" });
  equal([media.status, media.content.title], ["completed", "a.png"]);
  equal(await (await medplum.download(media.content.url)).text(), "a picture");
  const uploaded = await medplum.uploadMedia("more", "image/png", "b.png", { note: [{ text: "x" }] });
  equal([uploaded.content.title, uploaded.note[0].text], ["b.png", "x"]);
});

await check("createDocumentReference", async () => {
  if (!medplum.createDocumentReference) return; // core 4
  const made = await medplum.createDocumentReference({
    data: "a document",
    filename: "d.txt",
    contentType: "text/plain",
    additionalFields: { subject: createReference(patient) },
  });
  equal(await (await medplum.download(made.content[0].attachment.url)).text(), "a document");
});

await check("what is stored keeps no presigned address", async () => {
  const attachment = await medplum.createAttachment({ data: "x", filename: "x.txt", contentType: "text/plain" });
  const made = await medplum.createResource({ resourceType: "Patient", photo: [attachment] });
  ok(made.photo[0].url.includes("storage/"), "a presigned address in the answer");
  const again = await medplum.updateResource({ ...made, active: true });
  equal(await (await medplum.download(again.photo[0].url)).text(), "x");
});

await check("bulkExport", async () => {
  const exported = await medplum.bulkExport("", "Patient", undefined, { pollStatusOnAccepted: true, pollStatusPeriod: 100 });
  const file = exported.output.find((each) => each.type === "Patient");
  const lines = (await (await medplum.download(file.url)).text()).trim().split("\n").map((line) => JSON.parse(line));
  ok(lines.some((each) => each.id === patient.id), "the patient");
});

await check("startAsyncRequest: a Bundle in the background", async () => {
  const bundle = { resourceType: "Bundle", type: "batch", entry: [{ request: { method: "GET", url: `Patient/${patient.id}` } }] };
  const job = await medplum.startAsyncRequest(medplum.fhirUrl().toString(), {
    method: "POST",
    body: JSON.stringify(bundle),
    pollStatusOnAccepted: true,
    pollStatusPeriod: 100,
  });
  equal([job.resourceType, job.status], ["AsyncJob", "completed"]);
  const results = JSON.parse(await (await medplum.download(job.output.parameter[0].valueReference.reference)).text());
  equal(results.entry[0].resource.id, patient.id);
});
