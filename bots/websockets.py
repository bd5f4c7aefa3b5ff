"""Subscriptions over WebSocket (shared/medplum/subscriptions-and-cron.md §10): whoever is connected hears of changes at once.

1. A client creates a Subscription with channel type ``websocket``, asks ``$get-ws-binding-token`` for a token, opens
   :data:`PATH` and binds the token to that connection.
2. The dispatcher compares changes with it as with any other Subscription; instead of a Delivery, a notice goes out with its commit.
3. The web process that has the connection reads the version as the one who asked for the token may read it now, and sends it.

Nothing is kept for who is not connected, as in Medplum: what has to arrive needs a Bot or a URL. A client that reconnects makes new
Subscriptions, so old ones would pile up: each has a row that says how long it is awaited, prolonged as long as it is bound, and
:func:`forget_old` erases it afterwards.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final, Protocol, TypeVar

import orjson
from django.conf import settings
from django.db import close_old_connections

from bots.context import project_of
from fhirstore.api import (
    FhirError,
    Identity,
    OperationRequest,
    Outcome,
    Repository,
    bad_request,
    connection,
    forbidden,
    identity_of_login,
    identity_of_membership,
    listen,
    log_failure,
    notify,
    presign_urls,
    register_operation,
    sign,
    system_identity,
    transaction,
    verify,
)

PATH: Final = "/ws/subscriptions-r4"
FEATURE: Final = "websocket-subscriptions"
"""In ``Project.features``."""

EVENTS: Final = "bots_websockets"
"""Channel of what has happened; the payload is an :class:`Event`."""

VALID: Final = timedelta(hours=1)
"""How long a token can be bound, and a Subscription waits to be."""

GRACE: Final = timedelta(minutes=5)
"""How long a Subscription stays after it was last seen bound."""

PROLONG: Final = 60.0
"""Seconds between two times that bound Subscriptions are prolonged."""

SILENCE: Final = 150.0
"""Seconds after which a client that has said nothing is taken for gone (MedplumClient says ``ping`` every 5 s)."""

MAX_CONNECTIONS: Final = 2000
"""Per web process."""

MAX_BOUND: Final = 500
"""Subscriptions of one connection."""

MAX_WAITING: Final = 1000
"""Events that may wait for a slow client before it is disconnected."""

MAX_MESSAGE: Final = 16 * 1024
"""Characters of a message from a client."""

AUDIENCE: Final = "websocket"

Json = dict[str, Any]
T = TypeVar("T")

_threads: Final = ThreadPoolExecutor(4, thread_name_prefix="websockets")
"""What asks the database does it here, so that no connection waits for another's query."""


class Socket(Protocol):
    """An open WebSocket."""

    async def receive(self) -> str | None:
        """The next message; None when the peer has gone."""

    async def send(self, text: str) -> None:
        """Send a message."""


@dataclass(frozen=True, slots=True)
class Event:
    """A change that a Subscription wants to hear about."""

    subscription_id: str
    type: str
    id: str
    version_id: str
    interaction: str


@dataclass(slots=True)
class Grant:
    """A bound token: who hears of a Subscription.

    Attributes:
        login: the login the token was asked for with; None for Basic auth and console sessions.
        membership: of the asker.
        heard: how many events there were.
    """

    project: str
    subscription_id: str
    membership: str
    login: str | None
    heard: int = 0

    def identity(self) -> Identity:
        """Who hears, with the access of today; raises FhirError when that has ended."""
        if FEATURE not in (project_of(self.project).get("features") or ()):
            raise forbidden("WebSocket Subscriptions were switched off")
        return identity_of_login(self.login) if self.login else identity_of_membership(self.membership)


# --- from the FHIR API -----------------------------------------------------------------------------------------------


def register() -> None:
    """Register the operation; called once at start-up."""
    register_operation(
        "$get-ws-binding-token",
        get_binding_token,
        types={"Subscription"},
        instance=True,
        methods=("GET", "POST"),
    )


