"""Custom operations: an OperationDefinition and its Bot, called in every way (shared/medplum/custom-operations.md)."""

from __future__ import annotations

import base64
import uuid
from typing import Any

import httpx
import pytest

from bots.custom_operations import IMPLEMENTATION, fits
from bots.operation_output import ALLOWED_TYPE, output
from fhirstore.api import FhirError
from tests.bots.conftest import Project, wait_until

RETURN_PATIENT = {"use": "out", "name": "return", "type": "Patient", "min": 1, "max": "1"}
TELL = """
exports.handler = async (medplum, event) => ({
  input: JSON.stringify(event.input), type: event.contentType ?? 'none', requester: event.requester.reference });
"""
TOLD = [
    {"use": "out", "name": name, "type": "string", "min": 1, "max": "1"}
    for name in ("input", "type", "requester")
]


def define(project: Project, bot: str | None, *parameters: dict[str, Any], **elements: Any) -> dict[str, Any]:
    """Create an OperationDefinition for a Bot; its code is new unless given."""
    code = elements.pop("code", f"op-{uuid.uuid4().hex[:8]}")
    definition = {
        "resourceType": "OperationDefinition",
        "name": code,
        "status": "active",
        "kind": "operation",
        "code": code,
        "system": True,
        "type": False,
        "instance": False,
    } | elements
    if parameters:
        definition["parameter"] = list(parameters)
    if bot:
        definition["extension"] = [{"url": IMPLEMENTATION, "valueReference": {"reference": f"Bot/{bot}"}}]
    made: dict[str, Any] = project.post("/fhir/R4/OperationDefinition", definition)
    return made


def values(answer: httpx.Response) -> dict[str, Any]:
    """The parameters of an answer by name."""
    assert answer.status_code == 200, answer.text
    return {each["name"]: each.get("valueString") for each in answer.json()["parameter"]}


def text_of(answer: httpx.Response) -> str:
    return str(answer.json()["issue"][0]["details"]["text"])


@pytest.fixture(scope="module")
def teller(project: Project) -> str:
    """The code of an operation that tells what its Bot was given."""
    return str(define(project, project.bot(TELL, filename="a.cjs"), *TOLD)["code"])


def test_the_documented_example_word_for_word(project: Project) -> None:
    code = """exports.handler = async function (medplum, event) {
      const patient = event.input;
      patient.identifier = patient.identifier || [];
      patient.identifier.push({ system: 'https://example.com/patient-id', value: '12345' });
      return patient;
    };"""
    operation = define(project, project.bot(code, filename="a.cjs"), RETURN_PATIENT)["code"]
    body = {"resourceType": "Patient", "name": [{"family": "Smith", "given": ["John"]}]}
    answer = project.http.post(f"/fhir/R4/Patient/${operation}", json=body)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("application/fhir+json")
    assert answer.json() == body | {
        "identifier": [{"system": "https://example.com/patient-id", "value": "12345"}]
    }


@pytest.mark.parametrize("path", ["", "Patient/", f"Patient/{uuid.uuid4()}/"])
@pytest.mark.parametrize("tail", ["", "/more/path"])
def test_get_and_post_at_every_level(project: Project, teller: str, path: str, tail: str) -> None:
    url = f"/fhir/R4/{path}${teller}{tail}"
    told = values(project.http.get(url, params={"a": ["1", "2"], "b": "c"}))
    assert told["input"] == '{"a":["1","2"],"b":"c"}'
    told = values(project.http.post(url, json={"x": 1}))
    assert (told["input"], told["type"]) == ('{"x":1}', "application/json")
    assert told["requester"].startswith("ClientApplication/")
    for method in ("PUT", "PATCH", "DELETE"):
        assert project.http.request(method, url, json={}).status_code == 405


def test_instance_operation_gets_the_resource_as_the_caller_sees_it(project: Project) -> None:
    bot = project.bot(TELL, filename="a.cjs")
    operation = define(project, bot, *TOLD, instance=True)["code"]
    patient = project.post("/fhir/R4/Patient", {"resourceType": "Patient", "gender": "other"})
    for method in ("GET", "POST"):
        told = values(
            project.http.request(method, f"/fhir/R4/Patient/{patient['id']}/${operation}", json={"x": 1})
        )
        assert f'"id":"{patient["id"]}"' in told["input"]
    events = project.audit_events(f"Bot/{bot}", 2)
    assert events[0]["entity"][1]["what"]["reference"] == f"Patient/{patient['id']}"
    assert project.http.get(f"/fhir/R4/Patient/{uuid.uuid4()}/${operation}").status_code == 404


