"""The editor as a plain form and by htmx."""

from __future__ import annotations

import re
from typing import Any

import pytest

from bots.api import bot_save_code, deployment_current
from console.views.editor import MAX_OUTPUT, _output
from tests.conftest import Server
from tests.console.conftest import Person

CODE = "export async function handler(medplum, event) {\n  console.log('Hello world');\n  return event.input;\n}\n"


def version_of(page: str) -> str:
    found = re.search(r'name="version" id="version" value="([^"]*)"', page)
    assert found is not None
    return found.group(1)


def send(person: Person, bot: str, action: str, code: str, *, htmx: bool = False, **fields: str) -> Any:
    page = person.page(f"/Bot/{bot}/editor")
    data = {
        "action": action,
        "code": code.replace("\n", "\r\n"),
        "version": version_of(page),
        "input": "{}",
        "content_type": "application/json",
        **fields,
    }
    return person.post(f"/Bot/{bot}/editor", data, htmx=htmx)


def saved_code(person: Person, bot: str) -> str:
    return person.client.get(f"/Bot/{bot}/source").content.decode()


def test_the_page_holds_the_saved_code_in_the_form(alice: Person, bot: str) -> None:
    page = alice.page(f"/Bot/{bot}/editor")
    assert "// Your code here" in page
    assert '<label for="code">Code</label>' in page
    assert "Never deployed" in page
    for value in ("application/fhir+json", "application/json", "text/plain", "x-application/hl7-v2+er7"):
        assert f'value="{value}"' in page


def test_save_stores_the_code_and_deploys_nothing(alice: Person, bot: str) -> None:
    answer = send(alice, bot, "save", CODE)
    page = answer.content.decode()
    assert "Saved. Not deployed yet." in page
    assert saved_code(alice, bot) == CODE
    assert deployment_current(alice.repository, bot) is None


def test_htmx_gets_only_the_changed_parts(alice: Person, bot: str) -> None:
    answer = send(alice, bot, "save", CODE, htmx=True)
    fragment = answer.content.decode()
    assert "<html" not in fragment
    assert 'id="state" hx-swap-oob="true"' in fragment
    assert 'data-announce="Saved. Not deployed yet."' in fragment
    assert "<textarea" not in fragment


def test_saving_over_the_work_of_another_admin_is_refused_and_loses_nothing(alice: Person, bot: str) -> None:
    old = version_of(alice.page(f"/Bot/{bot}/editor"))
    theirs = CODE.replace("Hello", "Their")
    bot_save_code(alice.repository, bot_id=bot, source=theirs, filename="index.js")

    refused = send(alice, bot, "save", CODE, version=old)
    page = refused.content.decode()
    assert refused.status_code == 409
    assert "Your text has not been saved" in page
    assert "Hello world" in page
    assert saved_code(alice, bot) == theirs
    assert version_of(page) == old  # the next Save is refused as well

    again = send(alice, bot, "overwrite", CODE, version=old)
    assert saved_code(alice, bot) == theirs
    sure = re.search(r'name="sure" value="([^"]+)"', again.content.decode())
    assert sure is not None
    send(alice, bot, "overwrite", CODE, version=old, sure=sure.group(1))
    assert saved_code(alice, bot) == CODE


def test_a_change_of_other_elements_is_no_conflict(alice: Person, bot: str) -> None:
    old = version_of(alice.page(f"/Bot/{bot}/editor"))
    changed = alice.repository.read("Bot", bot).resource | {"description": "new"}
    alice.repository.update(changed)
    assert send(alice, bot, "save", CODE, version=old).status_code == 200
    assert saved_code(alice, bot) == CODE
    assert alice.repository.read("Bot", bot).resource["description"] == "new"


def test_executing_does_not_hide_that_somebody_else_has_saved(alice: Person, bot: str) -> None:
    old = version_of(alice.page(f"/Bot/{bot}/editor"))
    bot_save_code(alice.repository, bot_id=bot, source="// theirs\n", filename="index.js")
    answer = send(alice, bot, "execute", CODE, version=old)
    assert version_of(answer.content.decode()) == old