def get_binding_token(request: OperationRequest) -> Json:
    """``Subscription/{id}/$get-ws-binding-token``: a token for a WebSocket, for the author of the Subscription only."""
    identity = request.repository.identity
    subscription = request.repository.read("Subscription", request.id or "").resource
    if not is_websocket(subscription):
        raise bad_request("Only a Subscription with channel type websocket has a token")
    if FEATURE not in identity.features:
        raise bad_request(
            "WebSocket Subscriptions are not switched on for this project; an admin can do that in its settings"
        )
    author = ((subscription.get("meta") or {}).get("author") or {}).get("reference")
    if identity.membership is None or author != identity.profile:
        raise forbidden("Only the author of a Subscription can listen to it")
    expires = datetime.now(UTC) + VALID
    token = sign(
        {
            "iss": settings.BASE_URL,
            "aud": AUDIENCE,
            "exp": int(expires.timestamp()),
            "project": identity.project,
            "subscription_id": request.id,
            "membership": identity.membership,
            "login_id": identity.login,
        }
    )
    _await(identity.project, request.id or "")
    address = settings.BASE_URL.replace("http", "ws", 1).rstrip("/") + PATH
    return {
        "resourceType": "Parameters",
        "parameter": [
            {"name": "token", "valueString": token},
            {"name": "expiration", "valueDateTime": expires.isoformat(timespec="seconds")},
            {"name": "subscription", "valueString": request.id},
            {"name": "websocket-url", "valueUrl": address},
        ],
    }


def is_websocket(subscription: Json) -> bool:
    """True for a Subscription with channel type ``websocket``."""
    return (subscription.get("channel") or {}).get("type") == "websocket"


def await_on_create(repository: Repository, subscription: Json, previous: Json | None) -> None:
    """Hook before a Subscription is written: a new one for WebSockets is there as long as somebody awaits it."""
    if is_websocket(subscription):
        if not settings.WEBSOCKETS:
            repository.warn("Nothing is delivered: this server speaks no WebSocket (FHIRBOTS_WEBSOCKETS)")
        elif FEATURE not in repository.identity.features and not repository.identity.system:
            repository.warn(
                "Nothing is delivered: WebSocket Subscriptions are not switched on for this project"
            )
        if previous is None:
            _await(repository.identity.project, subscription["id"])


def announce(event: Event) -> None:
    """Tell the web processes, with the commit of the current transaction."""
    notify(EVENTS, orjson.dumps(event).decode())


# --- how long they stay ----------------------------------------------------------------------------------------------

_AWAIT = """
INSERT INTO bots_awaitedsubscription (project, subscription_id, until) VALUES (%s, %s, clock_timestamp() + %s)
ON CONFLICT (subscription_id) DO UPDATE SET until = excluded.until
"""
_PROLONG = """
UPDATE bots_awaitedsubscription SET until = clock_timestamp() + %s WHERE subscription_id = ANY(%s)
"""
_FORGET = """
DELETE FROM bots_awaitedsubscription WHERE subscription_id IN (
    SELECT subscription_id FROM bots_awaitedsubscription WHERE until < clock_timestamp()
    ORDER BY until LIMIT 200 FOR UPDATE SKIP LOCKED)
RETURNING project, subscription_id
"""


def _await(project: str, subscription_id: str) -> None:
    with connection() as session:
        session.execute(_AWAIT, (project, subscription_id, VALID))


def forget_old() -> None:
    """Erase Subscriptions that nobody listens to any more."""
    with transaction() as session:
        for project, subscription_id in session.execute(_FORGET).fetchall():
            system = Repository(system_identity(project))
            found = system.search_one("Subscription", [("_id", subscription_id)])
            if found is not None and is_websocket(found.resource):
                system.expunge("Subscription", subscription_id)


# --- connections -----------------------------------------------------------------------------------------------------


