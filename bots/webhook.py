"""Addresses outside services can call without a login: ``/webhook/{ProjectMembership.id}`` (shared/medplum/execute.md §9)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from bots.bot import bot_request, bot_run
from bots.context import NO_POLICY, context_for
from bots.request import ExecutionResult
from fhirstore.api import FhirError, Identity, Repository, forbidden, identity_of_membership, not_found


def webhook_run(
    membership_id: str,
    *,
    content_type: str | None,
    body: bytes,
    method: str,
    query: str,
    headers: Mapping[str, str],
    trace_id: str,
) -> ExecutionResult:
    """Run the Bot of a membership for whoever knows its address.

    Args:
        membership_id: of the Bot's ProjectMembership; the Bot acts as that.
        content_type, body, method, query, headers: of the HTTP request.
        trace_id: of the request.

    Raises FhirError: 404 for an unknown membership or Bot, 403 with a sentence for one that is not meant for this, 400 for a
    body that is not what its type says.
    """
    identity = _identity(membership_id)
    # Knowing the address is the permission to run the Bot; what the Bot then may do is its membership's AccessPolicy's affair.
    repository = Repository(replace(identity, policy=None), trace_id=trace_id)
    bot_id = identity.profile.partition("/")[2]
    if context_for(repository, bot_id).bot.get("publicWebhook") is not True:
        raise forbidden("Bot is not configured for public webhook access")
    asked = bot_request(
        repository,
        bot_id,
        content_type=content_type,
        body=body,
        method=method,
        query=query,
        headers=headers,
    )
    return bot_run(replace(asked, trigger="webhook", requester=None, as_caller=True))


def _identity(membership_id: str) -> Identity:
    try:
        identity = identity_of_membership(membership_id)
    except FhirError as error:
        raise error if error.status >= 500 else not_found() from None
    if not identity.profile.startswith("Bot/"):
        raise forbidden("ProjectMembership must be for a Bot resource")
    if identity.policy is None:
        raise forbidden(NO_POLICY)
    return identity