def test_inside_a_batch(project: Project, teller: str) -> None:
    entries = [
        {"request": {"method": "GET", "url": f"Patient/${teller}?a=b"}},
        {"request": {"method": "POST", "url": f"${teller}"}, "resource": {"resourceType": "Patient"}},
        {"request": {"method": "POST", "url": "$nosuch"}, "resource": {"resourceType": "Patient"}},
    ]
    answer = project.post("/fhir/R4/", {"resourceType": "Bundle", "type": "batch", "entry": entries}, 200)
    inputs = [
        each.get("resource", {}).get("parameter", [{}])[0].get("valueString") for each in answer["entry"]
    ]
    assert inputs == ['{"a":"b"}', '{"resourceType":"Patient"}', None]
    assert [each["response"]["status"] for each in answer["entry"]] == ["200", "200", "404"]


def job_of(project: Project, path: str) -> dict[str, Any]:
    """The AsyncJob of an operation called with ``Prefer: respond-async``, once it has ended."""
    accepted = project.http.post(path, json={"x": 1}, headers={"prefer": "respond-async"})
    assert accepted.status_code == 202, accepted.text
    url = accepted.headers["content-location"]
    wait_until(lambda: project.http.get(url).status_code == 200)
    job: dict[str, Any] = project.http.get(url).json()
    return job


def test_job_holds_what_the_synchronous_call_answers(project: Project, teller: str) -> None:
    path = f"/fhir/R4/Patient/${teller}"
    job = job_of(project, path)
    assert job["status"] == "completed"
    assert job["output"] == project.http.post(path, json={"x": 1}).json()


@pytest.mark.parametrize(
    ("returned", "parameters", "output"),
    [
        ("{resourceType: 'Patient', active: true}", [RETURN_PATIENT], {"name": "return", "resource": {"resourceType": "Patient", "active": True}}),
        ("7", [{"use": "out", "name": "return", "type": "integer", "min": 1, "max": "1"}], {"name": "return", "valueInteger": 7}),
        ("7", [], None),
    ],
)  # fmt: skip
def test_job_holds_every_kind_of_answer(
    project: Project, returned: str, parameters: list[dict[str, Any]], output: dict[str, Any] | None
) -> None:
    bot = project.bot(f"exports.handler = async () => ({returned});", filename="a.cjs")
    job = job_of(project, f"/fhir/R4/${define(project, bot, *parameters)['code']}")
    assert job["status"] == "completed"
    assert job.get("output", {}).get("parameter") == ([output] if output else None)


@pytest.mark.parametrize("code", ["return {resourceType: 'Basic'}", "throw new Error('Expected no Patient')"])
def test_job_is_an_error_where_the_synchronous_call_is(project: Project, code: str) -> None:
    bot = project.bot(f"exports.handler = async () => {{ {code}; }};", filename="a.cjs")
    path = f"/fhir/R4/${define(project, bot, RETURN_PATIENT)['code']}"
    job = job_of(project, path)
    assert job["status"] == "error"
    (output,) = job["output"]["parameter"]
    assert output["resource"]["issue"] == project.http.post(path, json={"x": 1}).json()["issue"]
    assert "Expected" in output["resource"]["issue"][0]["details"]["text"]


def test_bot_can_call_one(project: Project, teller: str) -> None:
    code = f"""exports.handler = async (medplum) =>
        (await medplum.post(medplum.fhirUrl('Patient', '${teller}'), {{ x: 1 }})).parameter[0].valueString;"""
    assert project.execute(project.bot(code, filename="a.cjs")).json() == {"x": 1}


def test_not_linked_not_readable_or_unknown_is_the_original_404(project: Project) -> None:
    unlinked = define(project, None)["code"]
    for name in (unlinked, "nosuch"):
        answer = project.http.post(f"/fhir/R4/${name}", json={})
        assert (answer.status_code, text_of(answer)) == (404, f"Unknown operation: ${name}")
    gone = project.bot()
    operation = define(project, gone)["code"]
    project.http.delete(f"/fhir/R4/Bot/{gone}").raise_for_status()
    assert project.http.post(f"/fhir/R4/${operation}", json={}).status_code == 410
    anonymous = httpx.post(f"{project.http.base_url}/fhir/R4/${operation}", json={}, timeout=30)
    assert anonymous.status_code == 401