@dataclass(eq=False, slots=True)
class Connection:
    """One WebSocket.

    Attributes:
        waiting: what is to be sent, in order: an event, or a message as it is.
        grants: what is bound, by the id of the Subscription.
        is_too_slow: more was waiting than may.
    """

    loop: asyncio.AbstractEventLoop
    waiting: asyncio.Queue[Event | Json] = field(default_factory=asyncio.Queue)
    grants: dict[str, Grant] = field(default_factory=dict)
    is_too_slow: asyncio.Event = field(default_factory=asyncio.Event)

    def push(self, message: Event | Json) -> None:
        """Have something sent; a client that takes nothing is given up."""
        if self.waiting.qsize() >= MAX_WAITING:
            self.is_too_slow.set()
        else:
            self.waiting.put_nowait(message)


class _Bound:
    """What is bound in this process: looked at by the thread that hears notices, changed by the event loop."""

    def __init__(self) -> None:
        self.connections: set[Connection] = set()
        self._listeners: dict[str, frozenset[Connection]] = {}
        self._is_listening = False
        self._prolonged = 0.0

    def listen(self) -> None:
        """Follow the notices, from the first connection on."""
        if not self._is_listening:
            self._is_listening = True
            listen(EVENTS, self._hear)

    def bind(self, to: Connection, grant: Grant) -> None:
        """Let a connection hear."""
        to.grants[grant.subscription_id] = grant
        self._listeners[grant.subscription_id] = self._listeners.get(grant.subscription_id, frozenset()) | {
            to
        }

    def unbind(self, to: Connection, subscription_id: str) -> None:
        """Let it hear no more."""
        to.grants.pop(subscription_id, None)
        left = self._listeners.pop(subscription_id, frozenset()) - {to}
        if left:
            self._listeners[subscription_id] = left

    def to_prolong(self) -> list[str]:
        """The Subscriptions that are bound, once every :data:`PROLONG` seconds."""
        if time.monotonic() - self._prolonged < PROLONG:
            return []
        self._prolonged = time.monotonic()
        return list(self._listeners)

    def _hear(self, payload: str) -> None:
        event = Event(**orjson.loads(payload))
        for each in self._listeners.get(event.subscription_id, ()):
            with suppress(RuntimeError):  # the loop has ended: so has the process, soon
                each.loop.call_soon_threadsafe(each.push, event)


_bound: Final = _Bound()


async def serve(socket: Socket) -> None:
    """Serve a WebSocket from its opening to its end."""
    if len(_bound.connections) >= MAX_CONNECTIONS:
        return
    _bound.listen()
    here = Connection(asyncio.get_running_loop())
    _bound.connections.add(here)
    work = (_receive(socket, here), _send(socket, here), here.is_too_slow.wait())
    tasks = [asyncio.create_task(each) for each in work]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        _bound.connections.discard(here)
        for subscription_id in list(here.grants):
            _bound.unbind(here, subscription_id)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _receive(socket: Socket, here: Connection) -> None:
    """Do what the client says, until it goes."""
    while True:
        async with asyncio.timeout(SILENCE):
            text = await socket.receive()
        if text is None:
            return
        try:
            await _obey(_read(text), here)
        except FhirError as error:
            here.push(error.outcome)
        if prolonged := _bound.to_prolong():
            await _in_thread(partial(_prolong, prolonged))


def _read(text: str) -> Json:
    try:
        message = orjson.loads(text) if len(text) <= MAX_MESSAGE else None
    except orjson.JSONDecodeError:
        message = None
    if not isinstance(message, dict):
        raise bad_request(f"A message is a JSON object of at most {MAX_MESSAGE} characters")
    return message


async def _obey(message: Json, here: Connection) -> None:
    match message.get("type"):
        case "ping":
            here.push({"type": "pong"})
        case "bind-with-token":
            grant = await _in_thread(partial(_grant_of, message))
            if len(here.grants) >= MAX_BOUND:
                raise bad_request(f"One connection listens to at most {MAX_BOUND} Subscriptions")
            _bound.bind(here, grant)
            here.push(_notification(grant, "handshake"))
        case "unbind-from-token":
            claims = verify(_token(message)) or {}
            _bound.unbind(here, str(claims.get("subscription_id")))
        case other:
            raise bad_request(
                f"Unknown type of message {str(other)[:40]!r}: bind-with-token, unbind-from-token and ping are known"
            )


