"""``$execute`` over HTTP, with a real worker and real sandboxes."""

from __future__ import annotations

import threading
import time
import uuid
from typing import Any

import httpx
import pytest

from bots import calls
from bots.api import bot_execute
from console.celery import app
from tests.bots.conftest import Project
from tests.conftest import Server


def text_of(answer: httpx.Response) -> str:
    """The text of the first issue of an OperationOutcome."""
    return str(answer.json()["issue"][0]["details"]["text"])


@pytest.fixture(scope="module")
def echo(project: Project) -> str:
    """A Bot that returns its event, without what differs from run to run."""
    return project.bot(
        "exports.handler = async (medplum, event) => ({...event, headers: undefined});", filename="index.cjs"
    )


def test_bot_receives_its_event(project: Project, echo: str) -> None:
    trace = str(uuid.uuid4())
    answer = project.execute(echo, {"foo": "bar"}, **{"x-trace-id": trace})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    event = answer.json()
    assert event["input"] == {"foo": "bar"}
    assert event["bot"]["reference"] == f"Bot/{echo}"
    assert event["contentType"] == "application/json"
    assert event["requester"]["reference"].startswith("ClientApplication/")
    assert event["traceId"] == trace
    assert event["secrets"] == {}


def test_messages_that_are_no_calls_harm_nobody(project: Project, echo: str, server: Server) -> None:
    for arguments in ([], ["nonsense"], ["x", "x", "x", "x", "x"]) * 4:
        app.send_task("bots.tasks.execute_bot", arguments, queue="bots")
    assert project.execute(echo, {"foo": "bar"}).json()["input"] == {"foo": "bar"}
    assert "bots.tasks.execute_bot failed: TypeError" in server.logs()


@pytest.mark.parametrize(
    ("content_type", "body", "expected"),
    [
        ("application/fhir+json", b'{"resourceType":"Patient"}', {"resourceType": "Patient"}),
        ("text/plain", b"plain words", "plain words"),
        ("application/x-www-form-urlencoded", b"a=1&b=2&b=3", {"a": "1", "b": ["2", "3"]}),
        ("application/octet-stream", b"\x00\xff", {}),
    ],
)
def test_input_follows_the_content_type(
    project: Project, echo: str, content_type: str, body: bytes, expected: object
) -> None:
    answer = project.http.post(
        f"/fhir/R4/Bot/{echo}/$execute", content=body, headers={"content-type": content_type}
    )
    assert answer.json()["input"] == expected


def test_get_takes_the_query_as_input(project: Project, echo: str) -> None:
    event = project.http.get(f"/fhir/R4/Bot/{echo}/$execute?a=1&a=2&b=x").json()
    assert event["input"] == {"a": ["1", "2"], "b": "x"}
    assert "contentType" not in event


def test_bot_is_found_by_identifier_and_path_behind_it_is_ignored(project: Project) -> None:
    identifier = {"system": "https://example.com/bots", "value": f"12|{uuid.uuid4().hex}"}
    bot = project.bot("exports.handler = async () => 'found';", filename="x.cjs", identifier=[identifier])
    query = httpx.QueryParams({"identifier": f"{identifier['system']}|{identifier['value']}"})
    for path in ("Bot/$execute", "Bot/%24execute", "Bot/$execute/callback/path"):
        assert project.http.post(f"/fhir/R4/{path}?{query}", json={}).text == "found"
    assert project.http.post(f"/fhir/R4/Bot/{bot}/$execute/anything/else", json={}).text == "found"
    assert project.http.get(f"/fhir/R4/Bot/$execute?identifier={uuid.uuid4()}").status_code == 404
    missing = project.http.post("/fhir/R4/Bot/$execute", json={})
    assert (missing.status_code, text_of(missing)) == (400, "Must specify bot ID or identifier.")


def test_unknown_deleted_and_foreign_bots_are_not_run(project: Project) -> None:
    assert project.execute(str(uuid.uuid4())).status_code == 404
    assert project.execute("not-an-id").status_code == 404
    bot = project.bot()
    project.http.delete(f"/fhir/R4/Bot/{bot}").raise_for_status()
    assert project.execute(bot).status_code == 410
    assert httpx.post(f"{project.http.base_url}/fhir/R4/Bot/{bot}/$execute", json={}).status_code == 401


@pytest.mark.parametrize("prefix", ["", "/api", "/projects/{id}", "/api/projects/{id}"])
def test_bot_answers_under_every_prefix(project: Project, echo: str, prefix: str) -> None:
    path = f"{prefix.format(id=project.id)}/fhir/R4/Bot/{echo}/$execute"
    assert project.http.post(path, json={"a": 1}).json()["input"] == {"a": 1}
    assert project.http.get(path, params={"a": "1"}).json()["input"] == {"a": "1"}


