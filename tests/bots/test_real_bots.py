"""Bots as people write them, run as they are: those of the tutorials (`seed/`), and small ones of every trade (`real/`)."""

from __future__ import annotations

import hashlib
import hmac
import io
import json
import uuid
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from bots.egress import ALLOWED_HOST
from tests.bots.conftest import Project, wait_until
from tests.bots.remote import Remote, running_remote

HERE = Path(__file__).parent
HL7 = "x-application/hl7-v2+er7"
MRN = "https://hospital.example/mrn"


@pytest.fixture(scope="module")
def remote() -> Iterator[Remote]:
    with running_remote() as server:
        yield server


def code_of(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def deployed(
    project: Project, name: str, extra: str = "", remote: Remote | None = None, **elements: Any
) -> str:
    """A Bot with the code of a file, deployed under its name; with a remote server it may reach that."""
    if remote:
        elements["extension"] = [{"url": ALLOWED_HOST, "valueString": remote.rule}]
    return project.bot(code_of(name) + extra, filename=Path(name).name, **elements)


def secrets(project: Project, bot: str, **values: str) -> None:
    items = [{"name": name, "valueString": value} for name, value in values.items()]
    project.http.post(f"/admin/projects/{project.id}/bot/{bot}/secrets", json=items).raise_for_status()


def run(project: Project, bot: str, value: Any) -> Any:
    """The JSON a Bot answers with."""
    answer = project.execute(bot, value)
    assert answer.status_code == 200, answer.text
    return answer.json()


def send(project: Project, bot: str, text: str, content_type: str, **headers: str) -> httpx.Response:
    return project.http.post(
        f"/fhir/R4/Bot/{bot}/$execute",
        content=text.encode(),
        headers={"content-type": content_type} | headers,
    )


def patient(project: Project, **elements: Any) -> Any:
    family = f"Family{uuid.uuid4().hex[:8]}"
    return project.post(
        "/fhir/R4/Patient",
        {
            "resourceType": "Patient",
            "name": [{"given": ["Jane"], "family": family}],
            "birthDate": "1980-02-03",
        }
        | elements,
    )


# --- the tutorials, word for word ------------------------------------------------------------------------------------


def test_hello_world(project: Project) -> None:
    bot = deployed(project, "seed/hello-world.js")
    project.subscribe(bot, "Patient?gender=other")
    patient(project, gender="other")
    assert project.audit_events(f"Bot/{bot}", 1)[0]["outcomeDesc"] == "Hello world"
    classic = project.bot(
        "exports.handler = async function (medplum, event) {\n  console.log('Hello world');\n};\n"
    )
    assert project.execute(classic).status_code == 200
    assert project.audit_events(f"Bot/{classic}", 1)[0]["outcomeDesc"] == "Hello world"


def test_hello_patient(project: Project) -> None:
    bot = deployed(project, "seed/hello-patient.ts")
    jane = {"resourceType": "Patient", "name": [{"given": ["Jane"], "family": "Doe"}]}
    assert run(project, bot, jane) is True
    assert project.audit_events(f"Bot/{bot}", 1)[0]["outcomeDesc"] == "Hello Jane Doe!"


def test_custom_operation(project: Project) -> None:
    bot = deployed(project, "seed/custom-operation.js")
    code = f"my-custom-operation-{uuid.uuid4().hex[:6]}"
    project.post("/fhir/R4/OperationDefinition", {
        "resourceType": "OperationDefinition",
        "extension": [{"url": "https://medplum.com/fhir/StructureDefinition/operationDefinition-implementation", "valueReference": {"reference": f"Bot/{bot}"}}],
        "name": "my-custom-operation", "status": "active", "kind": "operation", "code": code, "system": True, "type": False, "instance": False,
        "parameter": [
            {"use": "in", "name": "input", "type": "Patient", "min": 1, "max": "1"},
            {"use": "out", "name": "return", "type": "Patient", "min": 1, "max": "1"},
        ],
    })  # fmt: skip
    body = {"resourceType": "Patient", "name": [{"family": "Smith", "given": ["John"]}]}
    answer = project.post(f"/fhir/R4/Patient/${code}", body, 200)
    assert answer["identifier"] == [{"system": "https://example.com/patient-id", "value": "12345"}]


@pytest.mark.parametrize("is_free", [False, True])
def test_out_of_office_rerouting(project: Project, is_free: bool) -> None:
    bot = deployed(project, "seed/out-of-office.ts", "\nexport { oooRerouteHandler as handler };\n")
    practitioner = project.post(
        "/fhir/R4/Practitioner", {"resourceType": "Practitioner", "name": [{"family": "Away"}]}
    )
    owner = {"reference": f"Practitioner/{practitioner['id']}", "display": "Dr. Away"}
    schedule = project.post("/fhir/R4/Schedule", {"resourceType": "Schedule", "actor": [owner]})
    if is_free:
        now = datetime.now(UTC)
        slot = {
            "start": (now - timedelta(minutes=5)).isoformat(),
            "end": (now + timedelta(hours=3)).isoformat(),
        }
        project.post("/fhir/R4/Slot", {"resourceType": "Slot", "status": "free", "schedule": {"reference": f"Schedule/{schedule['id']}"}} | slot)  # fmt: skip
    thread = project.post("/fhir/R4/Communication", {"resourceType": "Communication", "status": "in-progress", "recipient": [owner]})  # fmt: skip
    reference = {"reference": f"Communication/{thread['id']}"}
    task = project.post("/fhir/R4/Task", {"resourceType": "Task", "status": "accepted", "intent": "order", "focus": reference, "owner": owner})  # fmt: skip
    made = project.subscribe(bot, "Communication?part-of:missing=false&status=in-progress")
    project.post("/fhir/R4/Communication", {"resourceType": "Communication", "status": "in-progress", "partOf": [reference]})  # fmt: skip
    (event,) = project.audit_events(f"Bot/{bot}", 1)
    assert event["outcome"] == "0", event
    after = project.http.get(f"/fhir/R4/Task/{task['id']}").json()
    thread = project.http.get(f"/fhir/R4/Communication/{thread['id']}").json()
    if not is_free:
        assert "owner" not in after
        assert after["status"] == "requested"
        assert after["note"][0]["text"] == "Auto-rerouted: Dr. Away is currently unavailable"
        assert "recipient" not in thread
    else:
        assert (after["owner"], after["status"], thread["recipient"]) == (owner, "accepted", [owner])
    project.http.delete(f"/fhir/R4/Subscription/{made['id']}").raise_for_status()


def test_stale_thread_reminders(project: Project) -> None:
    jane = patient(project)
    topic = {"topic": {"text": "Refill"}, "subject": {"reference": f"Patient/{jane['id']}"}}
    thread = project.post(
        "/fhir/R4/Communication", {"resourceType": "Communication", "status": "in-progress"} | topic
    )
    project.post("/fhir/R4/Communication", {"resourceType": "Communication", "status": "in-progress"})
    tasks = f"Task?focus=Communication/{thread['id']}"
    bot = deployed(project, "seed/stale-threads.ts", "\nexport { staleThreadRemindersHandler as handler };\n")
    assert project.execute(bot).status_code == 200
    assert project.search(tasks) == []  # nobody has waited for three days
    hasty = code_of("seed/stale-threads.ts").replace("staleDays = 3", "staleDays = -1")
    project.deploy(
        bot, f"{hasty}\nexport {{ staleThreadRemindersHandler as handler }};\n", "stale-threads.ts"
    )
    for _ in range(2):
        assert project.execute(bot).status_code == 200
    (task,) = project.search(tasks)
    assert (task["priority"], task["for"]["reference"]) == ("urgent", f"Patient/{jane['id']}")
    assert task["description"].startswith('Thread "Refill" has been open')


# --- Bots of every trade ---------------------------------------------------------------------------------------------


def adt(mrn: str, family: str) -> str:
    return f"MSH|^~\\&|ADT|HOSP|FHIR|CLINIC|20260101120000||ADT^A01|MSG1|P|2.5.1\rPID|1||{mrn}^^^HOSP^MR||{family}^Jane||19800203|F\rPV1|1|I\r"


def test_admissions_become_patients(project: Project) -> None:
    bot, mrn = deployed(project, "real/adt-to-patient.ts"), uuid.uuid4().hex[:8]
    for family in ("Doe", "Roe"):
        answer = send(project, bot, adt(mrn, family), HL7)
        assert (answer.status_code, answer.headers["content-type"]) == (200, HL7)
        assert "MSA|AA|MSG1" in answer.text
    (stored,) = project.search(f"Patient?identifier={MRN}|{mrn}")
    assert (stored["name"][0]["family"], stored["birthDate"], stored["gender"]) == (
        "Roe",
        "1980-02-03",
        "female",
    )
    assert "MSA|AE|MSG1" in send(project, bot, adt("", "Doe"), HL7).text


def test_results_of_a_laboratory_become_a_report(project: Project) -> None:
    bot, mrn = deployed(project, "real/oru-to-report.ts"), uuid.uuid4().hex[:8]
    oru = f"MSH|^~\\&|LAB|LAB|FHIR|CLINIC|20260101120000||ORU^R01|M2|P|2.5.1\rPID|1||{mrn}^^^HOSP^MR\rOBR|1|||80061^Lipids\rOBX|1|NM|2093-3^Cholesterol||180|mg/dL\rOBX|2|NM|2571-8^Triglycerides||90.5|mg/dL\r"
    assert "No patient with MRN" in send(project, bot, oru, HL7).text
    jane = patient(project, identifier=[{"system": MRN, "value": mrn}])
    answer = send(project, bot, oru, HL7)
    assert answer.json() == ["201", "201", "201"]
    (report,) = project.search(f"DiagnosticReport?subject=Patient/{jane['id']}")
    assert report["code"] == {"text": "Lipids"}
    first = project.http.get(f"/fhir/R4/{report['result'][0]['reference']}").json()
    assert first["valueQuantity"] == {"value": 180, "unit": "mg/dL"}


def test_an_order_goes_to_the_laboratory(project: Project, remote: Remote) -> None:
    bot = deployed(project, "real/order-to-lab.js", remote=remote)
    secrets(project, bot, LAB_URL=f"{remote.rule}/echo", LAB_TOKEN="lab-token")
    jane = patient(project)
    order = project.post("/fhir/R4/ServiceRequest", {
        "resourceType": "ServiceRequest", "status": "active", "intent": "order", "subject": {"reference": f"Patient/{jane['id']}"},
        "code": {"coding": [{"system": "http://loinc.org", "code": "80061", "display": "Lipids"}]},
    })  # fmt: skip
    assert run(project, bot, order)["identifier"][0]["system"] == "https://lab.example/order"
    method, _, headers, body = remote.seen[-1]
    assert (method, headers["authorization"], headers["content-type"]) == ("POST", "Bearer lab-token", HL7)
    assert f"OBR|1|{order['id']}||80061^Lipids" in body.decode()
    stale = project.execute(bot, order)
    assert stale.status_code == 400
    assert "Test failed" in stale.text


def test_an_intake_form_becomes_resources(project: Project) -> None:
    bot = deployed(project, "real/intake.ts")
    family = uuid.uuid4().hex[:8]
    answers = {
        "first-name": {"valueString": "Jane"}, "last-name": {"valueString": family}, "birth-date": {"valueDate": "1990-01-02"},
        "email": {"valueString": "jane@example.com"}, "smoker": {"valueBoolean": True},
        "allergy": {"valueCoding": {"system": "http://snomed.info/sct", "code": "91936005", "display": "Allergy to penicillin"}},
    }  # fmt: skip
    items = [{"linkId": name, "answer": [value]} for name, value in answers.items()]
    made = run(project, bot, {"resourceType": "QuestionnaireResponse", "status": "completed", "item": items})
    assert made["telecom"] == [{"system": "email", "value": "jane@example.com"}]
    assert project.search(f"AllergyIntolerance?patient=Patient/{made['id']}")
    assert project.search(f"Observation?subject=Patient/{made['id']}&code=72166-2")


def test_a_webhook_checks_its_signature(project: Project) -> None:
    bot = deployed(project, "real/webhook.js", rawBody=True)
    secrets(project, bot, WEBHOOK_SECRET="whsec-0123456789")
    body = json.dumps({"id": uuid.uuid4().hex, "amount": 5}, indent=3)
    signature = hmac.new(b"whsec-0123456789", body.encode(), hashlib.sha256).hexdigest()
    answer = send(project, bot, body, "application/json", **{"x-signature": signature})
    assert answer.json() == {"received": json.loads(body)["id"]}
    for wrong in ("", "00", signature[:-2] + "00", "zz"):
        assert send(project, bot, body, "application/json", **{"x-signature": wrong}).status_code == 401
    assert len(project.search(f"Basic?identifier=https://pay.example|{json.loads(body)['id']}")) == 1


def test_a_letter_is_written_and_filed(project: Project) -> None:
    bot = deployed(project, "real/letter.ts")
    made = run(project, bot, patient(project))
    url = made["content"][0]["attachment"]["url"]
    content = httpx.get(url).content
    assert content.startswith(b"%PDF-")


def test_lines_of_text_are_imported(project: Project) -> None:
    bot, number = deployed(project, "real/csv-import.js"), uuid.uuid4().hex[:6]
    text = f"number;family;born\r\n{number}1;Müller;1980-01-01\r\n{number}2;Doe;1.1.1980\r\n{number}3; Roe ;1990-12-31\r\n"
    first = send(project, bot, text, "text/plain")
    assert json.loads(first.text) == {"created": 2, "kept": 0, "skipped": 1, "convert": "function"}
    assert json.loads(send(project, bot, text, "text/plain").text)["kept"] == 2
    assert project.search(f"Patient?identifier=https://legacy.example|{number}1")[0]["name"] == [
        {"family": "Müller"}
    ]


def test_sftp_is_refused_when_it_is_deployed(project: Project) -> None:
    bot = project.bot(None)
    (issue,) = project.deploy(bot, code_of("real/sftp.ts"), "sftp.ts", 400)["issue"]
    assert issue["details"]["text"].startswith("sftp.ts:2:15: ")
    assert "neither SSH nor SFTP" in issue["details"]["text"]


def test_an_assertion_is_signed_for_another_server(project: Project, remote: Remote) -> None:
    bot = deployed(project, "real/signed-assertion.ts", remote=remote)
    key = ec.generate_private_key(ec.SECP384R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    secrets(project, bot, PRIVATE_KEY=key.decode(), TOKEN_URL=f"{remote.rule}/echo")
    assert run(project, bot, {}) == {"type": "application/x-www-form-urlencoded;charset=UTF-8", "parts": 3}


def test_results_in_xml_are_read(project: Project) -> None:
    bot = deployed(project, "real/xml-results.mjs")
    xml = '<results><result code="2093-3" unit="mg/dL">180</result><result code="2571-8" unit="mg/dL">90.5</result></results>'
    assert json.loads(send(project, bot, xml, "text/plain").text) == [180, 90.5]
    damaged = send(project, bot, "<results>\n<result></results>", "text/plain")
    assert damaged.status_code == 400
    assert "The XML is damaged in line 2" in damaged.text


CCDA = """<?xml version="1.0" encoding="UTF-8"?>
<ClinicalDocument xmlns="urn:hl7-org:v3">
  <realmCode code="US"/><typeId root="2.16.840.1.113883.1.3" extension="POCD_HD000040"/>
  <templateId root="2.16.840.1.113883.10.20.22.1.2"/><id root="1.2.3"/>
  <code code="34133-9" codeSystem="2.16.840.1.113883.6.1"/><title>Summary</title><effectiveTime value="20260101"/>
  <confidentialityCode code="N" codeSystem="2.16.840.1.113883.5.25"/><languageCode code="en-US"/>
  <recordTarget><patientRole><id root="1.2.3" extension="1"/>
    <patient><name><given>Jane</given><family>Doe</family></name><administrativeGenderCode code="F"/><birthTime value="19800203"/></patient>
  </patientRole></recordTarget>
  <component><structuredBody/></component>
</ClinicalDocument>"""


def test_a_clinical_document_is_read(project: Project) -> None:
    bot = deployed(project, "real/ccda-import.ts")
    found = json.loads(send(project, bot, CCDA, "text/plain").text)
    assert (found["family"], found["functions"]) == ("Doe", ["function", "function"])
    assert "Patient" in found["types"]


def test_an_address_is_looked_up_once(project: Project, remote: Remote) -> None:
    bot = deployed(project, "real/enrich.ts", remote=remote)
    secrets(project, bot, GEO_URL=f"{remote.rule}/echo")
    made = run(project, bot, patient(project, address=[{"postalCode": "12 345"}]))
    assert made["address"][0]["extension"][0]["extension"][0] == {"url": "latitude", "valueDecimal": len("application/json")}  # fmt: skip
    assert remote.seen[-1][1] == "/echo?code=12%20345"
    assert run(project, bot, made) is False


def test_defaults_are_filled_in_and_the_bot_comes_to_rest(project: Project) -> None:
    bot = deployed(project, "real/defaults.js")
    made = project.subscribe(bot, "Patient?gender=unknown")
    jane = patient(project, gender="unknown", telecom=[{"system": "phone", "value": "(030) 12-34"}])
    events = project.audit_events(f"Bot/{bot}", 2)
    project.http.delete(f"/fhir/R4/Subscription/{made['id']}").raise_for_status()
    assert [event.get("outcomeDesc") for event in events] == [None, "Nothing to do"]
    after = project.http.get(f"/fhir/R4/Patient/{jane['id']}").json()
    assert (after["active"], after["telecom"][0]["value"], after["meta"]["author"]["reference"]) == (True, "0301234", f"Bot/{bot}")  # fmt: skip


def test_work_goes_to_whoever_has_the_least(project: Project) -> None:
    bot = deployed(project, "real/assign-task.ts")
    people = [project.post("/fhir/R4/Practitioner", {"resourceType": "Practitioner", "identifier": [{"system": "https://team.example", "value": str(n)}]})["id"] for n in range(3)]  # fmt: skip
    order = project.post("/fhir/R4/ServiceRequest", {"resourceType": "ServiceRequest", "status": "active", "intent": "order", "subject": {"reference": f"Patient/{patient(project)['id']}"}})  # fmt: skip
    owners = [run(project, bot, order)["owner"]["reference"].removeprefix("Practitioner/") for _ in range(6)]
    assert sorted(owners) == sorted(people * 2)


def test_observations_are_packed(project: Project) -> None:
    bot, jane = deployed(project, "real/zip-export.js"), patient(project)
    observation(project, jane, "pulse", 70, "1/min")
    answer = project.execute(bot, {"patient": f"Patient/{jane['id']}"})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/zip")
    archive = zipfile.ZipFile(io.BytesIO(answer.content))
    assert archive.namelist() == ["observations.csv", "raw/", "raw/bundle.json"]
    assert archive.read("observations.csv").decode().endswith(",pulse,70")


def observation(project: Project, of: Any, text: str, value: float, unit: str, code: str = "") -> Any:
    coding = {"coding": [{"system": "http://loinc.org", "code": code}]} if code else {}
    return project.post("/fhir/R4/Observation", {
        "resourceType": "Observation", "status": "final", "code": {"text": text} | coding,
        "subject": {"reference": f"Patient/{of['id']}"}, "valueQuantity": {"value": value, "unit": unit},
    })  # fmt: skip


def test_patients_are_reminded(project: Project, mail_folder: Path) -> None:
    bot = deployed(project, "real/reminders.ts", runAsUser=True)
    start = datetime.now(UTC) + timedelta(hours=20)
    address = f"{uuid.uuid4().hex}@example.com"
    jane = patient(project, telecom=[{"system": "email", "value": address}])
    for who in (f"Patient/{jane['id']}", f"Patient/{patient(project)['id']}"):
        project.post("/fhir/R4/Appointment", {
            "resourceType": "Appointment", "status": "booked", "start": start.isoformat(), "end": (start + timedelta(hours=1)).isoformat(),
            "participant": [{"actor": {"reference": who}, "status": "accepted"}],
        })  # fmt: skip
    closed = run(project, bot, {})
    assert closed == {"sent": 0, "failed": ["Email is not enabled: the Project needs the feature email"] * 2}
    project.repository.patch("Project", project.id, [{"op": "add", "path": "/features/-", "value": "email"}])
    wait_until(lambda: run(project, bot, {})["sent"] == 1)  # the other patient has no address
    sent = [text for text in (path.read_text() for path in mail_folder.iterdir()) if address in text]
    assert "Subject: Your appointment" in sent[0]
    assert "visit.ics" in sent[0]


def test_a_body_mass_index_is_worked_out(project: Project) -> None:
    bot, jane = deployed(project, "real/bmi.ts"), patient(project)
    assert "height or weight is missing" in project.execute(bot, jane).text
    observation(project, jane, "height", 170, "cm", "8302-2")
    observation(project, jane, "weight", 65, "kg", "29463-7")
    assert run(project, bot, jane)["valueQuantity"]["value"] == 22.5


def test_duplicates_are_found_by_compiled_code(project: Project) -> None:
    bot = deployed(project, "real/duplicates.js")
    first = patient(project)
    second = patient(project, name=first["name"])
    assert run(project, bot, second) == [f"Patient/{first['id']}"]
    assert project.audit_events(f"Bot/{bot}", 1)[0]["outcomeDesc"] == "1 of 2 function"
    assert project.search(f"Task?focus=Patient/{second['id']}")


def test_a_graph_is_asked(project: Project) -> None:
    bot, jane = deployed(project, "real/graphql-summary.ts"), patient(project)
    observation(project, jane, "pulse", 70, "bpm")
    observation(project, jane, "height", 170, "cm")
    assert project.execute(bot, {"id": jane["id"]}).text == f"{jane['name'][0]['family']}\nheight: 170 cm\npulse: 70 bpm"  # fmt: skip


def test_bots_call_bots(project: Project) -> None:
    bot = deployed(project, "real/orchestrate.js")
    echo = project.bot("export const handler = (m, event) => event.input.from")
    failing = project.bot("export const handler = () => { throw new Error('out of tune') }")
    unknown = str(uuid.uuid4())
    assert run(project, bot, {"bots": [echo, failing, unknown]}) == ["orchestra", "out of tune", "Not found"]


def test_a_token_is_kept_between_runs(project: Project, remote: Remote) -> None:
    bot = deployed(project, "real/token-cache.ts", remote=remote)
    secrets(project, bot, PARTNER=f"{remote.rule}/echo")
    assert [run(project, bot, {}) for _ in range(2)] == [{"token": "200-POST", "cached": False}, {"token": "200-POST", "cached": True}]  # fmt: skip


def test_a_document_is_faxed(project: Project, remote: Remote) -> None:
    bot = deployed(project, "real/fax.js", remote=remote)
    secrets(project, bot, FAX_URL=f"{remote.rule}/echo")
    binary = project.http.post("/fhir/R4/Binary?_filename=a.txt", content=b"the document", headers={"content-type": "text/plain"}).json()  # fmt: skip
    document = project.post("/fhir/R4/DocumentReference", {"resourceType": "DocumentReference", "status": "current", "content": [{"attachment": {"url": f"Binary/{binary['id']}", "contentType": "text/plain"}}]})  # fmt: skip
    assert run(project, bot, document) == {"isForm": True, "holds": True}


def test_a_form_is_answered_with_xml(project: Project) -> None:
    bot, number = deployed(project, "real/form-post.js"), f"+49{uuid.uuid4().int % 10**10}"
    patient(project, telecom=[{"system": "phone", "value": number}])
    answer = project.http.post(f"/fhir/R4/Bot/{bot}/$execute", data={"From": number, "Body": "Hi & bye"})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/plain")
    assert answer.text == '<?xml version="1.0"?><Response><Message>Thank you, Jane</Message></Response>'


def test_a_change_is_noted_beside_the_patient(project: Project) -> None:
    bot, jane = deployed(project, "real/comment-on-change.ts"), patient(project)
    assert project.execute(bot, jane).text == "New patient"
    changed = project.http.put(f"/fhir/R4/Patient/{jane['id']}", json=jane | {"gender": "female"}).json()
    assert project.execute(bot, changed).text == "Changed: gender"
