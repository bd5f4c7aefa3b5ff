"""The menu and the tabs, in one place."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Link:
    """A place to go. `current` marks where the reader is."""

    label: str
    url: str
    icon: str = ""
    current: bool = False
    count: int | None = None


@dataclass(frozen=True, slots=True)
class Group:
    """Some links under a heading; the first group has none."""

    label: str
    links: list[Link]


COMMON_TYPES = ("Patient", "Practitioner", "Observation", "Task", "Communication")
"""Resource types offered in the menu; all others stand on `/resources`."""

_MENU: tuple[tuple[str, bool, tuple[tuple[str, str, str], ...]], ...] = (
    ("", False, (("Overview", "/", "home"),)),
    (
        "Automation",
        True,
        (
            ("Bots", "/Bot", "robot"),
            ("Subscriptions", "/Subscription", "bell"),
            ("Events", "/AuditEvent", "activity"),
        ),
    ),
    (
        "Resources",
        False,
        (
            *((name, f"/{name}", "file-text") for name in COMMON_TYPES),
            ("All types", "/resources", "database"),
        ),
    ),
    (
        "Project",
        True,
        (
            ("Details", "/admin/project", "folder"),
            ("Users", "/admin/users", "users"),
            ("Clients", "/admin/clients", "key"),
            ("Bots in project", "/admin/bots", "apps"),
            ("Packages", "/admin/packages", "package"),
            ("Secrets", "/admin/secrets", "lock"),
            ("Settings", "/admin/settings", "settings"),
        ),
    ),
)

RESOURCE_TABS = ("Timeline", "Details", "Edit", "History", "JSON")
BOT_TABS = (
    "Timeline",
    "Editor",
    "Subscriptions",
    "Event",
    "Deployments",
    "Schedule",
    "Secrets",
    "Environment",
    "Details",
    "Edit",
    "History",
    "JSON",
)
TABS = {
    "Bot": BOT_TABS,
    "Subscription": ("Timeline", "Deliveries", *RESOURCE_TABS[1:]),
}
_PATHS = {"Timeline": ""}


def menu(path: str, *, is_admin: bool) -> list[Group]:
    """Return the menu for a page.

    Args:
        path: path of the page, marks the current link.
        is_admin: members who are no admins do not see the admin pages.
    """
    return [
        Group(label, [Link(text, url, icon, current=_is_under(path, url)) for text, url, icon in links])
        for label, admin_only, links in _MENU
        if is_admin or not admin_only
    ]


def tabs(
    resource_type: str, resource_id: str, current: str, counts: dict[str, int] | None = None
) -> list[Link]:
    """Return the tabs of a resource; `current` is a tab's name, `counts` go into the labels."""
    names = TABS.get(resource_type, RESOURCE_TABS)
    return [
        Link(
            name,
            f"/{resource_type}/{resource_id}"
            + (f"/{path}" if (path := _PATHS.get(name, name.lower())) else ""),
            current=name == current,
            count=(counts or {}).get(name),
        )
        for name in names
    ]


_RELATIVE: Final = re.compile(r"[A-Z][A-Za-z]+/[A-Za-z0-9.-]{1,64}(/_history/[A-Za-z0-9.-]{1,64})?")


def page_of(reference: object) -> str:
    """Address of the page of a resource; empty for what is no relative reference: ``//host`` would lead to another site."""
    return f"/{reference}" if isinstance(reference, str) and _RELATIVE.fullmatch(reference) else ""


def _is_under(path: str, url: str) -> bool:
    return path == url or (url != "/" and path.startswith(f"{url}/"))