def test_path_of_another_project_is_forbidden(project: Project, echo: str) -> None:
    answer = project.http.post(f"/projects/{uuid.uuid4()}/fhir/R4/Bot/{echo}/$execute", json={})
    assert answer.status_code == 403


HL7 = "x-application/hl7-v2+er7"
MESSAGE = "MSH|^~\\&|LAB|A|EHR|B|20260101||ADT^A01|42|P|2.5\rPID|||123||Doe^Jane"


def test_hl7_message_is_parsed_for_the_bot_and_answered_as_er7(project: Project) -> None:
    code = """
        exports.handler = async (medplum, {input}) => {
          const { Hl7Message } = require('@medplum/core');
          console.log(input instanceof Hl7Message, input.getSegment('PID').getComponent(5, 1));
          return input.buildAck();
        };"""
    bot = project.bot(code, filename="a.cjs")
    answer = project.http.post(f"/fhir/R4/Bot/{bot}/$execute", content=MESSAGE, headers={"content-type": HL7})
    assert (answer.status_code, answer.headers["content-type"]) == (200, HL7)
    assert "MSA|AA|42" in answer.text
    (event,) = project.audit_events(f"Bot/{bot}", 1)
    assert event["outcomeDesc"].endswith("true Doe")


def test_text_is_answered_as_text(project: Project) -> None:
    bot = project.bot("exports.handler = async (medplum, event) => event.input;", filename="a.cjs")
    answer = project.http.post(
        f"/fhir/R4/Bot/{bot}/$execute", content="12", headers={"content-type": "text/plain"}
    )
    assert (answer.headers["content-type"], answer.text) == ("text/plain", "12")


def test_raw_body_is_the_text_as_sent(project: Project) -> None:
    code = "exports.handler = async (medplum, event) => [typeof event.input, event.input];"
    bot = project.bot(code, filename="a.cjs", rawBody=True)
    text = '{ "b":1,  "a":"\\u00fc" }'
    answer = project.http.post(
        f"/fhir/R4/Bot/{bot}/$execute", content=text, headers={"content-type": "application/json"}
    )
    assert answer.json() == ["string", text]


def test_all_headers_reach_the_bot_but_not_the_sessions_of_this_site(project: Project) -> None:
    bot = project.bot("exports.handler = async (medplum, event) => event.headers;", filename="a.cjs")
    headers = {"X-Hook-Signature": "abc", "Cookie": "theirs=1; fhirbots_session=secret; fhirbots_csrf=x"}
    seen = project.execute(bot, **headers).json()
    assert seen["x-hook-signature"] == "abc"
    assert seen["content-type"] == "application/json"
    assert seen["cookie"] == "theirs=1"


def test_client_of_a_bot_that_runs_as_its_user_sends_the_users_cookies(project: Project) -> None:
    inner = project.bot("exports.handler = async (medplum, event) => event.headers;", filename="a.cjs")
    code = f"exports.handler = async (medplum) => medplum.executeBot('{inner}', {{}});"
    as_user = project.bot(code, filename="a.cjs", runAsUser=True)
    assert project.execute(as_user, Cookie="theirs=1").json()["cookie"] == "theirs=1"
    as_itself = project.bot(code, filename="a.cjs")
    assert "cookie" not in project.execute(as_itself, Cookie="theirs=1").json()


def test_bot_that_runs_as_its_user_acts_as_whom_the_caller_acts_for(project: Project) -> None:
    other = project.post(
        f"/admin/projects/{project.id}/invite",
        {
            "resourceType": "Practitioner",
            "firstName": "A",
            "lastName": "B",
            "email": f"{uuid.uuid4()}@example.com",
        },
        200,
    )
    code = """exports.handler = async (medplum, event) =>
        [await medplum.createResource({resourceType: 'Patient'}), event.requester];"""
    bot = project.bot(code, filename="a.cjs", runAsUser=True)
    answer = project.execute(bot, **{"X-Medplum-On-Behalf-Of": f"ProjectMembership/{other['id']}"})
    created, requester = answer.json()
    assert created["meta"]["author"]["reference"] == other["profile"]["reference"]
    assert requester["reference"].startswith("ClientApplication/")


