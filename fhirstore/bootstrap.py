"""The first project, its admin and its client: what a fresh installation needs before anybody can log in."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Final

from django.contrib.auth.password_validation import validate_password
from django.core.exceptions import ValidationError

from fhirstore import database, models
from fhirstore.auth import accounts, identities, keys
from fhirstore.identity import system_identity
from fhirstore.repository import Repository

FEATURES: Final = ("bots", "cron", "transaction-bundles", "websocket-subscriptions")


@dataclass(frozen=True, slots=True)
class Bootstrapped:
    """What there is after :func:`bootstrap`.

    Attributes:
        project: id of the Project.
        membership: id of the ProjectMembership of the admin, or of the client where the admin is somebody else; None if
            that one has been removed since.
        client: id of the ClientApplication, None if none was asked for.
        created: the admin was made now; False if he had been there before, his password unchanged.
    """

    project: str
    membership: str | None
    client: str | None
    created: bool


def bootstrap(
    *,
    email: str,
    password: str,
    project_name: str,
    client_id: str | None = None,
    client_secret: str | None = None,
) -> Bootstrapped:
    """Make a Project with an admin and, if an id is given, a ClientApplication with admin rights.

    Running it again changes nothing: the project is known by the user's first membership or by the client; only the
    client's secret is set again, so that it follows the environment.

    Args:
        email, password: of the admin.
        project_name: name of the Project.
        client_id: resource id of the ClientApplication, a UUID.
        client_secret: its secret; None makes a random one that nobody learns.

    Raises:
        ValueError: `client_id` is no UUID, or belongs to another project.
        FhirError: the database is away.
    """
    if client_id is not None and not identities.is_uuid(client_id):
        raise ValueError(f"The client id must be a UUID, not {client_id!r}.")
    with database.transaction():
        database.lock("fhirstore bootstrap")
        user = models.User.objects.filter(email=email.strip().lower()).first()
        client = models.ClientCredential.objects.filter(client=client_id).first() if client_id else None
        memberships = identities.memberships_of_user(user) if user else []
        membership: str | None
        if memberships:
            project, membership = memberships[0].project, memberships[0].id
        elif client is not None:
            project = str(client.project)
            membership = identities.membership_of_profile(project, f"ClientApplication/{client_id}")
        else:
            user_id = user.id if user else uuid.uuid4()
            project, membership = _create_project(project_name, email, str(user_id))
        if client_id is not None:
            _ensure_client(project, client_id, client, client_secret or keys.new_secret())
        created = user is None and not client
        if created:
            # Last, for Django's connection commits at once, before the resources.
            models.User.objects.create_user(
                email, password, id=user_id, first_name="Project", last_name="Admin"
            )
    return Bootstrapped(project, membership, client_id, created)


def project_create(name: str, email: str, password: str | None = None) -> Bootstrapped:
    """Make a further Project, for example for staging, with an admin.

    Args:
        name: of the Project.
        email: of the admin; somebody who has an account keeps his password.
        password: of a new admin; None makes one who has to ask for a link first.

    Raises:
        ValueError: without a name, or for a weak password.
    """
    if not name.strip():
        raise ValueError("A project needs a name.")
    email = email.strip().lower()
    with database.transaction():
        database.lock(f"invitation {email}")
        user = models.User.objects.filter(email=email).first()
        user_id = user.id if user else uuid.uuid4()
        if user is None and password is not None:
            try:
                validate_password(password)
            except ValidationError as error:
                raise ValueError(" ".join(error.messages)) from None
        project, membership = _create_project(name.strip(), email, str(user_id))
        if user is None:
            models.User.objects.create_user(
                email, password, id=user_id, first_name="Project", last_name="Admin"
            )
    return Bootstrapped(project, membership, None, user is None)


def is_bootstrapped() -> bool:
    """True once there is a project with a member."""
    return models.Membership.objects.exists()


def _create_project(name: str, email: str, user_id: str) -> tuple[str, str]:
    """Make Project, Practitioner and admin ProjectMembership; returns the ids of the first and the last."""
    project = str(uuid.uuid4())
    repository = Repository(system_identity(project))
    user = {"reference": f"User/{user_id}", "display": email}
    repository.create(
        {"resourceType": "Project", "name": name, "active": True, "owner": user, "features": list(FEATURES)},
        id=project,
    )
    practitioner = repository.create(
        {
            "resourceType": "Practitioner",
            "name": [{"given": ["Project"], "family": "Admin"}],
            "telecom": [{"system": "email", "value": email}],
        }
    )
    profile = {"reference": f"Practitioner/{practitioner.id}", "display": "Project Admin"}
    membership = accounts.membership_create(repository, user=user, profile=profile, admin=True)
    return project, membership.id


def _ensure_client(project: str, client_id: str, known: models.ClientCredential | None, secret: str) -> None:
    repository = Repository(system_identity(project))
    if known is None:
        accounts.client_create(
            repository, name="Default client", secret=secret, id=client_id, membership={"admin": True}
        )
    elif str(known.project) != project:
        raise ValueError(f"The client {client_id} belongs to another project.")
    elif not keys.is_digest_of(known.digest, secret):
        accounts.store_secrets(repository, client_id, secret=secret)
