"""A signed-in browser."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page

from tests.conftest import Server


@pytest.fixture
def page(browser: Browser, server: Server) -> Iterator[Page]:
    """A signed-in page; a request to another host or an error in the page's scripts fails the test."""
    context = browser.new_context(base_url=server.base_url, viewport={"width": 1280, "height": 900})
    page = context.new_page()
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(f"script error: {error}"))
    page.on(
        "console",
        lambda message: (
            faults.append(f"{message.text} ({message.location.get('url')})")
            if message.type == "error"
            else None
        ),
    )
    page.on(
        "request",
        lambda request: (
            faults.append(f"foreign request: {request.url}")
            if not request.url.startswith((server.base_url, "data:", "blob:"))
            else None
        ),
    )
    sign_in(page, server)
    yield page
    context.close()
    assert faults == []


def sign_in(page: Page, server: Server) -> None:
    page.goto("/signin")
    page.get_by_label("Email", exact=True).fill(server.admin_email)
    page.get_by_label("Password", exact=True).fill(server.admin_password)
    page.get_by_role("button", name="Sign in", exact=True).click()
    page.wait_for_url(lambda url: "/signin" not in url)