def test_bots_not_enabled_is_said_and_audited(project: Project, echo: str) -> None:
    stored = project.repository.read("Project", project.id).resource
    bot = project.bot()
    project.repository.update({name: value for name, value in stored.items() if name != "features"})
    try:
        answer = project.execute(bot)
    finally:
        project.repository.update(stored)
    assert (answer.status_code, text_of(answer)) == (400, "Bots not enabled")
    (event,) = project.audit_events(f"Bot/{bot}", 1)
    assert (event["outcome"], event["outcomeDesc"]) == ("4", "Bots not enabled")
    assert project.execute(bot).status_code == 200


def test_malformed_json_is_refused(project: Project, echo: str) -> None:
    answer = project.http.post(
        f"/fhir/R4/Bot/{echo}/$execute", content=b"{", headers={"content-type": "application/json"}
    )
    assert (answer.status_code, text_of(answer)) == (400, "Content could not be parsed")


def test_bot_not_deployed_says_so_and_leaves_an_audit_event(project: Project) -> None:
    bot = project.bot(None)
    answer = project.execute(bot)
    assert answer.status_code == 400
    assert "has not been deployed" in text_of(answer)
    (event,) = project.audit_events(f"Bot/{bot}", 1)
    assert (event["outcome"], event["outcomeDesc"]) == ("4", text_of(answer))


def test_run_leaves_an_audit_event_with_its_log(project: Project) -> None:
    bot = project.bot(
        "exports.handler = async () => { console.log('one'); console.warn('two', 2); };", filename="a.cjs"
    )
    answer = project.execute(bot)
    assert answer.json()["id"] == "ok"
    (event,) = project.audit_events(f"Bot/{bot}", 1)
    assert (event["outcome"], event["outcomeDesc"]) == ("0", "one\ntwo 2")
    assert event["agent"][0]["who"]["reference"].startswith("ClientApplication/")
    assert event["agent"][1]["who"]["reference"] == f"Bot/{bot}"
    assert event["meta"]["project"] == project.id


@pytest.mark.parametrize(
    ("code", "status", "text", "logged"),
    [
        ("throw new Error('broken');", 400, "broken", "Unhandled error: broken"),
        ("for (;;) {}", 400, "", ""),
        ("await new Promise(() => {});", 400, "", ""),
        (
            "await fetch('https://example.com/x?secret=1');",
            400,
            "example.com is not allowed",
            "example.com is not allowed",
        ),
        ("return () => 1;", 400, "", ""),
    ],
)
def test_failing_bot_is_a_400_with_the_reason(
    project: Project, code: str, status: int, text: str, logged: str
) -> None:
    bot = project.bot(f"exports.handler = async () => {{ {code} }};", filename="a.cjs", timeout=1)
    answer = project.execute(bot)
    assert answer.status_code == status
    assert text in text_of(answer)
    assert text_of(answer)
    (event,) = project.audit_events(f"Bot/{bot}", 1)
    assert event["outcome"] == "4"
    assert logged in event["outcomeDesc"]


def test_bot_acts_as_itself_and_its_writes_carry_its_name(project: Project) -> None:
    code = """
        exports.handler = async (medplum, event) => {
          const patient = await medplum.createResource({resourceType: 'Patient', birthDate: event.input.birthDate});
          const found = await medplum.searchResources('Patient', '_id=' + patient.id);
          return {patient, found: found.length, profile: medplum.getProfile()};
        };"""
    bot = project.bot(code, filename="a.cjs")
    answer = project.execute(bot, {"birthDate": "2000-02-29"}).json()
    assert answer["found"] == 1
    assert answer["patient"]["meta"]["author"]["reference"] == f"Bot/{bot}"
    assert answer["profile"]["id"] == bot
    stored = project.repository.read("Patient", answer["patient"]["id"])
    assert stored.resource["birthDate"] == "2000-02-29"


def test_bot_with_run_as_user_acts_as_the_caller(project: Project) -> None:
    code = "exports.handler = async (medplum) => medplum.createResource({resourceType: 'Patient'});"
    bot = project.bot(code, filename="a.cjs", runAsUser=True)
    author = project.execute(bot).json()["meta"]["author"]["reference"]
    assert author.startswith("ClientApplication/")


def test_access_policy_of_the_bot_binds_it(project: Project) -> None:
    policy = project.post(
        "/fhir/R4/AccessPolicy",
        {
            "resourceType": "AccessPolicy",
            "name": "Patients",
            "resource": [{"resourceType": "Patient", "readonly": True}],
        },
    )
    created = project.post(
        f"/admin/projects/{project.id}/bot",
        {"name": "Bound", "accessPolicy": {"reference": f"AccessPolicy/{policy['id']}"}},
    )
    code = "exports.handler = async (medplum) => medplum.createResource({resourceType: 'Patient'});"
    project.deploy(created["id"], code, "a.cjs")
    assert project.execute(created["id"]).status_code == 403


