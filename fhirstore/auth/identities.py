"""Who is this? From an ``Authorization`` header or a membership to an :class:`~fhirstore.identity.Identity`.

Identities are cached per process. Writes to ProjectMembership, AccessPolicy, Project and ClientApplication, and revoked
logins, send a notice with the project's id, on which every process forgets what it knows of that project.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from django.conf import settings

from fhirstore import database, models, notices
from fhirstore.access import Policy
from fhirstore.auth import keys, throttle
from fhirstore.errors import FhirError, bad_request, forbidden, unauthorized
from fhirstore.identity import Identity, system_identity
from fhirstore.repository import Repository
from fhirstore.scopes import parse_scopes

CHANNEL: Final = "fhirstore_identity"
CAPACITY: Final = 20_000
"""Credentials remembered per process; when full, all are forgotten."""

ON_BEHALF_OF: Final = "x-medplum-on-behalf-of"


@dataclass(frozen=True, slots=True)
class UserMembership:
    """One of the projects a person may work in.

    Attributes:
        id: of the ProjectMembership.
        project: id of the Project; `project_name` its name.
        profile: reference of the person's profile there; `profile_display` its name.
        is_admin: may administer the project.
    """

    id: str
    project: str
    project_name: str
    profile: str
    profile_display: str | None
    is_admin: bool


@dataclass(frozen=True, slots=True)
class _Credential:
    """What an ``Authorization`` header stands for, until `expires` (seconds since 1970)."""

    identity: Identity
    expires: float


class _Cache:
    """Identities by membership and credentials by digest of their header.

    What was loaded while a notice arrived may be stale already, so it is not kept: `generation` tells.
    """

    def __init__(self) -> None:
        self.generation = 0
        self.memberships: dict[str, Identity] = {}
        self.credentials: dict[bytes, _Credential] = {}

    def forget(self, project: str) -> None:
        """Forget everything about a project."""
        self.generation += 1
        for key, identity in list(self.memberships.items()):
            if identity.project == project:
                self.memberships.pop(key, None)
        for digest, credential in list(self.credentials.items()):
            if credential.identity.project == project:
                self.credentials.pop(digest, None)

    def clear(self) -> None:
        """Forget everything."""
        self.generation += 1
        self.memberships.clear()
        self.credentials.clear()


_cache = _Cache()


def listen() -> None:
    """Follow the notices of other processes; called once at start-up."""
    notices.listen(CHANNEL, _cache.forget, _cache.clear)


def invalidate(project: str) -> None:
    """Make every process forget the identities of a project once the current transaction is committed."""
    notices.notify(CHANNEL, project)
    database.on_commit(lambda: _cache.forget(project))


# --- from credentials ------------------------------------------------------------------------------------------------


def authenticate(authorization: str, headers: Mapping[str, str], address: str = "") -> Identity:
    """Return who sends a request.

    Args:
        authorization: the ``Authorization`` header: ``Bearer`` with an access token, or ``Basic`` with the id and the
            secret of a ClientApplication.
        headers: by lower-case name; ``X-Medplum-On-Behalf-Of`` lets an admin act as another member.
        address: where the request comes from.

    Raises:
        FhirError: 401 for anything that is no valid credential, 403 for acting on behalf of others without being admin
            and from an address the AccessPolicy does not allow, 429 after too many wrong secrets.
    """
    digest = hashlib.sha256(authorization.encode()).digest()
    credential = _cache.credentials.get(digest)
    if credential is None or credential.expires <= time.time():
        generation = _cache.generation
        credential = _authenticate(authorization, address)
        if generation == _cache.generation:
            if len(_cache.credentials) >= CAPACITY:
                _cache.credentials.clear()
            _cache.credentials[digest] = credential
    identity = credential.identity
    check_address(identity, address)
    if target := headers.get(ON_BEHALF_OF):
        identity = _on_behalf_of(identity, target)
        check_address(identity, address)
    return identity


def check_address(identity: Identity, address: str) -> None:
    """Ask the IP rules of the identity's AccessPolicy.

    Raises:
        FhirError: 403, it may not be used from there.
    """
    if identity.policy is not None and not identity.policy.allows_address(address):
        raise forbidden("IP address not allowed")


def _authenticate(authorization: str, address: str) -> _Credential:
    scheme, _, rest = authorization.partition(" ")
    match scheme.lower():
        case "bearer":
            return _bearer(rest.strip())
        case "basic":
            return _basic(rest.strip(), address)
    raise unauthorized()


def _bearer(token: str) -> _Credential:
    claims = keys.verify(token)
    now = time.time()
    if claims is None or claims.get("iss") != settings.BASE_URL or claims.get("aud") != settings.BASE_URL:
        raise unauthorized()
    expires = claims.get("exp", 0)
    if expires <= now:
        raise unauthorized(diagnostics="Token expired")
    identity = identity_of_login(str(claims.get("login_id")))
    return _Credential(identity, expires)


def identity_of_login(login_id: str) -> Identity:
    """Return who has logged in, with the access of today.

    Raises:
        FhirError: 401 when the login was revoked or its user may not log in any more.
    """
    logins = models.Login.objects.select_related("user").filter(revoked=None)
    login = logins.filter(id=login_id).first() if is_uuid(login_id) else None
    if login is None or (login.user and not login.user.is_active):
        raise unauthorized(diagnostics="Login revoked")
    scopes = parse_scopes(login.scope)
    identity = identity_of_membership(str(login.membership))
    return replace(
        identity,
        login=str(login.id),
        client=login.client or None,
        scopes=scopes,
        # What admins do reaches beyond what a scope can say.
        is_admin=identity.is_admin and scopes is None,
    )


def _basic(encoded: str, address: str) -> _Credential:
    try:
        client_id, _, secret = base64.b64decode(encoded, validate=True).decode().partition(":")
    except (binascii.Error, ValueError):
        raise unauthorized() from None
    throttle.check(client_id, address)
    project = project_of_client(client_id, secret)
    membership = project and membership_of_profile(project, f"ClientApplication/{client_id}")
    if not membership:
        throttle.failed(client_id, address)
        raise unauthorized()
    identity = replace(identity_of_membership(membership), client=client_id)
    # Basic credentials have no end of their own; asking again every hour bounds what a lost notice could do.
    return _Credential(identity, time.time() + 3600)


def project_of_client(client_id: str, secret: str) -> str | None:
    """Return the project of a ClientApplication if the secret is one of its secrets, else None."""
    credential = (
        models.ClientCredential.objects.filter(client=client_id).first() if is_uuid(client_id) else None
    )
    found = keys.is_digest_of(credential.digest if credential else None, secret)
    found |= keys.is_digest_of(credential.retiring_digest if credential else None, secret)
    return str(credential.project) if credential and found else None


def membership_of_profile(project: str, profile: str) -> str | None:
    """Return the id of the active ProjectMembership of a profile (``Type/id``) in a project."""
    row = models.Membership.objects.filter(project=project, profile=profile, active=True).first()
    return str(row.id) if row else None


def _on_behalf_of(identity: Identity, target: str) -> Identity:
    if not identity.is_admin:
        raise forbidden()
    membership: str | None = target.removeprefix("ProjectMembership/")
    if membership == target:
        membership = membership_of_profile(identity.project, target)
    try:
        acting = identity_of_membership(membership or "")
    except FhirError:
        acting = None
    if acting is None or acting.project != identity.project:
        raise bad_request("X-Medplum-On-Behalf-Of names no member of this project")
    return replace(
        acting,
        profile=identity.profile,
        profile_display=identity.profile_display,
        login=identity.login,
        client=identity.client,
        scopes=identity.scopes,
        is_admin=acting.is_admin and identity.scopes is None,
        on_behalf_of=acting.profile,
    )


# --- from memberships ------------------------------------------------------------------------------------------------


def identity_of_membership(membership_id: str) -> Identity:
    """Return the identity of a ProjectMembership.

    Raises:
        FhirError: 401 if there is no such membership, or it or its project is not active.
    """
    cached = _cache.memberships.get(membership_id)
    if cached is not None:
        return cached
    generation = _cache.generation
    identity = _load_identity(membership_id)
    # What a transaction has not committed yet may never be.
    if generation == _cache.generation and not database.in_transaction():
        _cache.memberships[membership_id] = identity
    return identity


def memberships_of_user(user: models.User) -> list[UserMembership]:
    """Return the projects a person may work in, in the order of their names; inactive ones are left out.

    A password that the admin of a project has given opens that project alone: he may know it, and have chosen the address.
    """
    found = []
    rows = models.Membership.objects.filter(user=f"User/{user.id}", active=True)
    for row in rows.filter(project=user.password_project) if user.password_project else rows:
        repository = Repository(system_identity(str(row.project)))
        project = repository.read("Project", str(row.project)).resource
        membership = repository.read("ProjectMembership", str(row.id)).resource
        if project.get("active") is False:
            continue
        found.append(
            UserMembership(
                id=str(row.id),
                project=str(row.project),
                project_name=project.get("name", ""),
                profile=row.profile,
                profile_display=membership["profile"].get("display"),
                is_admin=membership.get("admin", False),
            )
        )
    return sorted(found, key=lambda each: (each.project_name, each.id))


def _load_identity(membership_id: str) -> Identity:
    row = (
        models.Membership.objects.filter(id=membership_id, active=True).first()
        if is_uuid(membership_id)
        else None
    )
    if row is None:
        raise unauthorized()
    repository = Repository(system_identity(str(row.project)))
    membership = repository.read("ProjectMembership", membership_id).resource
    project = repository.read("Project", str(row.project)).resource
    if project.get("active") is False or not _is_profile_active(repository, row.profile):
        raise unauthorized()
    return Identity(
        project=str(row.project),
        profile=row.profile,
        profile_display=membership["profile"].get("display"),
        membership=membership_id,
        is_admin=membership.get("admin", False),
        policy=_policy(repository, membership),
        features=frozenset(project.get("features", ())),
        check_references=project.get("checkReferencesOnWrite", False),
        default_profiles=tuple(
            (each["resourceType"], tuple(each["profile"])) for each in project.get("defaultProfile", ())
        ),
        lenient=project.get("strictMode") is False,
    )


def _is_profile_active(repository: Repository, profile: str) -> bool:
    """False for a ClientApplication whose status is not ``active``: it may not log in."""
    if not profile.startswith("ClientApplication/"):
        return True
    return bool(repository.read_reference(profile).resource.get("status", "active") == "active")


def _policy(repository: Repository, membership: Mapping[str, Any]) -> Policy | None:
    """Compile ``accessPolicy`` and every entry of ``access`` into one policy; None if the membership has neither.

    A policy that is not there (any more) grants nothing.
    """
    policies = []
    for access in access_entries(membership):
        try:
            resource = repository.read_reference(access["policy"]["reference"]).resource
        except FhirError:
            resource = {}
        policies.append(Policy.compile(resource, _variables(membership, access)))
    return Policy.join(policies) if policies else None


def access_entries(membership: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The entries of ``ProjectMembership.access``, with ``accessPolicy`` in front as one without parameters."""
    policy = membership.get("accessPolicy")
    return [*([{"policy": policy}] if policy else ()), *membership.get("access", ())]


def _variables(membership: Mapping[str, Any], access: Mapping[str, Any]) -> dict[str, str]:
    """The values of ``%name`` in a policy: ``profile``, ``patient`` of a Patient, and the entry's parameters."""
    profile = membership["profile"].get("reference", "")
    variables = {"profile": profile}
    if profile.startswith("Patient/"):
        variables["patient"] = profile
    for parameter in access.get("parameter", ()):
        value = parameter.get("valueReference", {}).get("reference") or parameter.get("valueString")
        if value:
            variables[parameter["name"]] = value
    return variables


def is_uuid(text: str) -> bool:
    """True for the text of a UUID in its usual form."""
    try:
        return str(uuid.UUID(text)) == text.lower()
    except ValueError:
        return False
