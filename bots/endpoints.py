"""What a Subscription sends to others than Bots: requests to a URL, and e-mail (subscriptions-and-cron.md §4, §8).

A request goes out under the rules of :mod:`bots.egress`: any public host, no private address unless the operator opens it. Each
attempt leaves an AuditEvent. Bots get the same headers (:func:`headers`).
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from django.conf import settings
from django.core.mail import EmailMessage

from bots.audit import TRACING, instant
from bots.egress import Deadline, EgressError, Policy, exchange
from bots.sandbox.api import HostRequest
from bots.subscriptions import ATTEMPTS_URL, DESTINATION_URL, SUCCESS_URL, parse_codes
from fhirstore.api import log_failure

Json = dict[str, Any]

DEFAULT_ATTEMPTS: Final = 4
"""Attempts of a delivery, to Bots as well; ``Project.setting`` ``subscriptionMaxAttempts`` and the Subscription can say otherwise."""
ATTEMPTS_SETTING: Final = "subscriptionMaxAttempts"
TIMEOUT: Final = 120.0
"""Seconds an endpoint has for its answer."""
SUCCESS: Final[tuple[range, ...]] = (range(200, 400),)

SECRET_URLS: Final = frozenset(
    {
        "https://www.medplum.com/fhir/StructureDefinition/subscription-secret",
        "https://www.medplum.com/fhir/StructureDefinition-subscriptionSecret",
    }
)
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(r"[\t\x20-\x7e]*")
_ANYBODY: Final = Policy(None)


@dataclass(frozen=True, slots=True)
class Event:
    """What is delivered, as far as headers and AuditEvent tell of it.

    Attributes:
        delivery_id, attempt: name the delivery, the same in each attempt, and count those: what receivers can tell doubles by.
        resource: ``Type/id``.
        changed: when it happened.
    """

    delivery_id: int
    attempt: int
    subscription_id: str
    interaction: str
    resource: str
    version_id: str
    trace_id: str
    changed: datetime


@dataclass(frozen=True, slots=True)
class Sent:
    """How an attempt went; ``text`` is the AuditEvent's outcomeDesc and holds nothing of the content."""

    ok: bool
    text: str


# --- settings of a Subscription --------------------------------------------------------------------------------------


def max_attempts(subscription: Json, project: Json) -> int:
    """How often a delivery is tried before it counts as failed."""
    for extension in subscription.get("extension") or ():
        if extension.get("url") == ATTEMPTS_URL and isinstance(extension.get("valueInteger"), int):
            return int(extension["valueInteger"])
    for setting in project.get("setting") or ():
        if setting.get("name") == ATTEMPTS_SETTING and isinstance(setting.get("valueInteger"), int):
            return max(1, int(setting["valueInteger"]))
    return DEFAULT_ATTEMPTS


def is_success(subscription: Json, status: int) -> bool:
    """True if an endpoint that answers with this status has taken the event."""
    codes = SUCCESS
    for extension in subscription.get("extension") or ():
        if extension.get("url") == SUCCESS_URL:
            codes = parse_codes(extension.get("valueString")) or SUCCESS
    return any(status in each for each in codes)


def destinations(subscription: Json) -> frozenset[str]:
    """Where the AuditEvents of deliveries to URLs go: ``resource``, ``log`` or both."""
    found = frozenset(
        str(extension.get("valueCode"))
        for extension in subscription.get("extension") or ()
        if extension.get("url") == DESTINATION_URL
    )
    return found or frozenset({"resource"})


def headers(event: Event, subscription: Json, signed: bytes) -> dict[str, str]:
    """The headers of a delivery; those of ``channel.header`` replace ours of the same name.

    Args:
        signed: what ``X-Signature`` is computed over: the body, or the Bot's input.
    """
    found = {
        "Content-Type": "application/fhir+json",
        "X-Medplum-Subscription": event.subscription_id,
        "X-Medplum-Interaction": event.interaction,
        "X-Fhirbots-Delivery": str(event.delivery_id),
        "X-Fhirbots-Attempt": str(event.attempt),
        "x-trace-id": event.trace_id,
    }
    trace = event.trace_id.replace("-", "").lower()
    if re.fullmatch(r"[0-9a-f]{32}", trace) and trace.strip("0"):
        found["traceparent"] = f"00-{trace}-{secrets.token_hex(8)}-01"
    if event.interaction == "delete":
        found["X-Medplum-Deleted-Resource"] = event.resource
    for extension in subscription.get("extension") or ():
        if extension.get("url") in SECRET_URLS and extension.get("valueString"):
            key = extension["valueString"].encode()
            found["X-Signature"] = hmac.new(key, signed, hashlib.sha256).hexdigest()
    for line in subscription["channel"].get("header") or ():
        name, _, value = (part.strip() for part in str(line).partition(":"))
        if _NAME.fullmatch(name) and _VALUE.fullmatch(value):
            found = {each: found[each] for each in found if each.lower() != name.lower()} | {name: value}
    return found


