"""Members and clients of a project: what follows from writing their resources, and the services that make them.

ProjectMembership and ClientApplication are ordinary resources. Hooks keep beside them what a login needs: a
`Membership` row per membership, and the digests of a client's secrets, which never enter the resource.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from django.contrib.auth.password_validation import validate_password
from django.core.exceptions import ValidationError
from django.core.validators import validate_email

from fhirstore import database, models
from fhirstore.access import check_policy
from fhirstore.auth import keys
from fhirstore.auth.identities import invalidate
from fhirstore.auth.passwords import password_mail, password_set
from fhirstore.errors import FhirError, bad_request, conflict, forbidden, not_found
from fhirstore.hooks import before_delete, before_write
from fhirstore.identity import system_identity
from fhirstore.repository import Repository, Stored

PROFILE_TYPES = ("Patient", "Practitioner", "RelatedPerson")


# --- what follows from writing a resource -----------------------------------------------------------------------------


def register() -> None:
    """Register the hooks; called once at start-up."""
    before_write(["ProjectMembership"], _project_membership)
    before_delete(["ProjectMembership"], _project_membership_deleted)
    before_write(["ClientApplication"], _client_application)
    before_delete(["ClientApplication"], _client_application_deleted)
    before_write(["AccessPolicy"], check_policy)
    before_write(["AccessPolicy", "Project"], lambda repository, *_: invalidate(repository.identity.project))
    before_delete(["AccessPolicy", "Project"], lambda repository, _: invalidate(repository.identity.project))


def _project_membership(
    repository: Repository, resource: dict[str, Any], previous: dict[str, Any] | None
) -> None:
    """Keep the `Membership` row of a ProjectMembership, which is always one of the project it is written in."""
    project = repository.identity.project
    if _reference(resource, "project") != f"Project/{project}":
        raise bad_request("A ProjectMembership belongs to its own project", "ProjectMembership.project")
    row = [
        resource["id"],
        project,
        _reference(resource, "user"),
        _reference(resource, "profile"),
        resource.get("active") is not False,
    ]
    with database.connection() as connection:
        connection.execute(
            'INSERT INTO fhirstore_membership AS m (id, project, "user", profile, active) VALUES (%s, %s, %s, %s, %s)'
            ' ON CONFLICT (id) DO UPDATE SET "user" = excluded."user", profile = excluded.profile,'
            " active = excluded.active WHERE m.project = excluded.project",
            row,
        )
    invalidate(project)


def _project_membership_deleted(repository: Repository, previous: dict[str, Any]) -> None:
    with database.connection() as connection:
        connection.execute("DELETE FROM fhirstore_membership WHERE id = %s", [previous["id"]])
    invalidate(repository.identity.project)


def _client_application(
    repository: Repository, resource: dict[str, Any], previous: dict[str, Any] | None
) -> None:
    """Take the secrets out of a ClientApplication and keep their digests; a secret that is absent stays as it was."""
    _check_trusted(repository, resource, previous or {})
    secret, retiring = resource.pop("secret", None), resource.pop("retiringSecret", None)
    for value in (secret, retiring):
        if value is None:
            continue
        if not repository.identity.is_admin:
            raise forbidden("Only a project admin may set the secret of a client")
        if not isinstance(value, str) or not value:
            raise bad_request("A client secret is a text", "ClientApplication.secret")
    store_secrets(repository, resource["id"], secret=secret, retiring=retiring)


TRUSTED: Final = ("redirectUri", "redirectUris", "pkceOptional", "grantType")
"""Elements of a ClientApplication that decide who gets the codes and tokens of the people who sign in through it."""


def _check_trusted(repository: Repository, resource: Mapping[str, Any], previous: Mapping[str, Any]) -> None:
    """Leave :data:`TRUSTED` to admins: authorization asks nobody for consent, so whoever chose the address could be anybody."""
    if repository.identity.is_admin:
        return
    for name in TRUSTED:
        if resource.get(name) != previous.get(name):
            raise forbidden(f"Only a project admin may change {name} of a client")


def store_secrets(
    repository: Repository, client_id: str, *, secret: str | None = None, retiring: str | None = None
) -> None:
    """Keep the digests of a client's secrets in the current transaction; None leaves a secret as it is."""
    with database.connection() as connection:
        connection.execute(
            "INSERT INTO fhirstore_clientcredential AS c (client, project, digest, retiring_digest)"
            " VALUES (%s, %s, %s, %s) ON CONFLICT (client) DO UPDATE SET"
            " digest = coalesce(excluded.digest, c.digest),"
            " retiring_digest = coalesce(excluded.retiring_digest, c.retiring_digest)"
            " WHERE c.project = excluded.project",
            [
                client_id,
                repository.identity.project,
                secret and keys.digest(secret),
                retiring and keys.digest(retiring),
            ],
        )
    invalidate(repository.identity.project)