def test_access_policy_of_the_caller(project: Project, teller: str) -> None:
    for type_, status in (("Bot", 200), ("Patient", 403)):
        policy = {"resourceType": "AccessPolicy", "resource": [{"resourceType": type_}]}
        made = project.post("/fhir/R4/AccessPolicy", policy)
        client = project.post(
            f"/admin/projects/{project.id}/client",
            {"name": "C", "accessPolicy": {"reference": f"AccessPolicy/{made['id']}"}},
        )
        answer = httpx.post(
            f"{project.http.base_url}/fhir/R4/${teller}", json={}, auth=(client["id"], client["secret"])
        )
        assert answer.status_code == status, answer.text


@pytest.mark.parametrize(
    ("code", "status", "text"),
    [
        ("throw new Error('no luck')", 400, "no luck"),
        ("return { resourceType: 'OperationOutcome', id: 'not-found', issue: [{ severity: 'error', code: 'not-found', details: { text: 'None here' } }] }", 404, "None here"),
        ("throw new (require('@medplum/core').OperationOutcomeError)(require('@medplum/core').forbidden)", 403, "Forbidden"),
        ("return { resourceType: 'Observation' }", 400, "Expected Patient output, but got unexpected object"),
        ("return 7", 400, "Expected Patient output, but got unexpected number"),
        ("", 400, "Expected Patient output, but got unexpected undefined"),
    ],
)  # fmt: skip
def test_errors(project: Project, code: str, status: int, text: str) -> None:
    bot = project.bot(f"exports.handler = async () => {{ {code} }};", filename="a.cjs")
    answer = project.http.post(f"/fhir/R4/${define(project, bot, RETURN_PATIENT)['code']}", json={})
    assert (answer.status_code, text_of(answer)) == (status, text)


def test_refusals_of_the_bot_and_of_its_input(project: Project, teller: str) -> None:
    undeployed = define(project, project.bot(None), RETURN_PATIENT)["code"]
    answer = project.http.post(f"/fhir/R4/${undeployed}", json={})
    assert answer.status_code == 400
    assert "has not been deployed" in text_of(answer)
    answer = project.http.post(
        f"/fhir/R4/${teller}", content=b"{", headers={"content-type": "application/json"}
    )
    assert (answer.status_code, text_of(answer)) == (400, "Content could not be parsed")


def test_returned_binary(project: Project) -> None:
    data = base64.b64encode(b"a,b\n").decode()
    code = f"return {{ resourceType: 'Binary', contentType: 'text/csv', data: '{data}' }}"
    bot = project.bot(f"exports.handler = async () => {{ {code} }};", filename="a.cjs")
    url = f"/fhir/R4/${define(project, bot, RETURN_PATIENT | {'type': 'Binary'})['code']}"
    raw = project.http.get(url)
    assert (raw.content, raw.headers["content-type"]) == (b"a,b\n", "text/csv")
    assert project.http.get(url, headers={"accept": "application/fhir+json"}).json()["data"] == data
    assert project.http.post(url, json={}).json()["data"] == data


def test_which_definition_answers_is_settled_and_the_writer_is_warned(project: Project) -> None:
    code = f"op-{uuid.uuid4().hex[:8]}"
    out = {"use": "out", "name": "who", "type": "string", "min": 1, "max": "1"}

    def bot(name: str) -> str:
        return project.bot(f"exports.handler = async () => ({{ who: '{name}' }});", filename="a.cjs")

    def answer(path: str) -> str:
        return str(values(project.http.get(f"/fhir/R4/{path}${code}"))["who"])

    define(project, bot("draft"), out, code=code, status="draft")
    assert answer("") == "draft"
    general = define(project, bot("general"), out, code=code)
    assert answer("Patient/") == "general"
    definition = {
        "resourceType": "OperationDefinition", "name": code, "status": "active", "kind": "operation", "code": code,
        "system": False, "type": True, "instance": False, "resource": ["Patient"], "parameter": [out],
        "extension": [{"url": IMPLEMENTATION, "valueReference": {"reference": f"Bot/{bot('patients')}"}}],
    }  # fmt: skip
    made = project.http.post("/fhir/R4/OperationDefinition", json=definition)
    assert f"OperationDefinition/{general['id']}" in made.headers["warning"]
    assert (answer("Patient/"), answer("Observation/"), answer("")) == ("patients", "patients", "general")
    builtin = project.http.post("/fhir/R4/OperationDefinition", json=definition | {"code": "validate"})
    assert "built in" in builtin.headers["warning"]
    assert "warning" not in project.http.get(f"/fhir/R4/OperationDefinition/{general['id']}").headers


# --- the table of §4, as a function ----------------------------------------------------------------------------------