def test_secrets_of_the_project_reach_the_bot(project: Project, echo: str) -> None:
    stored = project.repository.read("Project", project.id).resource
    project.repository.update(stored | {"secret": [{"name": "KEY", "valueString": "s3cret"}]})
    assert project.execute(echo).json()["secrets"] == {"KEY": {"name": "KEY", "valueString": "s3cret"}}
    project.repository.update(stored)
    assert project.execute(echo).json()["secrets"] == {}


def test_bot_executes_another_bot(project: Project, echo: str) -> None:
    code = f"exports.handler = async (medplum, event) => medplum.executeBot('{echo}', event.input);"
    caller = project.bot(code, filename="a.cjs")
    event = project.execute(caller, {"n": 1}).json()
    assert event["input"] == {"n": 1}
    assert event["requester"]["reference"] == f"Bot/{caller}"


def test_bot_that_executes_itself_is_stopped(project: Project) -> None:
    bot = project.bot(None)
    project.deploy(bot, f"exports.handler = async (medplum) => medplum.executeBot('{bot}', {{}});", "a.cjs")
    answer = project.execute(bot)
    assert answer.status_code == 400
    assert "levels deep" in text_of(answer)


def test_answers_follow_the_returned_value(project: Project) -> None:
    code = "exports.handler = async (medplum, event) => event.input.value;"
    bot = project.bot(code, filename="a.cjs")
    values: list[tuple[Any, int, str, str]] = [
        (True, 200, "application/json", "true"),
        (12, 200, "application/json", "12"),
        ("hello there", 200, "text/plain", "hello there"),
        ('{"a": 1}', 200, "application/json", '{"a": 1}'),
        (None, 200, "application/json", ""),
        ([1, "x"], 200, "application/json", '[1,"x"]'),
    ]
    for value, status, content_type, body in values:
        answer = project.execute(bot, {"value": value})
        assert (answer.status_code, answer.headers["content-type"], answer.text) == (
            status,
            content_type,
            body,
        )
    teapot = {
        "resourceType": "OperationOutcome",
        "id": "conflict",
        "issue": [{"severity": "error", "code": "conflict"}],
    }
    assert project.execute(bot, {"value": teapot}).status_code == 409


def test_large_inputs_and_answers_arrive_whole(project: Project) -> None:
    bot = project.bot("exports.handler = async (medplum, event) => event.input;", filename="a.cjs")
    value = {"text": "ü" * 200_000, "list": list(range(10_000))}
    assert project.execute(bot, value).json() == value


def test_many_callers_are_answered_each_with_their_own(project: Project) -> None:
    bot = project.bot("exports.handler = async (medplum, event) => event.input;", filename="a.cjs")
    wrong: list[Any] = []

    def call(number: int) -> None:
        answers = [project.execute(bot, {"n": number}).json() for _ in range(5)]
        wrong.extend(answer for answer in answers if answer != {"n": number})

    # as many as one project may have at the same time at the tests' web server (8 threads)
    threads = [threading.Thread(target=call, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_an_admin_gives_a_bot_more_memory(project: Project) -> None:
    hungry = "exports.handler = async () => { const rows = []; while (rows.length < 25e6) rows.push(rows.length + 0.5); return rows.length; };"
    bot = project.bot(hungry, filename="a.cjs")
    assert "memory" in text_of(project.execute(bot))
    more = {"url": "urn:fhirbots:memory", "valueInteger": 512}
    resource = project.http.get(f"/fhir/R4/Bot/{bot}").json()
    project.http.put(f"/fhir/R4/Bot/{bot}", json={**resource, "extension": [more]}).raise_for_status()
    assert project.execute(bot).json() == 25_000_000
    for wrong in ({"valueInteger": 4096}, {"valueString": "much"}):
        answer = project.http.put(
            f"/fhir/R4/Bot/{bot}", json={**resource, "extension": [{"url": "urn:fhirbots:memory", **wrong}]}
        )
        assert answer.status_code == 400


@pytest.mark.parametrize("seconds", [-3600, 3600])
def test_call_does_not_depend_on_the_clock_of_the_askers_machine(
    project: Project, echo: str, monkeypatch: pytest.MonkeyPatch, seconds: int
) -> None:
    right = time.time
    with monkeypatch.context() as patched:
        patched.setattr(time, "time", lambda: right() + seconds)
        patched.setattr(calls, "clock", calls._Clock())
        result = bot_execute(project.admin, echo, content_type="application/json", body=b'{"a": 1}')
        assert abs(calls.clock.time() - right()) < 60
    assert result.ok, result.log_text