# --- sending ---------------------------------------------------------------------------------------------------------


def post(event: Event, subscription: Json, content: bytes) -> Sent:
    """Send a version (``{}`` for a deletion) to the endpoint's URL; never raises."""
    return _attempted(event, lambda: _post(event, subscription, content))


def _post(event: Event, subscription: Json, content: bytes) -> Sent:
    body = b"{}" if event.interaction == "delete" else content
    lower = {name.lower(): value for name, value in headers(event, subscription, body).items()}
    request = HostRequest("POST", str(subscription["channel"].get("endpoint")), lower, body)
    try:
        with exchange(request, _ANYBODY, Deadline(TIMEOUT)) as answer:
            status = answer.status
    except EgressError as error:
        return Sent(False, f"Attempt {event.attempt} received error {error}")
    return Sent(is_success(subscription, status), f"Attempt {event.attempt} received status {status}")


def mail(event: Event, subscription: Json, content: bytes) -> Sent:
    """Send a notice to the endpoint's address, with the version attached where ``channel.payload`` asks for it; never raises."""
    return _attempted(event, lambda: _mail(event, subscription, content))


def _mail(event: Event, subscription: Json, content: bytes) -> Sent:
    channel = subscription["channel"]
    address = str(channel.get("endpoint")).removeprefix("mailto:").partition("?")[0]
    lines = [str(line).partition(":") for line in channel.get("header") or ()]
    subject = next((value for name, _, value in lines if name.strip().lower() == "subject"), "")
    happened = {"create": "created", "update": "updated", "delete": "deleted"}[event.interaction]
    text = (
        f"{event.resource} was {happened} at {instant(event.changed)}.\n\n"
        f"{settings.BASE_URL}{event.resource}\n\n"
        f"Sent for Subscription/{event.subscription_id}: {subscription.get('reason') or ''}\n"
    )
    message = EmailMessage(
        subject=" ".join((subject or f"{event.resource} was {happened}").split()),
        body=text,
        to=[address],
        headers={"X-Fhirbots-Delivery": str(event.delivery_id)},
    )
    if channel.get("payload") and event.interaction != "delete":
        message.attach(f"{event.resource.replace('/', '-')}.json", content.decode(), "application/fhir+json")
    try:
        message.send()
    except (OSError, ValueError) as error:  # smtplib's errors are OSErrors; a header that is none
        return Sent(False, f"Attempt {event.attempt} received error {type(error).__name__}")
    return Sent(True, f"Attempt {event.attempt} sent the message")


def _attempted(event: Event, send: Callable[[], Sent]) -> Sent:
    """What comes of an attempt: what we did not think of is a failure of it like others, and ends as they do."""
    try:
        return send()
    except Exception as error:  # noqa: BLE001  a Subscription from before a rule, a library that raises more than it says
        log_failure(f"delivery {event.delivery_id}", error)
        return Sent(
            False,
            f"Attempt {event.attempt} failed by a fault of the server ({type(error).__name__}), whose log tells more",
        )


# --- the AuditEvent --------------------------------------------------------------------------------------------------


def audit_event(event: Event, subscription: Json, outcome: str, text: str) -> Json:
    """The AuditEvent of an attempt, or (outcome ``8``) of a Subscription that was switched off."""
    ended = instant(datetime.now(UTC))
    made: Json = {
        "resourceType": "AuditEvent",
        "type": {"system": "https://medplum.com/CodeSystem/audit-event", "code": "transmit"},
        "period": {"start": instant(event.changed), "end": ended},
        "recorded": ended,
        "outcome": outcome,
        "outcomeDesc": text,
        "agent": [{"type": {"text": "Subscription"}, "requestor": False}],
        "source": {"observer": {"reference": f"Subscription/{event.subscription_id}"}},
        "entity": [
            _entity(event.resource, "1" if event.resource.startswith("Patient/") else "4")
            | {
                "detail": [
                    {"type": "versionId", "valueString": event.version_id},
                    {"type": "interaction", "valueString": event.interaction},
                ]
            },
            _entity(f"Subscription/{event.subscription_id}", "9"),
        ],
        "extension": [
            {
                "url": TRACING,
                "extension": [{"url": name, "valueId": event.trace_id} for name in ("requestId", "traceId")],
            }
        ],
    }
    meta: Mapping[str, Any] = subscription.get("meta") or {}
    if accounts := {name: meta[name] for name in ("account", "accounts") if name in meta}:
        made["meta"] = accounts
    return made


def _entity(reference: str, code: str) -> Json:
    display = {"1": "Patient", "4": "Domain", "9": "Subscriber"}[code]
    return {"what": {"reference": reference}, "role": {"code": code, "display": display}}
