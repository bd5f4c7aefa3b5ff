"""App configuration."""

from django.apps import AppConfig


class ConsoleConfig(AppConfig):
    """The console, and the Celery application that publishes for every process."""

    name = "console"

    def ready(self) -> None:
        """Make `console.celery.app` the application of all shared tasks."""
        from console import celery, tasks  # noqa: F401  settings must be complete first
        from fhirstore.api import on_job

        on_job(tasks.ring_jobs)
