"""What Bots are told of secrets, and what nobody else hears: merge order, environment, masks."""

from __future__ import annotations

from typing import Any

from bots.masking import Masker
from fhirstore.api import MASK
from tests.bots.conftest import Project, wait_until

SECRETS = "export async function handler(medplum, event) { return Object.fromEntries(Object.entries(event.secrets).map(([k, v]) => [k, [v.name, v.valueString ?? v.valueInteger ?? v.valueBoolean]])); }"


def set_project_secrets(project: Project, *items: dict[str, Any]) -> None:
    project.http.post(f"/admin/projects/{project.id}/secrets", json=list(items)).raise_for_status()


def set_bot(project: Project, bot: str, kind: str, *items: dict[str, Any]) -> Any:
    return project.http.post(f"/admin/projects/{project.id}/bot/{bot}/{kind}", json=list(items))


def test_secrets_are_merged_the_bots_own_last(project: Project) -> None:
    set_project_secrets(project, {"name": "A", "valueString": "project"}, {"name": "B", "valueInteger": 7}, {"name": "C", "valueBoolean": False})  # fmt: skip
    system = [{"name": "A", "valueString": "system"}, {"name": "S", "valueString": "system"}]
    project.repository.patch("Project", project.id, [{"op": "add", "path": "/systemSecret", "value": system}])
    plain, own, privileged = project.bot(SECRETS), project.bot(SECRETS), project.bot(SECRETS)
    project.repository.patch("Bot", privileged, [{"op": "add", "path": "/system", "value": True}])
    assert set_bot(project, own, "secrets", {"name": "A", "valueString": "the bot's"}).status_code == 200
    base = {"A": ["A", "project"], "B": ["B", 7], "C": ["C", False]}
    assert project.execute(plain).json() == base
    assert project.execute(own).json() == base | {"A": ["A", "the bot's"]}
    assert project.execute(privileged).json() == base | {"S": ["S", "system"]}
    set_project_secrets(project, {"name": "A", "valueString": "changed"})
    assert project.execute(plain).json() == {"A": ["A", "changed"]}


def test_a_bots_secrets_are_shown_masked_and_to_admins_only(project: Project) -> None:
    bot = project.bot(SECRETS)
    url = f"/admin/projects/{project.id}/bot/{bot}/secrets"
    assert set_bot(project, bot, "secrets", {"name": "K", "valueString": "the value of K"}).json() == [{"name": "K", "valueString": MASK}]  # fmt: skip
    assert project.http.get(url).json() == [{"name": "K", "valueString": MASK}]
    assert set_bot(project, bot, "secrets", {"name": "K", "valueString": MASK}, {"name": "L", "valueInteger": 1}).status_code == 200  # fmt: skip
    assert project.execute(bot).json()["K"] == ["K", "the value of K"]
    asking = project.bot(f"export const handler = (medplum) => medplum.get('{url[1:]}')")
    assert project.execute(asking).status_code == 403
    assert project.http.get(f"/admin/projects/{project.id}/bot/00000000-0000-4000-8000-000000000000/secrets").status_code == 404  # fmt: skip
    assert project.http.post(url, json={"name": "x"}).status_code == 400
    project.http.delete(f"/fhir/R4/Bot/{bot}").raise_for_status()
    assert project.http.get(url).status_code in (404, 410)


def test_a_bot_has_an_environment_of_its_own(project: Project) -> None:
    code = "const atLoad = process.env.REGION; export const handler = () => [atLoad, process.env.REGION, process.env.HOME, Object.keys(process.env).sort()]"
    bot = project.bot(code)
    assert set_bot(project, bot, "env", {"name": "REGION", "valueString": "north"}).json() == [{"name": "REGION", "valueString": "north"}]  # fmt: skip
    assert project.execute(bot).json() == ["north", "north", None, ["NODE_ENV", "REGION"]]
    set_bot(project, bot, "env", {"name": "REGION", "valueString": "south"})
    assert project.execute(bot).json()[1] == "south"
    for wrong in ({"name": "A B", "valueString": "x"}, {"name": "A", "valueInteger": 1}, "x"):
        assert set_bot(project, bot, "env", wrong).status_code == 400  # type: ignore[arg-type]


