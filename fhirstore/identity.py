"""Who acts: the one value every access decision starts from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fhirstore.scopes import Scope

if TYPE_CHECKING:
    from fhirstore.access import Policy


@dataclass(frozen=True, slots=True)
class Identity:
    """The actor of a request or a run, bound to exactly one project.

    Attributes:
        project: id of the Project all reads and writes are confined to.
        profile: reference of the acting profile (``Practitioner/…``, ``Bot/…``, ``ClientApplication/…``), written to
            ``meta.author``; ``system`` for the server itself.
        profile_display: its display name.
        membership: id of the ProjectMembership; None for the server itself.
        is_admin: the membership has ``admin``.
        policy: the compiled AccessPolicy; None means full access inside the project.
        features: ``Project.features``.
        login: id of the login behind a token, None for Basic auth, console sessions and bots.
        client: id of the ClientApplication the token was issued to.
        on_behalf_of: reference of the profile that really acts when ``X-Medplum-On-Behalf-Of`` was used.
        scopes: the SMART scopes of the token, which take away from what the policy allows; None for no limit.
        check_references: ``Project.checkReferencesOnWrite``: what a write refers to has to be there.
        default_profiles: ``Project.defaultProfile``: resource type and the profiles of resources that name none.
        lenient: ``Project.strictMode`` is false: writes are checked for structure, not for invariants and profiles.
        system: the server itself: protected types and fields are open, the project border still holds.
    """

    project: str
    profile: str
    profile_display: str | None = None
    membership: str | None = None
    is_admin: bool = False
    policy: Policy | None = None
    features: frozenset[str] = field(default_factory=frozenset)
    login: str | None = None
    client: str | None = None
    on_behalf_of: str | None = None
    scopes: tuple[Scope, ...] | None = None
    check_references: bool = False
    default_profiles: tuple[tuple[str, tuple[str, ...]], ...] = ()
    lenient: bool = False
    system: bool = False


def system_identity(project: str) -> Identity:
    """The server itself acting inside one project."""
    return Identity(project=project, profile="system", is_admin=True, system=True)
