"""Creating, saving and deploying Bots over HTTP and through the services the console uses."""

from __future__ import annotations

import uuid

import pytest

from bots.api import bot_save_code, deployment_current, deployment_roll_back, deployments
from fhirstore.api import FhirError
from tests.bots.conftest import HELLO, Project
from tests.bots.test_execute import text_of

TYPESCRIPT = """\
import { BotEvent, MedplumClient } from '@medplum/core';

enum Greeting { Hello = 'Hello' }

export async function handler(medplum: MedplumClient, event: BotEvent<{ name: string }>): Promise<string> {
  return `${Greeting.Hello} ${event.input.name}`
}
"""


def says(text: str) -> str:
    return f"exports.handler = async () => '{text}';"


def test_created_bot_has_a_membership_and_an_empty_handler(project: Project) -> None:
    bot = project.post(f"/admin/projects/{project.id}/bot", {"name": "New", "description": "Says nothing"})
    assert (bot["name"], bot["description"], bot["sourceCode"]["title"]) == (
        "New",
        "Says nothing",
        "index.ts",
    )
    (membership,) = project.search(f"ProjectMembership?profile=Bot/{bot['id']}")
    assert membership["user"]["reference"] == membership["profile"]["reference"] == f"Bot/{bot['id']}"


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({}, "Bot name is required"),
        ({"name": "  "}, "Bot name is required"),
        ({"name": 7}, "name must be a string"),
        (
            {"name": "x", "accessPolicy": {"reference": f"AccessPolicy/{uuid.uuid4()}"}},
            "access policy is not one of this project",
        ),
        ([], "must be a JSON object"),
    ],
)
def test_bot_is_not_created_from_nonsense(project: Project, body: object, text: str) -> None:
    answer = project.http.post(f"/admin/projects/{project.id}/bot", json=body)
    assert answer.status_code == 400
    assert text in text_of(answer)


def test_bot_is_created_only_in_the_callers_project(project: Project) -> None:
    assert project.http.post(f"/admin/projects/{uuid.uuid4()}/bot", json={"name": "x"}).status_code == 403


def test_init_creates_a_bot_from_parameters(project: Project) -> None:
    parameters = {"resourceType": "Parameters", "parameter": [{"name": "name", "valueString": "By init"}]}
    assert project.post("/fhir/R4/Bot/$init", parameters)["name"] == "By init"


def test_deploy_makes_the_code_run_and_points_the_bot_to_it(project: Project) -> None:
    bot = project.bot(None)
    answer = project.deploy(bot, HELLO, "index.js")
    assert (answer["id"], answer["issue"][0]["details"]["text"], len(answer["issue"])) == ("ok", "All OK", 1)
    stored = project.repository.read("Bot", bot).resource["executableCode"]
    assert (stored["contentType"], stored["title"]) == ("text/javascript", "index.js")
    _, content = project.repository.open_binary(stored["url"].removeprefix("Binary/"))
    with content:
        assert content.read().decode() == HELLO
    assert project.execute(bot, {"a": 1}).json() == {"a": 1}


def test_typescript_is_deployed_as_javascript(project: Project) -> None:
    bot = project.bot(TYPESCRIPT, filename="index.ts")
    assert project.execute(bot, {"name": "World"}).text == "Hello World"
    stored = project.repository.read("Bot", bot).resource["executableCode"]
    assert (stored["contentType"], stored["title"]) == ("text/javascript", "index.mjs")


@pytest.mark.parametrize(
    ("code", "filename", "text"),
    [
        ("export async function handler(m, e) {\n  return 1 +;\n}\n", "index.ts", "index.ts:2:"),
        ("exports.other = 1;", "index.js", "handler"),
        ("throw new Error('at load');\nexport function handler() {}", "index.mjs", "at load"),
        ("handler = 1", "index.php", "Unknown kind of code"),
    ],
)
def test_code_that_cannot_run_is_not_deployed(project: Project, code: str, filename: str, text: str) -> None:
    bot = project.bot(says("still here"), filename="index.cjs")
    answer = project.http.post(f"/fhir/R4/Bot/{bot}/$deploy", json={"code": code, "filename": filename})
    assert answer.status_code == 400
    assert text in text_of(answer)
    assert project.execute(bot).text == "still here"


