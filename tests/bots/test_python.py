"""Python Bots over HTTP, with a real worker and real sandboxes."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
from django.conf import LazySettings

from bots.api import bot_create, bot_deploy, bot_save_code, deployment_current
from bots.context import may_run_native
from bots.inputs import HL7
from fhirstore.api import FhirError, Repository
from tests.bots.conftest import Project
from tests.bots.test_execute import text_of

NATIVE = [{"url": "urn:fhirbots:bot-runtime", "valueCode": "python-native"}]

ECHO = """\
async def handler(medplum, event):
    print("Hello", event.bot["display"])
    return {"input": event.input, "type": event.content_type, "trace": event["traceId"], "secret": event.secret("KEY")}
"""
WRITER = """\
import logging

from fhirbots import BotEvent, MedplumClient, OperationOutcomeError


async def handler(medplum: MedplumClient, event: BotEvent):
    created = await medplum.create_resource({"resourceType": "Patient", "name": [{"family": event.input["family"]}]})
    logging.warning("created %s", created["id"])
    found = await medplum.search_one("Patient", {"family": event.input["family"]})
    assert found == await medplum.read_resource("Patient", created["id"])
    try:
        await medplum.read_resource("Patient", "00000000-0000-4000-8000-000000000000")
    except OperationOutcomeError as error:
        assert error.outcome["id"] == "not-found", error.outcome
    return found
"""
SYNC = """\
def handler(medplum, event):
    patient = medplum.create_resource({"resourceType": "Patient", "active": True})
    return medplum.patch_resource("Patient", patient["id"], [{"op": "replace", "path": "/active", "value": False}])
"""


def bot(project: Project, code: str) -> str:
    return project.bot(code, filename="index.py")


@pytest.fixture(scope="module")
def evaluator(project: Project) -> str:
    """A Bot that returns the value of the expression it is sent."""
    return bot(project, "def handler(medplum, event):\n    return eval(event.input['return'])\n")


def test_a_python_bot_gets_its_event(project: Project) -> None:
    answer = project.execute(bot(project, ECHO), {"foo": [1, 2.5, None, "é"]})
    assert answer.status_code == 200, answer.text
    value = answer.json()
    assert value["input"] == {"foo": [1, 2.5, None, "é"]}
    assert value["type"] == "application/json"
    assert value["trace"]


def test_a_python_bot_writes_and_reads_as_itself(project: Project) -> None:
    id = bot(project, WRITER)
    answer = project.execute(id, {"family": "Pythonson"})
    assert answer.status_code == 200, answer.text
    assert answer.json()["meta"]["author"]["reference"] == f"Bot/{id}"
    (event,) = project.audit_events(f"Bot/{id}", 1)
    assert event["outcomeDesc"].startswith("created ")


def test_a_plain_function_uses_the_client_without_await(project: Project) -> None:
    answer = project.execute(bot(project, SYNC))
    assert answer.json()["active"] is False


def test_hl7_comes_and_goes_as_a_message(project: Project) -> None:
    code = """\
def handler(medplum, event):
    message = event.input
    assert message["PID"][0][3][0] == "123", message["PID"]
    return message.create_ack()
