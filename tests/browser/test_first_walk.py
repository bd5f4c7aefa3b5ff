"""The tutorial page of the specification (spec s1), followed literally in Chromium: create a Bot, edit it, save, deploy,
execute, subscribe it to Patient, create Jane Doe, and find "Hello world" on the timelines."""

from __future__ import annotations

import re
from pathlib import Path

from playwright.sync_api import Page, expect

SHOTS = Path(__file__).parent.parent.parent / "test-results"
CODE = """export async function handler(medplum, event) {
  console.log('Hello world');
  return event.input;
}"""


def shot(page: Page, name: str) -> None:
    SHOTS.mkdir(exist_ok=True)
    page.screenshot(path=SHOTS / f"{name}.png", full_page=True)


def create_bot(page: Page, name: str) -> str:
    page.goto("/admin/project")
    page.get_by_role("link", name="Create new Bot").first.click()
    page.get_by_label("Name", exact=True).fill(name)
    page.get_by_label("Description", exact=True).fill("Says hello")
    shot(page, "create-bot")
    page.get_by_role("button", name="Create Bot", exact=True).click()
    expect(page.get_by_text("Bot created").first).to_be_visible()
    found = re.search(r"[0-9a-f]{8}-[0-9a-f-]{27}", page.get_by_role("main").inner_text())
    assert found is not None
    return found.group()


def write_code(page: Page, code: str) -> None:
    """Write into the form's own text box in plain-text mode, as assistive technology does, or into Monaco by keyboard."""
    page.wait_for_selector(".monaco-editor .view-lines", state="visible")
    page.locator(".monaco-editor .view-lines").first.click()
    page.keyboard.press("ControlOrMeta+a")
    page.keyboard.press("Delete")
    page.keyboard.insert_text(code)


def save_and_deploy(page: Page) -> None:
    page.get_by_role("button", name="Save", exact=True).click()
    expect(page.get_by_text(re.compile("Saved")).first).to_be_visible()
    page.get_by_role("button", name="Deploy", exact=True).click()
    dialog = page.get_by_role("dialog")
    if dialog.is_visible():
        dialog.get_by_role("button", name=re.compile("^(Deploy|Save and deploy)$")).click()


def test_the_tutorial_walk_ends_with_hello_world_on_the_timelines(page: Page) -> None:
    bot = create_bot(page, "hello-world")

    page.goto(f"/Bot/{bot}/editor")
    write_code(page, CODE)
    page.get_by_role("button", name="Save", exact=True).click()
    page.get_by_role(
        "button", name="Deploy", exact=True
    ).click()  # the first time there is nothing to confirm
    expect(page.get_by_text(re.compile("Deployed v1")).first).to_be_visible()

    page.get_by_label("Content type", exact=True).select_option("application/json")
    page.get_by_role("textbox", name="Input", exact=True).fill('{"greeting": "hi"}')
    page.get_by_role("button", name="Execute", exact=True).click()
    result = page.get_by_role("region", name="Result", exact=True)
    expect(result.get_by_role("region", name="Output", exact=True)).to_contain_text("greeting")
    expect(result.get_by_role("region", name="Log", exact=True)).to_contain_text("Hello world")
    shot(page, "editor")

    page.goto("/Subscription")
    page.get_by_role("link", name=re.compile("New")).first.click()
    page.get_by_label("Status", exact=True).select_option("active")
    page.get_by_label("Reason", exact=True).fill("Say hello to new patients")
    page.get_by_label("Criteria", exact=True).fill("Patient")
    page.get_by_label("Channel type", exact=True).select_option("rest-hook")
    page.get_by_label("Endpoint", exact=True).fill(f"Bot/{bot}")
    page.get_by_label("Payload", exact=True).fill("application/fhir+json")
    shot(page, "subscription-new")
    page.get_by_role("button", name="Create Subscription", exact=True).click()
    page.wait_for_url(re.compile(r"/Subscription/[0-9a-f-]{36}"))
    subscription = page.url.split("/Subscription/")[1][:36]

    page.goto("/Patient")
    page.get_by_role("link", name=re.compile("New")).first.click()
    page.get_by_label(re.compile("^given", re.IGNORECASE)).first.fill("Jane")
    page.get_by_label(re.compile("^family", re.IGNORECASE)).first.fill("Doe")
    shot(page, "patient-new")
    page.get_by_role("button", name="Create", exact=True).click()
    page.wait_for_url(re.compile(r"/Patient/[0-9a-f-]{36}"))

    for address in (f"/Subscription/{subscription}", f"/Bot/{bot}"):
        page.goto(address)
        item = page.get_by_role("list", name="Timeline").get_by_role("article").filter(has_text="Hello world")
        for _ in range(50):
            if item.count():
                break
            page.wait_for_timeout(100)
            page.reload()
        expect(item.first).to_contain_text("Success")
        shot(page, "timeline-" + address.split("/")[1].lower())

    page.goto("/AuditEvent?_count=20&_fields=id,_lastUpdated&_offset=0&_sort=-_lastUpdated")
    expect(page.get_by_role("table").first).to_be_visible()
    shot(page, "audit-events")


