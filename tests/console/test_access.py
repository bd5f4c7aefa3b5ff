"""Who may see which page (acceptance check 2 of the UX bible)."""

from __future__ import annotations

import ast
import inspect
from types import ModuleType

from django.test import Client

from console import page_urls
from console.views import (
    admin,
    auditevent,
    bot,
    deployment,
    editor,
    environment,
    history,
    overview,
    package,
    resource,
    schedule,
    secret,
    subscription,
)
from tests.console.conftest import Person

ADMIN_PAGES = (
    "/Bot",
    "/admin/bots/new",
    "/Subscription",
    "/Subscription/new",
    "/AuditEvent",
    "/AuditEvent?_count=20&_fields=id,_lastUpdated&_offset=0&_sort=-_lastUpdated",
    "/admin/project",
    "/admin/bots",
    "/admin/users",
    "/admin/invite",
    "/admin/clients",
    "/admin/clients/new",
    "/admin/packages",
    "/admin/secrets",
    "/admin/settings",
)
BOT_PAGES = (
    "",
    "/timeline",
    "/editor",
    "/subscriptions",
    "/event",
    "/deployments",
    "/schedule",
    "/secrets",
    "/details",
    "/edit",
    "/history",
    "/json",
    "/delete",
    "/source",
)
MEMBER_PAGES = ("/", "/help", "/resources", "/Patient?_fields=id", "/Patient/new")


def test_admin_pages_are_for_admins(alice: Person, bob: Person) -> None:
    for url in ADMIN_PAGES:
        alice.page(url)
        assert "Only project admins" in bob.page(url, 403)


def test_the_pages_of_a_bot_answer_200_to_admins_403_to_members_404_to_others(
    alice: Person, bob: Person, charlie: Person, bot: str
) -> None:
    for path in BOT_PAGES:
        url = f"/Bot/{bot}{path}"
        alice.page(url)
        assert "Only project admins can see Bots" in bob.page(url, 403)
        assert "Not found, or not in this project" in charlie.page(url, 404)


def test_the_403_page_names_the_admins(alice: Person, bob: Person) -> None:
    name = alice.identity.profile_display
    assert name
    assert name in bob.page("/Bot", 403)


def test_a_missing_bot_and_one_of_another_project_look_the_same(
    alice: Person, charlie: Person, bot: str
) -> None:
    missing = "00000000-0000-4000-8000-000000000000"
    theirs = charlie.page(f"/Bot/{bot}", 404).replace(bot, "")
    nobodys = charlie.page(f"/Bot/{missing}", 404).replace(missing, "")
    strip = lambda page: page.split("csrfmiddlewaretoken")[0]  # noqa: E731
    assert strip(theirs) == strip(nobodys)


def test_members_reach_the_resources(bob: Person) -> None:
    for url in MEMBER_PAGES:
        bob.page(url)


def test_strangers_are_sent_to_sign_in_and_come_back(database: None) -> None:
    answer = Client().get("/Bot?name=x")
    assert answer.status_code == 302
    assert answer["Location"] == "/signin?next=%2FBot%3Fname%3Dx"


def test_a_fragment_of_a_stranger_says_that_the_session_has_ended(database: None) -> None:
    answer = Client().get("/Bot", headers={"HX-Request": "true"})
    assert answer.status_code == 401
    assert "You are signed out" in answer.content.decode()


def test_a_removed_member_is_signed_out_at_once(alice: Person, bob: Person) -> None:
    bob.page("/help")
    alice.repository.delete("ProjectMembership", bob.membership)
    assert bob.client.get("/help").status_code == 302


def test_members_do_not_see_what_they_may_not_use(bob: Person) -> None:
    page = bob.page("/")
    assert "/admin/project" not in page
    assert 'href="/Bot"' not in page


def test_posts_need_the_form_token(alice: Person, bot: str) -> None:
    strict = Client(enforce_csrf_checks=True, headers={})
    strict.cookies = alice.client.cookies
    answer = strict.post(f"/Bot/{bot}/editor", {"action": "save", "code": "x"})
    assert answer.status_code == 403
    assert "The form is out of date" in answer.content.decode()


VIEW_MODULES: tuple[ModuleType, ...] = (
    admin, auditevent, bot, deployment, editor, environment, history, overview, package, resource, schedule, secret, subscription, page_urls,
)  # fmt: skip


def test_the_first_line_of_every_view_asks_who_is_there() -> None:
    views = {
        (pattern.callback.__module__, pattern.callback.__name__)
        for pattern in page_urls.urlpatterns
        if pattern.callback is not None
    }
    unchecked = []
    for module in VIEW_MODULES:
        for node in ast.parse(inspect.getsource(module)).body:
            if isinstance(node, ast.FunctionDef) and (module.__name__, node.name) in views:
                views.discard((module.__name__, node.name))
                first = node.body[1]  # behind the docstring
                if "access." not in ast.unparse(first):
                    unchecked.append(node.name)
    assert unchecked == []
    assert {module for module, _name in views} == {"console.views.signin"}