def test_execute_before_the_first_deployment_says_what_to_do(alice: Person, bot: str) -> None:
    page = send(alice, bot, "execute", CODE).content.decode()
    assert "This Bot has not been deployed yet." in page
    assert "Hello world" in page


def test_deploy_with_unsaved_text_asks_first(alice: Person, bot: str) -> None:
    page = send(alice, bot, "deploy", CODE).content.decode()
    assert "Save and deploy" in page
    assert "differs from the saved code" in page
    assert deployment_current(alice.repository, bot) is None


def test_an_unknown_button_does_nothing(alice: Person, bot: str) -> None:
    assert send(alice, bot, "", CODE).status_code == 200
    assert "// Your code here" in saved_code(alice, bot)


def test_markup_in_the_code_stays_text(alice: Person, bot: str) -> None:
    send(alice, bot, "save", "</textarea><script>alert(1)</script>\n")
    assert "<script>alert" not in alice.page(f"/Bot/{bot}/editor")


def test_the_editor_page_alone_allows_workers_and_inline_styles(alice: Person, bot: str) -> None:
    policy = alice.client.get(f"/Bot/{bot}/editor").headers["Content-Security-Policy"]
    assert "worker-src 'self'" in policy
    assert "style-src 'self' 'unsafe-inline'" in policy
    assert "script-src 'self';" in f"{policy};"
    elsewhere = alice.client.get(f"/Bot/{bot}").headers["Content-Security-Policy"]
    assert "default-src 'none'" in elsewhere
    assert "unsafe" not in elsewhere
    assert "worker-src" not in elsewhere


def test_only_the_editor_page_refers_to_monaco(alice: Person, bot: str) -> None:
    assert "vendor/monaco" in alice.page(f"/Bot/{bot}/editor")
    for url in ("/", "/Bot", f"/Bot/{bot}", "/Patient/new"):
        assert "monaco" not in alice.page(url)


def test_pages_are_not_kept_by_browsers(alice: Person, bot: str) -> None:
    assert "no-store" in alice.client.get(f"/Bot/{bot}/editor").headers["Cache-Control"]


@pytest.mark.parametrize(
    ("body", "content_type", "shown"),
    [
        (b'{"a":1}', "application/json", '{\n  "a": 1\n}'),
        (b"not json", "application/json", "not json"),
        (b"MSH|1\rPID|2", "x-application/hl7-v2+er7", "MSH|1\nPID|2"),
        (b"\xff", "text/plain", "\N{REPLACEMENT CHARACTER}"),
    ],
)
def test_output_is_shown_readably(body: bytes, content_type: str, shown: str) -> None:
    assert _output(body, content_type) == shown


def test_long_output_is_cut_and_says_so() -> None:
    assert _output(b"x" * (MAX_OUTPUT + 5), "text/plain").endswith("… 5 more characters are not shown.")


# --- with a worker ---------------------------------------------------------------------------------------------


def test_save_deploy_execute(server: Server, alice: Person, bot: str) -> None:
    page = send(alice, bot, "save-and-deploy", CODE, note="first").content.decode()
    assert "Deployed v1. Execute and all triggers now run this code." in page
    assert "<strong>Deployed v1</strong>" in page

    page = send(alice, bot, "execute", CODE, input='{"greeting": "hi"}').content.decode()
    assert "Success in" in page
    assert "&quot;greeting&quot;: &quot;hi&quot;" in page
    assert "Hello world" in page
    assert "Runs deployed" not in page

    page = send(alice, bot, "execute", CODE + "// changed\n").content.decode()
    assert "Runs deployed v1, not the code in the editor." in page

    assert "Nothing to deploy: v1 is the saved code." in send(alice, bot, "deploy", CODE).content.decode()
    assert "first" in alice.page(f"/Bot/{bot}/deployments")