def _client_application_deleted(repository: Repository, previous: dict[str, Any]) -> None:
    with database.connection() as connection:
        connection.execute("DELETE FROM fhirstore_clientcredential WHERE client = %s", [previous["id"]])
    invalidate(repository.identity.project)


def _reference(resource: Mapping[str, Any], element: str) -> str:
    value = resource.get(element)
    reference = value.get("reference") if isinstance(value, dict) else None
    if not isinstance(reference, str) or not reference:
        raise bad_request("Missing required property", f"ProjectMembership.{element}")
    return reference


# --- services ---------------------------------------------------------------------------------------------------------


def require_admin(repository: Repository) -> None:
    """Raise FhirError (403) unless the caller administers the project, and not with a token that SMART scopes limit."""
    if not repository.identity.is_admin or repository.identity.scopes is not None:
        raise forbidden()


def as_server(repository: Repository) -> Repository:
    """The same author in the same project, without access rules: for what a service has decided to allow."""
    identity = replace(repository.identity, system=True)
    return Repository(identity, trace_id=repository.trace_id, depth=repository.depth)


FEATURES = frozenset(
    {"bots", "cron", "email", "websocket-subscriptions", "graphql-introspection", "transaction-bundles"}
)
"""Features a project admin switches himself; nobody outside the project is touched by them."""


def project_update(
    repository: Repository, resource: dict[str, Any], *, if_match: str | None = None
) -> Stored:
    """Update the caller's Project, :data:`FEATURES` included, which an ordinary write leaves as they are.

    Raises:
        FhirError: 403 unless the caller is admin, or for a feature he may not switch; 412 for another version.
    """
    require_admin(repository)
    with repository.transaction():
        stored, _ = repository.update(resource, if_match=if_match)
        wanted, present = resource.get("features") or [], stored.resource.get("features") or []
        if set(wanted) == set(present):
            return stored
        if refused := (set(wanted) ^ set(present)) - FEATURES:
            raise forbidden(f"A project admin cannot switch {', '.join(sorted(refused))}")
        changed = {**stored.resource, "features": list(wanted)}
        if not wanted:
            del changed["features"]
        return as_server(repository).update(changed)[0]


def membership_create(
    repository: Repository,
    *,
    user: Mapping[str, Any],
    profile: Mapping[str, Any],
    id: str | None = None,
    **elements: Any,
) -> Stored:
    """Make a ProjectMembership in the caller's project.

    Args:
        repository: of a project admin.
        user, profile: References, with ``display``.
        id: only for the server itself.
        elements: further elements of the resource (``accessPolicy``, ``access``, ``admin``); None is left out. Without
            a policy a member who is no admin gets the one the Project has for such profiles, if it has one.
    """
    resource = {
        "resourceType": "ProjectMembership",
        "project": {"reference": f"Project/{repository.identity.project}"},
        "user": dict(user),
        "profile": dict(profile),
        **{name: value for name, value in elements.items() if value is not None},
    }
    if not resource.keys() & {"accessPolicy", "access"} and not resource.get("admin"):
        policy = _default_policy(repository, str(profile.get("reference")).partition("/")[0])
        resource |= {"accessPolicy": policy} if policy else {}
    return as_server(repository).create(resource, id=id)


