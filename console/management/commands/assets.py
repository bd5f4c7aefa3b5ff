"""``manage.py assets``: build what is served and what the sandbox runs."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError

from console.assets import AssetsError, build_assets


class Command(BaseCommand):
    """Bring `.assets` and `node_modules` up to date; does nothing when they are."""

    help = "Build the assets: npm packages (by Deno), FHIR definitions, sandbox runtime, static files."
    requires_system_checks: list[str] = []

    def handle(self, *args: Any, **options: Any) -> None:
        """Build; ends with one sentence and exit code 1 when a step fails."""
        try:
            build_assets(self.stdout.write)
        except AssetsError as error:
            raise CommandError(str(error)) from error