def test_problem_names_its_line_and_column_for_editors(project: Project) -> None:
    bot = project.bot(None)
    issue = project.deploy(bot, "export function handler() {\n  return 1 +;\n}", "index.ts", 400)["issue"][0]
    assert {part["valueInteger"] for part in issue["extension"]} >= {2}


def test_empty_deploy_takes_the_executable_code_and_leaves_the_bot_alone(project: Project) -> None:
    bot = project.bot(None)
    refused = project.http.post(f"/fhir/R4/Bot/{bot}/$deploy")
    assert (refused.status_code, text_of(refused)) == (400, "Bot missing executable code")
    binary = project.repository.store_binary(
        says("from Binary").encode(), "text/javascript", filename="index.cjs"
    )
    attachment = {"contentType": "text/javascript", "url": f"Binary/{binary.id}", "title": "index.cjs"}
    project.repository.patch("Bot", bot, [{"op": "add", "path": "/executableCode", "value": attachment}])
    version = project.repository.read("Bot", bot).version_id
    assert project.http.post(f"/fhir/R4/Bot/{bot}/$deploy").json()["id"] == "ok"
    assert project.execute(bot).text == "from Binary"
    assert project.repository.read("Bot", bot).version_id == version


def test_every_deployment_is_seen_by_the_next_run(project: Project) -> None:
    bot = project.bot(None)
    for number in range(5):
        project.deploy(bot, says(f"v{number}"), "index.cjs")
        assert project.execute(bot).text == f"v{number}"


def test_deployments_are_kept_and_can_be_rolled_back_to(project: Project) -> None:
    bot = project.bot(says("one"), filename="index.cjs")
    project.deploy(bot, says("two"), "index.cjs")
    back = deployment_roll_back(project.admin, bot_id=bot, number=1)
    assert (back.number, back.note) == (3, "Rolled back to v1")
    assert project.execute(bot).text == "one"
    history = deployments(project.admin, bot)
    assert [(each.number, each.source) for each in history] == [
        (3, says("one")),
        (2, says("two")),
        (1, says("one")),
    ]
    assert deployment_current(project.admin, bot) == back
    with pytest.raises(FhirError, match="no deployment v9"):
        deployment_roll_back(project.admin, bot_id=bot, number=9)


def test_saved_is_not_deployed_and_saving_needs_the_version_seen(project: Project) -> None:
    bot = project.bot(says("deployed"), filename="index.cjs")
    seen = project.repository.read("Bot", bot).version_id
    saved = bot_save_code(
        project.admin, bot_id=bot, source=says("saved"), filename="index.cjs", if_match=seen
    )
    assert saved.resource["sourceCode"]["title"] == "index.cjs"
    assert project.execute(bot).text == "deployed"
    with pytest.raises(FhirError) as refused:
        bot_save_code(project.admin, bot_id=bot, source="x", filename="index.cjs", if_match=seen)
    assert refused.value.status == 412


def test_bot_without_membership_is_deployed_with_a_warning(project: Project) -> None:
    bot = project.post("/fhir/R4/Bot", {"resourceType": "Bot", "name": "Alone"})
    answer = project.deploy(
        bot["id"], "exports.handler = async (medplum) => medplum.getProfile().resourceType;", "a.cjs"
    )
    assert answer["id"] == "ok"
    assert answer["issue"][1]["details"]["text"] == "Could not find ProjectMembership for Bot"
    assert project.execute(bot["id"]).text == "ClientApplication"


def test_time_limit_above_the_maximum_is_refused(project: Project) -> None:
    bot = project.bot(None, timeout=901)
    answer = project.deploy(bot, HELLO, "index.js", 400)
    assert answer["issue"][0]["details"]["text"] == "Bot timeout exceeds allowed maximum of 900 seconds"


def test_an_import_that_is_not_available_is_a_problem_with_its_line(project: Project) -> None:
    bot = project.bot(None)
    code = "import JSZip from 'jszip';\nimport Client from 'ssh2-sftp-client';\nexport const handler = () => new Client(JSZip);\n"
    (issue,) = project.deploy(bot, code, "index.mjs", 400)["issue"]
    assert issue["details"]["text"].startswith(
        'index.mjs:2:15: The module "ssh2-sftp-client" is not available'
    )
    assert [each["valueInteger"] for each in issue["extension"]] == [2, 15]