def _default_policy(repository: Repository, profile_type: str) -> dict[str, Any] | None:
    """The AccessPolicy (a Reference) that new members with profiles of a type get in this project."""
    try:
        project = as_server(repository).read("Project", repository.identity.project).resource
    except FhirError:
        return None  # bootstrap makes the first members before the project has settings
    for each in project.get("defaultAccessPolicies", ()):
        if each["profileType"] == profile_type:
            return dict(each["accessPolicy"])
    return project.get("defaultPatientAccessPolicy") if profile_type == "Patient" else None


def client_create(
    repository: Repository,
    *,
    name: str,
    secret: str | None = None,
    id: str | None = None,
    membership: Mapping[str, Any] | None = None,
    **elements: Any,
) -> dict[str, Any]:
    """Make a ClientApplication that can log in, with its ProjectMembership.

    Args:
        repository: of a project admin.
        name: of the client.
        secret: None makes a random one.
        id: only for the server itself.
        membership: ``accessPolicy``, ``access`` and ``admin`` of the ProjectMembership.
        elements: further elements of the ClientApplication (``description``, ``redirectUris``).

    Returns:
        the ClientApplication with ``secret``: this answer is the only one that ever shows it.

    Raises:
        FhirError: 403 unless the caller is admin, 400 without a name.
    """
    require_admin(repository)
    if not name.strip():
        raise bad_request("Client name is required", "name")
    secret = secret or keys.new_secret()
    resource = {
        "resourceType": "ClientApplication",
        "name": name.strip(),
        "secret": secret,
        **{element: value for element, value in elements.items() if value is not None},
    }
    with repository.transaction():
        stored = repository.create(resource, id=id)
        reference = {"reference": f"ClientApplication/{stored.id}", "display": name.strip()}
        membership_create(repository, user=reference, profile=reference, **(membership or {}))
    return {**stored.resource, "secret": secret}


def client_rotate_secret(
    repository: Repository, client_id: str, *, secret: str | None = None, retiring_secret: str | None = None
) -> dict[str, Any]:
    """Change the secret of a client in two steps: first the current one is retired, then the retired one removed.

    Args:
        repository: of a project admin.
        client_id: of the ClientApplication.
        secret: the current secret; it becomes the retiring one and a new one is made.
        retiring_secret: the retiring secret, which is removed. Exactly one of the two is needed.

    Returns:
        the ClientApplication, with the new ``secret`` after the first step.

    Raises:
        FhirError: 403 unless the caller is admin, 404 for an unknown client, 400 for a secret that is not its own.
    """
    require_admin(repository)
    if (secret is None) == (retiring_secret is None):
        raise bad_request("Exactly one of secret and retiringSecret is required")
    with repository.transaction():
        resource = repository.read("ClientApplication", client_id).resource
        row = models.ClientCredential.objects.filter(client=client_id).first()
        if row is None:
            raise bad_request("The client has no secret")
        if secret is not None:
            if not keys.is_digest_of(row.digest, secret):
                raise bad_request("Invalid secret")
            resource["secret"] = keys.new_secret()
            store_secrets(repository, client_id, secret=resource["secret"], retiring=secret)
        else:
            if not keys.is_digest_of(row.retiring_digest, retiring_secret or ""):
                raise bad_request("Invalid retiring secret")
            with database.connection() as connection:
                connection.execute(
                    "UPDATE fhirstore_clientcredential SET retiring_digest = NULL WHERE client = %s",
                    [client_id],
                )
            invalidate(repository.identity.project)
    return resource


INVITED: Final = frozenset(
    {
        "accessPolicy",
        "access",
        "active",
        "admin",
        "extension",
        "externalId",
        "identifier",
        "profile",
        "userConfiguration",
        "userName",
    }
)
"""Elements of a ProjectMembership that an invitation may say; the others are the server's own."""


