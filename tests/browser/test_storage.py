"""What a browser keeps: unsaved code for its author, in the tab; never what may be about a patient."""

from __future__ import annotations

from playwright.sync_api import Page, expect

from tests.browser.conftest import sign_in
from tests.browser.test_first_walk import create_bot, write_code
from tests.conftest import Server

MARKER = "Unsaved-Code-Of-Mine"
PATIENT = "Wilhelmina-Patient"
STORED = """async () => JSON.stringify([
  {...sessionStorage}, {...localStorage}, (await indexedDB.databases()).map((each) => each.name), await caches.keys(), document.cookie])"""


def stored(page: Page) -> str:
    return str(page.evaluate(STORED))


def write_draft(page: Page, bot: str) -> None:
    page.goto(f"/Bot/{bot}/editor")
    write_code(page, f"// {MARKER}")
    page.wait_for_function("marker => JSON.stringify(sessionStorage).includes(marker)", arg=MARKER)


def sign_out(page: Page) -> None:
    page.on("dialog", lambda dialog: dialog.accept())
    page.locator("summary[aria-label=Account]").click()
    page.get_by_role("button", name="Sign out", exact=True).click()
    expect(page.get_by_label("Password", exact=True)).to_be_visible()


def test_the_draft_of_code_is_gone_after_sign_out_in_every_tab(page: Page, server: Server) -> None:
    bot = create_bot(page, "draft")
    with page.context.expect_page() as opened:
        page.evaluate("window.open('/Bot')")
    other = opened.value
    other.wait_for_load_state()
    write_draft(page, bot)
    other.evaluate(
        "text => sessionStorage.setItem('draft:x:y', text)", MARKER
    )  # as a tab that was opened from this one has it
    sign_out(page)
    assert MARKER not in stored(page)
    other.wait_for_function("!('draft:x:y' in sessionStorage)")
    sign_in(page, server)
    page.goto(f"/Bot/{bot}/editor")
    expect(page.get_by_text("Unsaved text of yours")).to_have_count(0)


def test_the_draft_waits_for_its_author_when_the_session_expires_and_for_nobody_else(
    page: Page, server: Server
) -> None:
    bot = create_bot(page, "draft")
    page.goto("/admin/invite")
    email, password = f"second-{bot}@example.com", "a password for tests"
    for label, text in (
        ("First name", "Second"),
        ("Last name", "Admin"),
        ("Email", email),
        ("First password", password),
    ):
        page.get_by_label(label, exact=True).fill(text)
    page.get_by_label("Project admin", exact=True).check()
    page.get_by_role("button", name="Invite", exact=True).click()
    page.wait_for_url("**/admin/users")

    page.on("dialog", lambda dialog: dialog.accept())
    write_draft(page, bot)
    page.context.clear_cookies()
    sign_in(page, server)
    assert MARKER in stored(page)
    page.goto(f"/Bot/{bot}/editor")
    expect(page.get_by_text("Unsaved text of yours")).to_be_visible()

    page.context.clear_cookies()
    page.goto("/signin")
    page.get_by_label("Email", exact=True).fill(email)
    page.get_by_label("Password", exact=True).fill(password)
    page.get_by_role("button", name="Sign in", exact=True).click()
    page.wait_for_url(lambda url: "/signin" not in url)
    assert MARKER not in stored(page)


def test_the_input_never_reaches_a_storage_of_the_browser(page: Page) -> None:
    bot = create_bot(page, "input")
    write_draft(page, bot)
    page.get_by_label("Content type", exact=True).select_option("application/json")
    page.get_by_role("textbox", name="Input", exact=True).fill(f'{{"name": "{PATIENT}"}}')
    page.get_by_role("button", name="Save", exact=True).click()
    expect(page.get_by_text("Saved. Not deployed yet.").first).to_be_visible()
    page.get_by_role("button", name="Execute", exact=True).click()
    expect(page.get_by_text("This Bot has not been deployed yet").first).to_be_visible()
    write_code(page, f"// {MARKER} again")
    assert MARKER in stored(page)
    assert PATIENT not in stored(page)
    assert PATIENT not in page.title() + page.url
    page.on("dialog", lambda dialog: dialog.accept())
    page.goto("/Bot")
    page.go_back()
    expect(page.get_by_text("Unsaved text of yours")).to_be_visible()
    assert PATIENT not in stored(page)
    assert PATIENT not in page.get_by_role("textbox", name="Input", exact=True).input_value()
