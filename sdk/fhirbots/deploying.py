"""Saving and deploying Bots by the API, in the requests that ``@medplum/cli`` sends; and the wheels of a project."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import quote

from fhirbots.errors import OperationOutcomeError
from fhirbots.sync_client import SyncMedplumClient

CONTENT_TYPES = {
    ".py": "text/x-python",
    ".ts": "text/typescript",
    ".mts": "text/typescript",
    ".cts": "text/typescript",
    ".js": "text/javascript",
    ".mjs": "text/javascript",
    ".cjs": "text/javascript",
}


def create_bot(
    medplum: SyncMedplumClient, project: str, name: str, runtime_version: str | None = None
) -> dict[str, Any]:
    """Create a Bot with its membership; the caller must be an admin of the project."""
    body = {"name": name, "description": ""} | (
        {"runtimeVersion": runtime_version} if runtime_version else {}
    )
    bot: dict[str, Any] = medplum.post(f"admin/projects/{project}/bot", body, "application/json")
    return bot


def save_bot(medplum: SyncMedplumClient, bot_id: str, source: Path) -> dict[str, Any]:
    """Save a file as the source code of a Bot; returns the Bot."""
    bot = medplum.read_resource("Bot", bot_id)
    content_type = CONTENT_TYPES.get(source.suffix.lower(), "text/plain")
    attachment = medplum.create_attachment(
        source.read_bytes(), source.name, content_type, security_context={"reference": f"Bot/{bot_id}"}
    )
    return medplum.update_resource(bot | {"sourceCode": attachment})


def deploy_bot(medplum: SyncMedplumClient, bot_id: str, code: Path) -> dict[str, Any]:
    """Deploy a file; returns the OperationOutcome, which may hold warnings. Raises the problems of the code."""
    try:
        body = {"code": code.read_text(encoding="utf-8"), "filename": code.name}
    except UnicodeDecodeError:
        raise OperationOutcomeError.of(f"{code} is not UTF-8 text") from None
    outcome: dict[str, Any] = medplum.post(medplum.fhir_url("Bot", bot_id, "$deploy"), body)
    if outcome.get("id") not in ("ok", "created", "not-modified", "accepted"):
        raise OperationOutcomeError(outcome)
    return outcome


def add_wheel(medplum: SyncMedplumClient, project: str, wheel: Path) -> dict[str, Any]:
    """Add a pure-Python wheel to a project; returns ``{name, filename}``. The caller must be an admin of the project."""
    added: dict[str, Any] = medplum.post(
        f"admin/projects/{project}/wheels", wheel.read_bytes(), "application/zip"
    )
    return added


def list_wheels(medplum: SyncMedplumClient, project: str) -> list[dict[str, Any]]:
    """The wheels of a project: ``{name, filename, sha256, added, author}`` of each."""
    found: list[dict[str, Any]] = medplum.get(f"admin/projects/{project}/wheels")
    return found


def remove_wheel(medplum: SyncMedplumClient, project: str, name: str) -> None:
    """Take a wheel off a project's list; Bots that were deployed with it keep it until they are deployed again."""
    medplum.delete(f"admin/projects/{project}/wheels/{quote(name, safe='')}")