def test_broken_code_is_not_deployed_and_says_where(server: Server, alice: Person, bot: str) -> None:
    broken = "export async function handler(medplum, event) {\n  return (;\n}\n"
    page = send(alice, bot, "save-and-deploy", broken).content.decode()
    assert "Not deployed: line 2" in page
    assert 'data-line="2"' in page
    assert "Never deployed" in page
    assert saved_code(alice, bot) == broken


def test_output_and_log_of_a_bot_are_text_on_every_page(server: Server, alice: Person, bot: str) -> None:
    marker = "<img src=x onerror=alert(1)>"
    code = f"export async function handler() {{\n  console.log('{marker}');\n  return '{marker}';\n}}\n"
    send(alice, bot, "save-and-deploy", code)
    page = send(alice, bot, "execute", code).content.decode()
    run = re.search(r'href="(/AuditEvent/[^"]+)"', page)
    assert run is not None
    for text in (page, *(alice.page(url) for url in (f"/Bot/{bot}", f"/Bot/{bot}/event", run.group(1), "/"))):
        assert "<img" not in text
    assert "&lt;img src=x onerror=alert(1)&gt;" in alice.page(run.group(1))


def test_a_failing_bot_shows_its_kind_of_failure_and_its_log(server: Server, alice: Person, bot: str) -> None:
    code = (
        "export async function handler() {\n  console.log('before');\n  throw new Error('broken pipe');\n}\n"
    )
    send(alice, bot, "save-and-deploy", code)
    page = send(alice, bot, "execute", code).content.decode()
    assert "the code threw an error" in page
    assert "before" in page
    assert "Minor failure" in alice.page(f"/Bot/{bot}")


def test_rolling_back_names_the_change_and_needs_a_second_step(
    server: Server, alice: Person, bot: str
) -> None:
    send(alice, bot, "save-and-deploy", CODE)
    send(alice, bot, "save-and-deploy", CODE.replace("Hello", "Good"))
    page = alice.page(f"/Bot/{bot}/deployments/1/roll-back")
    assert "Roll back to v1" in page
    assert "Good world" in page
    current = deployment_current(alice.repository, bot)
    assert current is not None
    assert current.number == 2
    assert alice.post(f"/Bot/{bot}/deployments/1/roll-back")["Location"] == f"/Bot/{bot}/deployments"
    current = deployment_current(alice.repository, bot)
    assert current is not None
    assert (current.number, current.source) == (3, CODE)
    assert "No difference" in alice.page(f"/Bot/{bot}/deployments/1/diff/3")
    assert "Good world" in alice.page(f"/Bot/{bot}/deployments/3/diff/saved")
    assert alice.client.get(f"/Bot/{bot}/deployments/2/source").content.decode() == CODE.replace(
        "Hello", "Good"
    )
    alice.page(f"/Bot/{bot}/deployments/9/source", 404)


def test_hl7_goes_to_the_bot_with_its_own_line_ends(server: Server, alice: Person, bot: str) -> None:
    code = "export async function handler(medplum, event) {\n  return event.input.segments.length + ' segments';\n}\n"
    send(alice, bot, "save-and-deploy", code)
    fields = {"input": "MSH|^~\\&|A|B\r\nPID|1\r\n", "content_type": "x-application/hl7-v2+er7"}
    assert "2 segments" in send(alice, bot, "execute", code, **fields).content.decode()


def test_input_that_does_not_fit_its_type_is_refused_in_words(
    server: Server, alice: Person, bot: str
) -> None:
    send(alice, bot, "save-and-deploy", CODE)
    page = send(alice, bot, "execute", CODE, input="{not json").content.decode()
    assert "Content could not be parsed" in page
    assert "{not json" in page


def test_the_deploy_dialog_shows_what_would_change(server: Server, alice: Person, bot: str) -> None:
    assert "first deployment" in alice.post(f"/-/Bot/{bot}/deploy-diff", {"code": CODE}).content.decode()
    send(alice, bot, "save-and-deploy", CODE)
    new = CODE.replace("Hello", "Good")
    fragment = alice.post(f"/-/Bot/{bot}/deploy-diff", {"code": new}).content.decode()
    assert "+1 \N{MINUS SIGN}1" in fragment