@dataclass(frozen=True, slots=True)
class Invitation:
    """Who is to become a member, and as what.

    Attributes:
        profile_type: ``Patient``, ``Practitioner`` or ``RelatedPerson``.
        first_name, last_name: of the person.
        email: address to sign in with; None for somebody who signs in elsewhere and has an `external_id`.
        external_id: ``ProjectMembership.externalId``.
        password: first password of a new user; an existing user keeps his own.
        patient: reference to the Patient of a RelatedPerson; without it there has to be one with this `email`.
        membership: elements for the ProjectMembership, of :data:`INVITED`.
        upsert: an existing member is updated instead of refused.
        force_new_membership: an existing member gets another membership.
        send_email: mail him a link to set his password.
    """

    profile_type: str
    first_name: str
    last_name: str
    email: str | None
    external_id: str | None = None
    password: str | None = None
    patient: Mapping[str, Any] | None = None
    membership: Mapping[str, Any] | None = None
    upsert: bool = False
    force_new_membership: bool = False
    send_email: bool = False


def member_invite(repository: Repository, invitation: Invitation) -> Stored:
    """Make a person a member of the caller's project: user, profile and ProjectMembership, as far as they are missing.

    Raises:
        FhirError: 403 unless the caller is admin, 400 for an incomplete invitation, 409 for an existing member unless
            `upsert`.
    """
    require_admin(repository)
    _check(invitation)
    project = repository.identity.project
    elements = {name: value for name, value in (invitation.membership or {}).items() if value is not None}
    display = f"{invitation.first_name} {invitation.last_name}"
    with repository.transaction():
        email = (invitation.email or "").strip().lower()
        database.lock(f"invitation {email or invitation.external_id}")
        user = models.User.objects.filter(email=email).first() if email else None
        user_id = user.id if user else uuid.uuid4()
        existing = _membership(repository, user, invitation)
        if existing is not None and not invitation.force_new_membership:
            if not invitation.upsert:
                raise conflict("User is already a member of this project")
            return repository.update({**existing, **elements})[0]
        profile = elements.pop("profile", None) or _related_person(repository, invitation)
        if profile is None:
            stored = repository.create(_profile(invitation))
            profile = {"reference": f"{stored.type}/{stored.id}", "display": display}
        membership = membership_create(
            repository,
            user={"reference": f"User/{user_id}", "display": display},
            profile=profile,
            **{"externalId": invitation.external_id, **elements},
        )
        if user is None and invitation.email:
            user = models.User.objects.create_user(
                invitation.email,
                invitation.password,
                id=user_id,
                password_project=uuid.UUID(project) if invitation.password else None,
                first_name=invitation.first_name,
                last_name=invitation.last_name,
            )
    if invitation.send_email and user is not None:
        name = (
            Repository(system_identity(project)).read("Project", project).resource.get("name") or "fhirbots"
        )
        _mail(user, "The person is a member now, but the email could not be sent", invited_to=name)
    return membership


def _membership(
    repository: Repository, user: models.User | None, invitation: Invitation
) -> dict[str, Any] | None:
    """The membership the invited person has already."""
    project = repository.identity.project
    if user is not None:
        row = models.Membership.objects.filter(project=project, user=f"User/{user.id}").first()
        return repository.read("ProjectMembership", str(row.id)).resource if row else None
    if invitation.external_id:
        token = _escaped(invitation.external_id)
        found = as_server(repository).search_one("ProjectMembership", [("external-id", token)])
        return found.resource if found else None
    return None


def _escaped(text: str) -> str:
    """A text as the value of a token parameter."""
    return text.replace("\\", "\\\\").replace(",", "\\,").replace("|", "\\|")


def _related_person(repository: Repository, invitation: Invitation) -> dict[str, Any] | None:
    """Reference of the RelatedPerson with the invited address, if the invitation names no Patient to make one for.

    Raises:
        FhirError: 400, there is none, or more than one.
    """
    if invitation.profile_type != "RelatedPerson" or invitation.patient:
        return None
    found = (
        repository.search_up_to(repository.parse("RelatedPerson", [("email", _escaped(invitation.email))]), 2)
        if invitation.email
        else []
    )
    if len(found) != 1:
        raise bad_request(
            "A RelatedPerson needs a patient: name the Patient in patient, or an existing RelatedPerson in"
            " membership.profile, or create a RelatedPerson with this email first",
            "patient",
        )
    display = f"{invitation.first_name} {invitation.last_name}"
    return {"reference": f"RelatedPerson/{found[0].id}", "display": display}