def test_a_python_bot_has_its_environment_too(project: Project) -> None:
    bot = project.bot("import os\n\ndef handler(medplum, event):\n    return os.environ.get('REGION', 'none')\n", filename="index.py")  # fmt: skip
    assert project.execute(bot).text == "none"
    set_bot(project, bot, "env", {"name": "REGION", "valueString": "north"})
    assert project.execute(bot).text == "north"
    set_bot(project, bot, "env")
    assert project.execute(bot).text == "none"


VALUE = 'pass"word\\line1\nline2'


def test_values_appear_in_no_log_and_no_error(project: Project) -> None:
    bot = project.bot("""
        export async function handler(medplum, event) {
          const secret = event.secrets.TOKEN.valueString;
          console.log('token: ' + secret, { secret }, JSON.stringify(secret));
          console.error(`Bearer ${process.env.PASSWORD}!`, event.secrets.PIN.valueString);
          if (event.input.outcome) throw { resourceType: 'OperationOutcome', issue: [{ severity: 'error', code: 'invalid', details: { text: secret } }] };
          throw new Error('login failed with ' + secret);
        }""")  # fmt: skip
    set_bot(project, bot, "secrets", {"name": "TOKEN", "valueString": VALUE}, {"name": "PIN", "valueString": "1234"})  # fmt: skip
    set_bot(project, bot, "env", {"name": "PASSWORD", "valueString": "hunter2!"})
    seen = ""
    for value in ({}, {"outcome": True}):
        answer = project.execute(bot, value)
        assert answer.status_code == 400
        seen += answer.text
    for event in project.audit_events(f"Bot/{bot}", 2):
        seen += event["outcomeDesc"]
    for hidden in ("line1", "pass", "hunter2"):
        assert hidden not in seen
    assert f"login failed with {MASK}" in seen
    assert f"Bearer {MASK}" in seen
    assert "1234" in seen  # too short to be told from other text


ANSWER = """
exports.handler = async (medplum, event) => {
  const token = event.secrets.TOKEN.valueString;
  switch (event.input.how) {
    case 'response': return new Response(token, {status: 201, headers: {'x-token': token, 'content-type': 'text/plain'}});
    case 'stream': event.responseStream.write(token); return event.responseStream.end();
    case 'text': return token;
    case 'throw': throw new Error(token);
    default: return {token, [token]: [token]};
  }
};"""


def test_what_the_bot_answers_its_caller_is_its_own_affair(project: Project) -> None:
    set_project_secrets(project, {"name": "TOKEN", "valueString": "the-token"})
    bot = project.bot(ANSWER, filename="a.cjs")
    assert project.execute(bot).json() == {"token": "the-token", "the-token": ["the-token"]}
    own = project.execute(bot, {"how": "response"})
    assert (own.text, own.headers["x-token"]) == ("the-token", "the-token")
    key = {"Idempotency-Key": "k"}
    assert project.execute(bot, {"how": "text"}, **key).text == "the-token"
    assert project.execute(bot, {"how": "text"}, **key).text == "the-token"
    streaming = project.bot(ANSWER, filename="a.cjs", streamingEnabled=True)
    assert project.execute(streaming, {"how": "stream"}, Accept="text/event-stream").text == "the-token"
    assert "the-token" not in project.execute(bot, {"how": "throw"}).text
    archive = project.http.get(f"/fhir/R4/Bot/{bot}/$runs?count=9").text
    assert "the-token" not in archive + project.http.get(f"/fhir/R4/Bot/{bot}/$logs").text


def test_what_is_kept_of_an_asynchronous_answer_is_masked(project: Project) -> None:
    set_project_secrets(project, {"name": "TOKEN", "valueString": "the-token"})
    bot = project.bot(ANSWER, filename="a.cjs")
    for how in ("object", "response", "text", "throw"):
        url = project.execute(bot, {"how": how}, Prefer="respond-async").headers["content-location"]
        wait_until(lambda url=url: project.http.get(url).status_code == 200)  # type: ignore[misc]
        output = project.http.get(url).json()["output"]
        assert "the-token" not in str(output)
        assert MASK in str(output)


def test_a_masker_hides_the_longest_first() -> None:
    masker = Masker(["secret-1", "secret-1-long", "short", "  padded value  "])
    assert masker.text("secret-1-long, secret-1, short, padded value") == f"{MASK}, {MASK}, short, {MASK}"
    assert masker.value({"a": ["secret-1"], "b": 1}) == {"a": [MASK], "b": 1}
    assert Masker([]).text("x") == "x"