def test_bundle_of_twenty_megabytes_is_deployed_and_runs(project: Project) -> None:
    padding = "// " + "x" * 997 + "\n"
    code = padding * (20 * 1024 * 1024 // len(padding) - 1) + "exports.handler = async () => 'large';\n"
    bot = project.bot(code, filename="bundle.cjs")
    assert project.execute(bot).text == "large"
    too_large = project.http.post(f"/fhir/R4/Bot/{bot}/$deploy", json={"code": code + padding * 3})
    assert too_large.status_code == 413
    assert project.execute(bot).text == "large"


def test_large_input_reaches_the_bot(project: Project) -> None:
    bot = project.bot(
        "exports.handler = async (medplum, event) => event.input.text.length;", filename="a.cjs"
    )
    assert project.execute(bot, {"text": "x" * 24_000_000}).json() == 24_000_000


def test_history_of_deployments_is_shown_compared_and_rolled_back(project: Project) -> None:
    first, second = "exports.handler = async () => 'first';\n", "exports.handler = async () => 'second';\n"
    bot = project.bot(first, filename="a.cjs")
    project.post(f"/fhir/R4/Bot/{bot}/$deploy", {"code": second, "filename": "b.cjs", "note": "better"}, 200)
    shown = project.http.get(f"/fhir/R4/Bot/{bot}/$deployments").json()["deployments"]
    assert [(each["number"], each["isCurrent"], each["note"]) for each in shown] == [
        (2, True, "better"),
        (1, False, ""),
    ]
    assert (shown[0]["via"], shown[0]["filename"]) == ("api", "b.cjs")
    assert shown[0]["author"]["reference"].startswith("ClientApplication/")
    compared = project.http.get(f"/fhir/R4/Bot/{bot}/$deployments/2?compare=1").json()
    assert compared["source"] == second
    assert (
        "-exports.handler = async () => 'first';\n+exports.handler = async () => 'second';"
        in compared["diff"]
    )
    rolled = project.post(f"/fhir/R4/Bot/{bot}/$rollback", {"deployment": 1, "note": "worse"}, 200)
    assert rolled["id"] == "ok"
    assert project.execute(bot).text == "first"
    newest = project.http.get(f"/fhir/R4/Bot/{bot}/$deployments").json()["deployments"][0]
    assert (newest["number"], newest["note"], newest["isCurrent"]) == (3, "worse", True)


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "$rollback", {"deployment": 7}, 404),
        ("POST", "$rollback", {"deployment": "1"}, 400),
        ("POST", "$rollback", {}, 400),
        ("POST", "$deploy", {"code": "x", "note": 1}, 400),
        ("GET", "$deployments/7", None, 404),
        ("GET", "$deployments/1?compare=7", None, 404),
        ("GET", "$deployments/x", None, 404),
    ],
)
def test_what_is_no_deployment_is_refused(
    project: Project, method: str, path: str, body: object, status: int
) -> None:
    bot = project.bot("exports.handler = async () => 1;", filename="a.cjs")
    answer = project.http.request(method, f"/fhir/R4/Bot/{bot}/{path}", json=body)
    assert answer.status_code == status
    assert project.execute(bot).text == "1"


def test_changing_executable_code_is_saving_and_runs_after_deploy(project: Project) -> None:
    bot = project.bot("exports.handler = async () => 'old';", filename="a.cjs")
    binary = project.http.post(
        "/fhir/R4/Binary",
        content="exports.handler = async () => 'new';",
        headers={"content-type": "text/javascript"},
    ).json()
    value = {"contentType": "text/javascript", "url": f"Binary/{binary['id']}", "title": "a.cjs"}
    operations = [{"op": "replace", "path": "/executableCode", "value": value}]
    project.http.patch(f"/fhir/R4/Bot/{bot}", json=operations).raise_for_status()
    assert project.execute(bot).text == "old"
    project.http.post(f"/fhir/R4/Bot/{bot}/$deploy").raise_for_status()
    assert project.execute(bot).text == "new"