def test_a_bot_that_does_not_parse_is_not_deployed_and_says_where(page: Page) -> None:
    bot = create_bot(page, "broken")
    page.goto(f"/Bot/{bot}/editor")
    write_code(page, "export async function handler(medplum, event) {\n  return (;\n}")
    save_and_deploy(page)
    expect(page.get_by_text(re.compile("line 2", re.IGNORECASE)).first).to_be_visible()
    expect(page.get_by_text(re.compile("Deployed v1"))).to_have_count(0)
    shot(page, "editor-problem")


def test_bot_output_is_shown_as_text(page: Page) -> None:
    bot = create_bot(page, "markup")
    page.goto(f"/Bot/{bot}/editor")
    write_code(
        page,
        "export async function handler() {\n  console.log('<img src=x onerror=alert(1)>');\n  return '<b id=injected>bold</b>';\n}",
    )
    save_and_deploy(page)
    expect(page.get_by_text(re.compile("Deployed v1")).first).to_be_visible()
    page.get_by_role("button", name="Execute", exact=True).click()
    expect(page.get_by_role("region", name="Output", exact=True)).to_contain_text("<b id=injected>bold</b>")
    expect(page.get_by_role("region", name="Log", exact=True)).to_contain_text("<img src=x onerror=alert(1)>")
    assert page.locator("#injected").count() == 0

    write_code(page, "export const handler = () => 1;")
    page.get_by_role("button", name="Deploy", exact=True).click()  # without a save before
    page.get_by_role("dialog").get_by_role("button", name="Save and deploy", exact=True).click()
    expect(page.get_by_text(re.compile("Deployed v2")).first).to_be_visible()

    write_code(page, "export const handler = () => 2;")
    page.get_by_role("button", name="Save", exact=True).click()
    expect(page.get_by_text(re.compile("differs")).first).to_be_visible()
    page.get_by_role("button", name="Deploy", exact=True).click()
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_text("export const handler = () => 2;").first).to_be_visible()
    dialog.get_by_role("button", name="Deploy", exact=True).click()
    expect(page.get_by_text(re.compile("Deployed v3")).first).to_be_visible()


def test_a_run_tells_its_log_and_input_and_runs_again(page: Page) -> None:
    bot = create_bot(page, "run-page")
    page.goto(f"/Bot/{bot}/editor")
    write_code(
        page,
        "export async function handler(medplum, event) {\n"
        "  console.warn('careful', event.input.greeting);\n"
        "  await medplum.createResource({ resourceType: 'Basic', code: { text: 'x' } });\n"
        "}",
    )
    save_and_deploy(page)
    expect(page.get_by_text(re.compile("Deployed v1")).first).to_be_visible()
    page.get_by_label("Content type", exact=True).select_option("application/json")
    page.get_by_role("textbox", name="Input", exact=True).fill('{"greeting": "hello"}')
    page.get_by_role("button", name="Execute", exact=True).click()
    page.get_by_role("link", name="Open the run").click()
    expect(page.get_by_role("region", name="Log", exact=True)).to_contain_text("careful hello")
    expect(page.get_by_role("region", name="Log", exact=True)).to_contain_text("warn")
    expect(page.get_by_role("table", name="What it wrote")).to_contain_text("Create")
    page.get_by_text("Show what this run was given").click()
    expect(page.locator("#run-input")).to_contain_text("greeting")
    first = page.url
    page.get_by_role("button", name="Run again", exact=True).click()
    expect(page.get_by_text("Repeated with the code deployed now.").first).to_be_visible()
    assert page.url != first
    expect(page.get_by_role("region", name="Log", exact=True)).to_contain_text("careful hello")
    shot(page, "run")
