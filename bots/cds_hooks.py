"""CDS Hooks: Bots as decision support services (https://cds-hooks.hl7.org/2.0/, shared/medplum/execute.md §10)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from bots.bot import bot_request, bot_run
from bots.context import context_for
from bots.request import ExecutionResult
from fhirstore.api import Repository, not_found

JSON = "application/json"


def cds_services(repository: Repository) -> dict[str, Any]:
    """The discovery document: the services of the Bots the caller may read; raises FhirError."""
    bots = repository.search_all("Bot", [("cds-hook:missing", "false")])
    return {"services": [_service(stored.resource) for stored in bots]}


def cds_service_call(
    repository: Repository, bot_id: str, body: bytes, headers: dict[str, str]
) -> ExecutionResult:
    """Run a service as its caller, with the CDS request as input; raises FhirError: 404 for a Bot that is no service."""
    if "cdsService" not in context_for(repository, bot_id).bot:
        raise not_found()
    asked = bot_request(repository, bot_id, content_type=JSON, body=body, headers=headers)
    return bot_run(replace(asked, as_caller=True))


def _service(bot: dict[str, Any]) -> dict[str, Any]:
    described = bot["cdsService"]
    service = {name: described.get(name) for name in ("hook", "title", "description", "usageRequirements")}
    prefetch = {each["key"]: each["query"] for each in described.get("prefetch") or ()}
    service |= {"id": bot["id"], "prefetch": prefetch or None}
    return {name: value for name, value in service.items() if value is not None}
