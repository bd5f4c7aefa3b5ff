"""``manage.py rotate_keys``: put everything that is encrypted under the present SECRET_KEY."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError

from fhirstore import secrets
from fhirstore.auth import keys


class Command(BaseCommand):
    """Run it after SECRET_KEY has changed, while SECRET_KEY_FALLBACKS still has the former one; then that can go."""

    help = "Encrypt the secrets of Projects and Bots, and the signing keys, anew with the present SECRET_KEY."

    def handle(self, *args: Any, **options: Any) -> None:
        """Encrypt; ends with exit code 1 when there are values that no key opens."""
        signing, lost_signing = keys.rotate()
        count, lost = secrets.rotate()
        self.stdout.write(
            f"{count - lost} secrets and {signing - lost_signing} signing keys are under the present key."
        )
        if lost or lost_signing:
            raise CommandError(
                f"{lost} secrets and {lost_signing} signing keys were encrypted with a key that is in neither SECRET_KEY nor "
                "SECRET_KEY_FALLBACKS: they stay as they are."
            )