def _token(message: Json) -> str:
    payload = message.get("payload")
    return str(payload.get("token")) if isinstance(payload, dict) else ""


def _grant_of(message: Json) -> Grant:
    """What a token grants; raises FhirError when that is nothing (any more)."""
    claims = verify(_token(message))
    if claims is None or claims.get("aud") != AUDIENCE or claims.get("iss") != settings.BASE_URL:
        raise bad_request("This is no token of $get-ws-binding-token")
    if claims["exp"] <= time.time():
        raise bad_request("The token has expired: ask $get-ws-binding-token for another one")
    grant = Grant(claims["project"], claims["subscription_id"], claims["membership"], claims["login_id"])
    Repository(grant.identity()).read("Subscription", grant.subscription_id)
    _await(grant.project, grant.subscription_id)
    return grant


def _prolong(subscription_ids: list[str]) -> None:
    with connection() as session:
        session.execute(_PROLONG, (GRACE, subscription_ids))


async def _send(socket: Socket, here: Connection) -> None:
    """Send what waits, one after the other."""
    while True:
        message = await here.waiting.get()
        if isinstance(message, Event):
            grant = here.grants.get(message.subscription_id)
            if grant is None:
                continue
            try:
                told = await _in_thread(partial(_tell, grant, message))
            except FhirError as error:
                if error.status < 500:
                    _bound.unbind(here, grant.subscription_id)
                told = error.outcome
            except Exception as error:  # noqa: BLE001  one resource must not end the connection for all others
                log_failure(f"WebSocket event of Subscription {grant.subscription_id}", error)
                continue
            if told is None:
                continue
            message = told
        await socket.send(orjson.dumps(message).decode())


def _tell(grant: Grant, event: Event) -> Json | Outcome | None:
    """The notification about an event; None if the one who listens may not see the resource.

    Raises FhirError when the listener's access has ended.
    """
    repository = Repository(grant.identity())
    stored = Repository(system_identity(grant.project)).read_version(event.type, event.id, event.version_id)
    seen = repository.as_seen(stored)
    if seen is None:
        return None
    grant.heard += 1
    status = _notification(grant, "event-notification", event)
    status["entry"].append(
        {
            "fullUrl": f"{settings.BASE_URL}fhir/R4/{event.type}/{event.id}",
            "resource": orjson.loads(presign_urls(seen.content, repository)),
            "request": {"method": _METHODS[event.interaction], "url": f"{event.type}/{event.id}"},
        }
    )
    return status


_METHODS: Final = {"create": "POST", "update": "PUT", "delete": "DELETE"}


def _notification(grant: Grant, kind: str, event: Event | None = None) -> Json:
    """A Bundle as the Subscriptions R5 Backport has it, with the status of the Subscription only."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    status: Json = {
        "resourceType": "SubscriptionStatus",
        "id": str(uuid.uuid4()),
        "status": "active",
        "type": kind,
        "eventsSinceSubscriptionStart": str(grant.heard),
        "subscription": {"reference": f"Subscription/{grant.subscription_id}"},
    }
    if event is not None:
        focus = {"reference": f"{event.type}/{event.id}"}
        status["notificationEvent"] = [{"eventNumber": str(grant.heard), "timestamp": now, "focus": focus}]
    return {
        "resourceType": "Bundle",
        "id": str(uuid.uuid4()),
        "type": "history",
        "timestamp": now,
        "entry": [{"resource": status}],
    }


async def _in_thread(work: Callable[[], T]) -> T:
    def run() -> T:
        close_old_connections()
        return work()

    return await asyncio.get_running_loop().run_in_executor(_threads, run)
