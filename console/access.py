"""Who looks at a page, and may they? Every view's first line is one of these helpers.

They return the acting :class:`Repository`: tenancy and AccessPolicy live there, so a resource of another project is
simply not found. What stands here is only the door: signed in, member of a project, project admin.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from django.contrib.auth import logout
from django.http import HttpRequest

from fhirstore.api import (
    FhirError,
    Identity,
    Repository,
    Stored,
    check_address,
    identity_of_membership,
    is_resource_type,
    not_found,
)

MEMBERSHIP_KEY = "membership"
"""Session key: id of the ProjectMembership chosen at sign-in."""
PROJECT_NAME_KEY = "project_name"
"""Session key: name of its project, shown on every page."""


class SignInNeeded(Exception):  # noqa: N818  (no error: a detour)
    """Nobody is signed in; the middleware sends the visitor to `/signin`."""


class AdminNeeded(Exception):  # noqa: N818  (named like the other)
    """The page is for project admins only; the middleware answers with a 403 page."""


@dataclass(frozen=True, slots=True)
class Visitor:
    """The person in front of the page, with the identity all their reads and writes use."""

    identity: Identity
    name: str
    project_name: str

    @property
    def is_admin(self) -> bool:
        """A project admin."""
        return self.identity.is_admin


def visitor_of(request: HttpRequest) -> Visitor | None:
    """Return who is signed in, None for a stranger. A membership that has ended, or must not be
    used from here, signs its person out."""
    known: Visitor | None = getattr(request, "visitor", None)
    if known is not None:
        return known
    membership = request.session.get(MEMBERSHIP_KEY)
    if not request.user.is_authenticated or not membership:
        return None
    try:
        identity = identity_of_membership(membership)
        check_address(identity, request.META.get("REMOTE_ADDR", ""))
    except FhirError:
        logout(request)
        return None
    name = identity.profile_display or request.user.get_username()
    visitor = Visitor(identity, name, request.session.get(PROJECT_NAME_KEY) or "Project")
    request.visitor = visitor  # type: ignore[attr-defined]  # per-request memory, read by the shell
    return visitor


def member(request: HttpRequest) -> Repository:
    """Return the Repository of a signed-in project member.

    Raises:
        SignInNeeded: nobody is signed in.
    """
    visitor = visitor_of(request)
    if visitor is None:
        raise SignInNeeded
    return Repository(visitor.identity, trace_id=getattr(request, "request_id", None))


def admin(request: HttpRequest) -> Repository:
    """Return the Repository of a signed-in project admin.

    Raises:
        SignInNeeded: nobody is signed in.
        AdminNeeded: the member is no admin.
    """
    repository = member(request)
    if not repository.identity.is_admin:
        raise AdminNeeded
    return repository


ADMIN_TYPES = frozenset(
    {"Bot", "Subscription", "AuditEvent", "ClientApplication", "ProjectMembership", "AccessPolicy", "Project"}
)
"""Types whose pages belong to admins. All other types follow the member's AccessPolicy alone."""


def member_for(request: HttpRequest, resource_type: str) -> Repository:
    """Return the Repository for pages of one resource type: `admin` for the admin types, else `member`.

    Raises:
        SignInNeeded, AdminNeeded: as they do.
        FhirError: 404, there is no such type.
    """
    repository = admin(request) if resource_type in ADMIN_TYPES else member(request)
    if not is_resource_type(resource_type):
        raise not_found()
    return repository


def read(repository: Repository, resource_type: str, resource_id: str) -> tuple[Stored, dict[str, Any]]:
    """Read a resource with its parsed JSON; raises `FhirError` not-found, gone or forbidden."""
    stored = repository.read(resource_type, resource_id)
    return stored, stored.resource
