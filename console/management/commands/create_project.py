"""``manage.py create_project NAME --admin EMAIL``: a further project, for example for staging."""

from __future__ import annotations

import os
import secrets
from argparse import ArgumentParser
from typing import Any

from django.conf import settings
from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError
from django.core.validators import validate_email

from fhirstore.api import project_create


class Command(BaseCommand):
    """Make a project and its admin."""

    help = (
        "Make a project with an admin. A new admin gets the password in FHIRBOTS_ADMIN_PASSWORD, or a random one that is "
        "printed; somebody who has an account keeps his own."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("name", help="name of the project")
        parser.add_argument("--admin", required=True, metavar="EMAIL", help="email address of its admin")

    def handle(self, *args: Any, name: str, admin: str, **options: Any) -> None:
        """Run the command."""
        given = os.environ.get("FHIRBOTS_ADMIN_PASSWORD")
        password = given or secrets.token_urlsafe(12)
        try:
            validate_email(admin)
            made = project_create(name, admin, password)
        except ValidationError:
            raise CommandError(f"{admin} is not an email address.") from None
        except ValueError as error:
            raise CommandError(str(error)) from None
        self.stdout.write(f"Project {name}: {made.project}")
        if made.created and not given:
            self.stdout.write(f"Sign in at {settings.BASE_URL} as {admin} with the password {password}")
