"""Secrets and environment variables that only one Bot is given: least privilege, where ``Project.secret`` is for all of them."""

from __future__ import annotations

import re
from typing import Any, Literal

from bots.context import changed
from fhirstore.api import (
    Repository,
    bad_request,
    forbidden,
    secret_masked,
    secrets_of_project,
    secrets_replace,
    transaction,
)

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def secrets_shown(
    repository: Repository, bot_id: str, kind: Literal["secret", "env"]
) -> list[dict[str, Any]]:
    """Return a Bot's secrets with masked values, or its environment variables; raises FhirError (403, 404)."""
    _check(repository, bot_id)
    found = secrets_of_project(repository.identity.project).get((f"Bot/{bot_id}", kind), {})
    return [item if kind == "env" else secret_masked(item) for item in found.values()]


def secrets_set(repository: Repository, bot_id: str, kind: Literal["secret", "env"], items: Any) -> None:
    """Replace a Bot's secrets or environment variables; the next run has them.

    Args:
        repository: of a project admin.
        items: list of ``{name, valueString …}``; variables have ``valueString`` only.

    Raises FhirError: 400 for an item that is none, 403, 404.
    """
    _check(repository, bot_id)
    if not isinstance(items, list):
        raise bad_request("Send an array of objects with name and valueString")
    if kind == "env":
        for item in items:
            if not isinstance(item, dict) or not isinstance(item.get("valueString"), str):
                raise bad_request("Every variable needs a name and a valueString")
            if not _VARIABLE.fullmatch(str(item.get("name"))):
                raise bad_request("The name of a variable has letters, digits and underscores")
    with transaction():
        secrets_replace(repository.identity.project, f"Bot/{bot_id}", kind, items)
        changed(repository.identity.project)


def _check(repository: Repository, bot_id: str) -> None:
    if not repository.identity.is_admin:
        raise forbidden()
    repository.read("Bot", bot_id)