def out(
    name: str, type_: str | None = "string", low: int = 0, high: str = "1", **more: Any
) -> dict[str, Any]:
    typed = {"type": type_} if type_ else {}
    return {"use": "out", "name": name, "min": low, "max": high} | typed | more


ALLOWED = {"extension": [{"url": ALLOWED_TYPE, "valueUri": "Coding"}]}
PATIENT = {"resourceType": "Patient", "active": True}
MADE = {"resourceType": "Parameters", "parameter": [{"name": "a", "valueString": "x"}, {"name": "more", "valueCode": "y"}]}  # fmt: skip


@pytest.mark.parametrize(
    ("parameters", "value", "expected"),
    [
        ([], {"a": 1}, None),
        ([{"use": "in", "name": "a", "type": "string", "min": 0, "max": "1"}], {"a": "x"}, None),
        ([out("return", "boolean")], True, [{"name": "return", "valueBoolean": True}]),
        ([out("return", "decimal")], 1.5, [{"name": "return", "valueDecimal": 1.5}]),
        ([out("return", "string", 0, "*")], ["x", "y"], [{"name": "return", "valueString": "x"}, {"name": "return", "valueString": "y"}]),
        ([out("a"), out("b", "integer")], {"a": "x", "b": 7, "c": 1}, [{"name": "a", "valueString": "x"}, {"name": "b", "valueInteger": 7}]),
        ([out("a", "code", 0, "*")], {"a": ["x", "y"]}, [{"name": "a", "valueCode": "x"}, {"name": "a", "valueCode": "y"}]),
        ([out("a", "Coding")], {"a": {"code": "x"}}, [{"name": "a", "valueCoding": {"code": "x"}}]),
        ([out("p", "Patient"), out("a")], {"p": PATIENT}, [{"name": "p", "resource": PATIENT}]),
        ([out("a", None, part=[out("b"), out("c")])], {"a": {"b": "x"}}, [{"name": "a", "part": [{"name": "b", "valueString": "x"}]}]),
        ([out("a", "Element")], {"a": {"type": "boolean", "value": False}}, [{"name": "a", "valueBoolean": False}]),
        ([out("a", None, **ALLOWED)], {"a": {"type": "Coding", "value": {"code": "x"}}}, [{"name": "a", "valueCoding": {"code": "x"}}]),
        ([out("a", low=1), out("b")], MADE, MADE["parameter"]),
        ([out("a")], {"a": None}, None),
        ([out("a")], None, None),
    ],
)  # fmt: skip
def test_output_becomes_parameters(parameters: list[Any], value: Any, expected: list[Any] | None) -> None:
    answer = output({"parameter": parameters}, value)
    assert answer == {"resourceType": "Parameters"} | ({"parameter": expected} if expected else {})


@pytest.mark.parametrize(
    ("parameters", "value", "text"),
    [
        ([out("a", low=1)], {}, "Expected 1 or more values for output parameter 'a', got 0"),
        ([out("a")], {"a": ["x", "y"]}, "Expected at most 1 values for output parameter 'a', got 2"),
        ([out("b", low=1), out("c")], MADE, "Expected 1 or more values for output parameter 'b', got 0"),
        ([out("a", None)], {"a": "x"}, "Expected an object with type and value for output parameter 'a'"),
        ([out("a", None, **ALLOWED)], {"a": {"type": "string", "value": "x"}}, "Type string is not allowed for output parameter 'a'"),
        ([out("p", "Patient"), out("a")], {"p": "x"}, "Expected Patient for output parameter 'p', but got unexpected string"),
        ([out("a", "integer")], {"a": "x"}, "Invalid JSON type"),
        ([out("return", "Patient")], [PATIENT], "Expected Patient output, but got unexpected object"),
        ([out("return", None)], "x", "Expected Resource output, but got unexpected string"),
    ],
)  # fmt: skip
def test_output_that_does_not_fit_is_refused(parameters: list[Any], value: Any, text: str) -> None:
    with pytest.raises(FhirError) as refused:
        output({"parameter": parameters}, value)
    assert text in str(refused.value)
    assert refused.value.status == 400


def test_flags_and_types_decide_whether_a_definition_fits() -> None:
    definition = {"system": False, "type": True, "instance": True, "resource": ["Patient"]}
    assert fits(definition, "Patient", None)
    assert fits(definition, "Patient", "1")
    assert not fits(definition, "Observation", None)
    assert not fits(definition, None, None)
    assert fits(definition | {"resource": ["Resource"]}, "Observation", "1")