def _mail(user: models.User, otherwise: str, *, invited_to: str | None = None) -> None:
    """Send the link to set a password; raises FhirError (400) that says `otherwise` when the mail server refuses."""
    try:
        password_mail(user, invited_to=invited_to)
    except OSError as error:  # smtplib's errors are OSErrors too
        raise bad_request(f"{otherwise}: the mail server refused it ({type(error).__name__})") from None


def member_reset_password(repository: Repository, membership_id: str) -> None:
    """Mail a member a link to set a new password.

    Raises:
        FhirError: 403 unless the caller is admin, 404 for an unknown member or one who is no person, 400 if the mail
            cannot be sent.
    """
    require_admin(repository)
    membership = repository.read("ProjectMembership", membership_id).resource
    kind, _, user_id = _reference(membership, "user").partition("/")
    user = models.User.objects.filter(id=user_id).first() if kind == "User" else None
    if user is None:
        raise not_found("This member does not sign in with a password")
    _mail(user, "The email could not be sent")


def member_set_password(repository: Repository, email: str, password: str) -> None:
    """Give a member a new password; his logins end.

    Only for people who are members of no other project: there, another admin decides.

    Raises:
        FhirError: 403 unless the caller is admin, or for a member of other projects; 404 for an unknown one; 400 for a
            weak password.
    """
    require_admin(repository)
    user = models.User.objects.filter(email=email.strip().lower()).first()
    projects = (
        set(models.Membership.objects.filter(user=f"User/{user.id}").values_list("project", flat=True))
        if user
        else set()
    )
    if user is None or uuid.UUID(repository.identity.project) not in projects:
        raise not_found("User not found")
    if len(projects) > 1:
        raise forbidden("This person is a member of other projects as well: mail him a link instead")
    try:
        password_set(user, password, project=repository.identity.project)
    except ValidationError as error:
        raise bad_request(" ".join(error.messages), "password") from None


def member_remove(repository: Repository, membership_id: str) -> None:
    """Delete a ProjectMembership.

    Raises:
        FhirError: 403 unless the caller is admin, 404 for an unknown one, 400 for the project's owner.
    """
    require_admin(repository)
    membership = repository.read("ProjectMembership", membership_id).resource
    project = repository.read("Project", repository.identity.project).resource
    owner = (project.get("owner") or {}).get("reference")
    if owner is not None and owner == membership["user"].get("reference"):
        raise bad_request("Cannot delete the owner of the project")
    repository.delete("ProjectMembership", membership_id)


def _check(invitation: Invitation) -> None:
    if invitation.profile_type not in PROFILE_TYPES:
        raise bad_request(f"resourceType must be one of {', '.join(PROFILE_TYPES)}", "resourceType")
    if not invitation.first_name:
        raise bad_request("First name is required", "firstName")
    if not invitation.last_name:
        raise bad_request("Last name is required", "lastName")
    if not invitation.email and not invitation.external_id:
        raise bad_request("Email or externalId is required", "email")
    if invitation.email:
        try:
            validate_email(invitation.email)
        except ValidationError:
            raise bad_request("A valid email is required", "email") from None
    _check_membership(invitation.membership or {})
    if invitation.password is not None:
        try:
            validate_password(invitation.password)
        except ValidationError as error:
            raise bad_request(" ".join(error.messages), "password") from None


def _check_membership(elements: Mapping[str, Any]) -> None:
    if unknown := sorted(elements.keys() - INVITED):
        raise bad_request(f"An invitation cannot set {', '.join(unknown)}", f"membership.{unknown[0]}")
    if elements.get("profile") is not None:
        _reference(elements, "profile")


def _profile(invitation: Invitation) -> dict[str, Any]:
    profile: dict[str, Any] = {
        "resourceType": invitation.profile_type,
        "name": [{"given": [invitation.first_name], "family": invitation.last_name}],
    }
    if invitation.email:
        profile["telecom"] = [{"system": "email", "use": "work", "value": invitation.email}]
    if invitation.patient:
        profile["patient"] = dict(invitation.patient)
    return profile