"""
    message = "MSH|^~\\&|A|B|C|D|20240101000000||ADT^A01|7|P|2.5\rPID|1||123\r"
    answer = project.http.post(
        f"/fhir/R4/Bot/{bot(project, code)}/$execute", content=message, headers={"content-type": HL7}
    )
    assert (answer.status_code, answer.headers["content-type"]) == (200, HL7), answer.text
    assert answer.text.startswith("MSH|^~\\&|C|D|A|B|")
    assert "\rMSA|AA|7" in answer.text


def test_a_subscription_runs_a_python_bot(project: Project) -> None:
    id = bot(project, "def handler(medplum, event):\n    print('got', event.input['code']['text'])\n")
    project.subscribe(id, "Observation?status=final")
    project.post(
        "/fhir/R4/Observation", {"resourceType": "Observation", "status": "final", "code": {"text": "pulse"}}
    )
    (event,) = project.audit_events(f"Bot/{id}", 1)
    assert event["outcomeDesc"] == "got pulse"


@pytest.mark.parametrize(
    ("returned", "content_type", "text"),
    [
        ("None", "application/fhir+json", "All OK"),
        ("'words'", "text/plain", "words"),
        ("[1, {'a': True}]", "application/json", '[1,{"a":true}]'),
        ("b'\\x00\\x01'", "application/octet-stream", "\x00\x01"),
        ("7", "application/json", "7"),
        ("__import__('decimal').Decimal('1.5')", "application/json", "1.5"),
        ("__import__('datetime').date(2024, 2, 29)", "text/plain", "2024-02-29"),
        ("{'resourceType': 'Patient'}", "application/fhir+json", '{"resourceType":"Patient"}'),
    ],
)
def test_what_a_python_handler_returns_is_the_answer(
    project: Project, evaluator: str, returned: str, content_type: str, text: str
) -> None:
    answer = project.execute(evaluator, {"return": returned})
    assert (answer.status_code, answer.headers["content-type"].partition(";")[0]) == (200, content_type)
    assert text in answer.text


def test_what_a_python_handler_raises_is_the_answer(project: Project) -> None:
    id = bot(
        project,
        "def handler(medplum, event):\n    raise OperationOutcomeError.of('Nobody', id='not-found', code='not-found')\n\n"
        "from fhirbots import OperationOutcomeError\n",
    )
    answer = project.execute(id)
    assert (answer.status_code, text_of(answer)) == (404, "Nobody")
    id = bot(
        project,
        "def helper(value):\n    return value['name']\n\n\ndef handler(medplum, event):\n    helper({})\n",
    )
    answer = project.execute(id)
    assert (answer.status_code, text_of(answer)) == (400, "KeyError: 'name'")
    (event,) = project.audit_events(f"Bot/{id}", 1)
    assert 'File "index.py", line 6, in handler\n    helper({})' in event["outcomeDesc"]
    assert "File \"index.py\", line 2, in helper\n    return value['name']" in event["outcomeDesc"]
    assert "fhirbots" not in event["outcomeDesc"]


@pytest.mark.parametrize(
    ("code", "text", "place"),
    [
        ("def handler(medplum, event:\n    pass\n", "'(' was never closed", (1, 12)),
        ("x = 1\nx = 'é' + é é\n", "invalid syntax", (2, 13)),
        ("def other(medplum, event):\n    pass\n", "does not define a function named handler", None),
        ("\n\ndef handler(medplum):\n    pass\n", "must take two arguments", (3, 1)),
        ("import os\n\nimport nonsense\n\n\ndef handler(m, e): ...\n", "No module named 'nonsense'", (3, 1)),
        ("handler = 1 / 0\n", "ZeroDivisionError: division by zero", (1, 11)),
    ],
)
def test_python_that_cannot_run_is_not_deployed(
    project: Project, code: str, text: str, place: tuple[int, int] | None
) -> None:
    id = project.bot(None)
    outcome = project.deploy(id, code, "index.py", 400)
    issue = outcome["issue"][0]
    assert text in issue["details"]["text"]
    found = [extension["valueInteger"] for extension in issue.get("extension", [])]
    assert found == list(place or [])


def test_the_language_goes_by_file_name_then_by_the_saved_code(project: Project) -> None:
    id = project.bot(ECHO, filename="hello.py")
    (resource,) = project.search(f"Bot?_id={id}")
    assert (resource["executableCode"]["contentType"], resource["executableCode"]["title"]) == (
        "text/x-python",
        "hello.py",
    )
    created = bot_create(project.admin, name="Python", language="python").id
    (resource,) = project.search(f"Bot?_id={created}")
    assert (resource["sourceCode"]["contentType"], resource["sourceCode"]["title"]) == (
        "text/x-python",
        "index.py",
    )
    project.post(f"/fhir/R4/Bot/{created}/$deploy", {"code": ECHO}, 200)
    deployed = deployment_current(project.admin, created)
    assert deployed is not None
    assert (deployed.language, deployed.filename) == ("python", "index.py")
    bot_save_code(project.admin, bot_id=created, source=ECHO, filename="index.py")
    project.post(f"/fhir/R4/Bot/{created}/$deploy", {}, 200)
    assert project.execute(created, {"a": 1}).json()["input"] == {"a": 1}


def test_a_python_bot_is_stopped_at_its_time_limit_and_runs_again(project: Project) -> None:
    id = project.bot(
        "import time\n\n\ndef handler(medplum, event):\n    print('begun')\n    time.sleep(event.input['seconds'])\n    return 'done'\n",
        filename="index.py",
        timeout=2,
    )
    answer = project.execute(id, {"seconds": 60})
    assert answer.status_code == 400
    assert "time limit of 2 s" in text_of(answer)
    assert project.execute(id, {"seconds": 0}).text == "done"


def test_python_and_javascript_bots_execute_each_other(project: Project) -> None:
    inner = project.bot(
        "exports.handler = async (medplum, event) => ({ js: event.input });", filename="index.cjs"
    )
    outer = bot(
        project,
        f"async def handler(medplum, event):\n    return await medplum.execute_bot('{inner}', event.input)\n",
    )
    assert project.execute(outer, {"n": 1}).json() == {"js": {"n": 1}}


def test_a_python_bot_makes_its_http_answer_itself(project: Project) -> None:
    code = "from fhirbots import Response\n\n\ndef handler(m, e):\n    return Response(201, {'Content-Type': 'text/csv', 'X-A': 'b'}, b'a,b')\n"
    answer = project.execute(bot(project, code))
    assert (answer.status_code, answer.headers["content-type"], answer.headers["x-a"], answer.text) == (
        201,
        "text/csv",
        "b",
        "a,b",
    )


def test_a_trusted_bot_runs_in_cpython(project: Project) -> None:
    code = """\
import sys
import threading


async def handler(medplum, event):
    created = []
    thread = threading.Thread(target=created.append, args=(sys.platform,))
    thread.start()
    thread.join()
    return [*created, (await medplum.create_resource({"resourceType": "Patient"}))["resourceType"]]
"""
    native = project.bot(code, filename="index.py", extension=NATIVE)
    assert project.execute(native).json() == [sys.platform, "Patient"]
    assert "can't start new thread" in text_of(project.execute(bot(project, code)))


def test_cpython_is_the_operators_and_an_admins_choice(project: Project, settings: LazySettings) -> None:
    id = project.bot(SYNC, filename="index.py", extension=NATIVE)
    settings.NATIVE_PYTHON = frozenset({"another-project"})
    with pytest.raises(FhirError, match="FHIRBOTS_NATIVE_PYTHON"):
        bot_deploy(project.admin, bot_id=id, code=SYNC, filename="index.py")
    settings.NATIVE_PYTHON = frozenset({project.id})
    assert may_run_native(project.id)
    other = bot(project, SYNC)
    member = Repository(replace(project.admin.identity, is_admin=False))
    with pytest.raises(FhirError, match="Only a project admin"):
        member.patch("Bot", other, [{"op": "add", "path": "/extension", "value": NATIVE}])
