"""Passwords of people: checking them, and setting new ones.

A new password is set with a link that Django's token generator makes: it works once, for ``PASSWORD_RESET_TIMEOUT`` seconds,
and ends with the old password.
"""

from __future__ import annotations

import logging
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from django.conf import settings
from django.contrib.auth import authenticate
from django.contrib.auth.password_validation import validate_password
from django.contrib.auth.tokens import default_token_generator
from django.core.mail import send_mail
from django.db import transaction
from django.http import HttpRequest
from django.utils import timezone

from fhirstore import models
from fhirstore.auth import identities, throttle

logger = logging.getLogger(__name__)


def password_check(request: HttpRequest, email: str, password: str) -> models.User | None:
    """The user of an email address and password, None if they don't belong together; both cost the same time.

    Raises:
        FhirError: 429 after too many failures.
    """
    address = request.META.get("REMOTE_ADDR", "")
    throttle.check(email, address)
    user = authenticate(request, username=email.strip().lower(), password=password)
    if not isinstance(user, models.User):
        throttle.failed(email, address)
        return None
    throttle.succeeded(email, address)
    return user


def password_link(user: models.User) -> str:
    """The address of the page where a person chooses a new password; good for ``PASSWORD_RESET_TIMEOUT`` seconds, once."""
    return f"{settings.BASE_URL}setpassword/{user.id}/{default_token_generator.make_token(user)}"


def password_link_user(user_id: str, secret: str) -> models.User | None:
    """Whose password a link changes; None if it is used up, too old or made up."""
    user = (
        models.User.objects.filter(id=user_id, is_active=True).first()
        if identities.is_uuid(user_id)
        else None
    )
    return user if default_token_generator.check_token(user, secret) else None


def password_set(user: models.User, password: str, *, project: uuid.UUID | str | None = None) -> None:
    """Give a person a new password and end all his logins, for whoever knew the old one may hold tokens.

    Args:
        user: the person.
        password: the new one.
        project: whose admin gives it. It opens no other project: only a mailed link shows that the address is the person's.

    Raises:
        ValidationError: the password is too weak.
    """
    validate_password(password, user)
    with transaction.atomic():
        user.set_password(password)
        user.password_project = uuid.UUID(str(project)) if project else None
        user.save(update_fields=["password", "password_project"])
        logins_end(user)


def logins_end(user: models.User) -> None:
    """Revoke every login of a person."""
    logins = models.Login.objects.filter(user=user, revoked=None)
    projects = {str(project) for project in logins.values_list("project", flat=True)}
    logins.update(revoked=timezone.now())
    for project in projects:
        identities.invalidate(project)


def password_mail(user: models.User, *, invited_to: str | None = None) -> None:
    """Send a person the link to set his password; `invited_to` is the name of the project he was invited to."""
    if invited_to is None:
        subject, first = "Set a new password", "Somebody, probably you, asked for a new password."
    else:
        subject, first = f"Welcome to {invited_to}", f"You have been invited to {invited_to}."
    days = max(1, settings.PASSWORD_RESET_TIMEOUT // 86400)
    text = f"{first} Choose your password here within {days} days:\n\n{password_link(user)}\n"
    send_mail(" ".join(subject.split()), text, None, [user.email])


post_office: Final = ThreadPoolExecutor(1, "mail")
"""Sends what nobody may wait for: the time it takes, and whether it fails, would tell who has an account."""


def password_forgotten(request: HttpRequest, email: str) -> None:
    """Mail the link if there is such a person, in the background. Whether a mail server takes it, only the log says.

    Raises:
        FhirError: 429 when asked too often.
    """
    address, subject = request.META.get("REMOTE_ADDR", ""), f"mail {email}"
    throttle.check(subject, address)
    throttle.failed(subject, address)  # every mail counts
    user = models.User.objects.filter(email=email.strip().lower(), is_active=True).first()
    if user is not None:
        post_office.submit(_mail_or_log, user)


def _mail_or_log(user: models.User) -> None:
    try:
        password_mail(user)
    except OSError as error:  # smtplib's errors are OSErrors too
        logger.warning("A link to set a password could not be sent: %s", type(error).__name__)
