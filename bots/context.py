"""What a run needs to know beside its request: the Bot, its deployed code, who it acts as, its secrets.

A worker remembers all this per Bot, since it changes rarely and a run takes less time than looking it up. Two things keep it
from being out of date: writes to Bots, their memberships and Projects send a notice that makes every process forget (the writing
one at its commit), and a request carries the versions its sender knows (``ExecutionRequest.fresh``), so that the worker does not
use older ones only because its notice is late.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from django.conf import settings

from bots.masking import Masker
from bots.request import ExecutionRequest
from bots.sandbox.model import DEFAULT_MEMORY_MB, Language, Module
from fhirstore.api import (
    FhirError,
    Identity,
    Repository,
    bad_request,
    connection,
    forbidden,
    identity_of_membership,
    listen,
    membership_of_profile,
    notify,
    on_commit,
    secrets_of_project,
    system_identity,
)

CHANGED: Final = "bots_changed"
"""Notice channel; the payload is the project id."""

DEFAULT_TIMEOUT: Final = 10
MAX_TIMEOUT: Final = 900
MEMORY: Final = "urn:fhirbots:memory"
"""Extension of a Bot (valueInteger): MB it may take instead of 128."""
MIN_MEMORY, MAX_MEMORY = 32, 1024
RUNTIMES: Final = frozenset({"awslambda", "vmcontext", "fission"})
"""Values of ``Bot.runtimeVersion`` we take: all run in our one runtime, since existing Bots carry them."""


RUNTIME: Final = "urn:fhirbots:bot-runtime"
"""Extension of a Bot with a ``valueCode``: ``python-native`` asks for CPython instead of Pyodide."""
NATIVE: Final = "python-native"

REMEMBERED: Final = ("AccessPolicy", "Bot", "Subscription", "Project", "ProjectMembership")
"""Resource types this module remembers something of."""


class RefusedError(Exception):
    """A run that cannot begin; the message is the log text of its AuditEvent.

    Attributes:
        kind: as ``ExecutionResult.kind``.
    """

    def __init__(self, text: str, kind: str | None = None) -> None:
        super().__init__(text)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class Code:
    """A deployment, as far as running it needs."""

    number: int
    code: str
    filename: str
    language: Language
    module: Module
    wheels: tuple[bytes, ...] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True)
class Context:
    """A Bot as the system sees it, ready to run.

    Attributes:
        bot: the resource.
        version_id: of the Bot.
        code: the current deployment, None before the first.
        membership: id of the Bot's own ProjectMembership.
        project: the Project resource.
        sealed: secrets in clear, of the Project and of this Bot, by owner and kind, then by name.
    """

    bot: dict[str, Any]
    version_id: str
    code: Code | None
    membership: str | None
    project: dict[str, Any]
    sealed: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict, repr=False)

    @property
    def state(self) -> tuple[str, int]:
        """Version of the Bot and number of the deployment, as in ``ExecutionRequest.fresh``."""
        return self.version_id, self.code.number if self.code else 0

    @property
    def timeout(self) -> float:
        """Seconds a run may take."""
        return float(min(self.bot.get("timeout") or DEFAULT_TIMEOUT, MAX_TIMEOUT))

    @property
    def memory_mb(self) -> int:
        """MB a run may take of the JavaScript heap; of a Python Bot, beside what Python itself takes."""
        wanted = _wanted_memory(self.bot)
        return wanted if isinstance(wanted, int) else DEFAULT_MEMORY_MB

    @property
    def is_native(self) -> bool:
        """The Bot runs in CPython; raises RefusedError when it asks for that and may not."""
        wanted = wants_native(self.bot)
        if wanted and not may_run_native(self.project["id"]):
            raise RefusedError(NOT_NATIVE, "refused")
        return wanted

    @property
    def is_enabled(self) -> bool:
        """The Bot's Project has the feature ``bots``."""
        return "bots" in (self.project.get("features") or ())

    def secrets(self) -> dict[str, dict[str, Any]]:
        """``event.secrets`` by name; later sources win (shared/medplum/execute.md §4): system secrets of the Project (Bots
        with ``system`` only), its secrets, the Bot's own."""
        found = dict(self.sealed.get(("Project", "systemSecret"), {})) if self.bot.get("system") else {}
        return (
            found
            | self.sealed.get(("Project", "secret"), {})
            | self.sealed.get((self._reference, "secret"), {})
        )

    def environment(self) -> dict[str, str]:
        """The Bot's environment variables."""
        items = self.sealed.get((self._reference, "env"), {})
        return {name: str(item.get("valueString", "")) for name, item in items.items()}

    def masker(self) -> Masker:
        """What hides the values of all secrets this Bot could know."""
        texts = [item.get("valueString") for item in self.secrets().values()]
        return Masker([*(text for text in texts if isinstance(text, str)), *self.environment().values()])

    @property
    def _reference(self) -> str:
        return f"Bot/{self.bot['id']}"


def wants_native(bot: dict[str, Any]) -> bool:
    """Whether a Bot asks for CPython, by its extension."""
    return any(
        extension.get("url") == RUNTIME and extension.get("valueCode") == NATIVE
        for extension in bot.get("extension") or ()
    )


def check_bot(repository: Repository, bot: dict[str, Any], previous: dict[str, Any] | None) -> None:
    """Hook before a Bot is written: one wall less around it, or more memory, is an admin's business.

    Raises FhirError: 403, 400 for an amount of memory that cannot be given.
    """
    if wants_native(bot) and not wants_native(previous or {}) and not repository.identity.is_admin:
        raise forbidden("Only a project admin may let a Bot run in native Python")
    wanted = _wanted_memory(bot)
    if wanted == _wanted_memory(previous or {}):
        return
    if not repository.identity.is_admin:
        raise forbidden("Only a project admin may change the memory of a Bot")
    if wanted is not None and not (isinstance(wanted, int) and MIN_MEMORY <= wanted <= MAX_MEMORY):
        raise bad_request(
            f"A Bot's memory is a valueInteger from {MIN_MEMORY} to {MAX_MEMORY} (MB)", "Bot.extension"
        )


def _wanted_memory(bot: dict[str, Any]) -> Any:
    """What a Bot says of its memory; None if nothing."""
    for extension in bot.get("extension") or ():
        if extension.get("url") == MEMORY:
            return extension.get("valueInteger", "")
    return None


def may_run_native(project: str) -> bool:
    """Whether the operator trusts the project's Bots so far."""
    return bool(settings.NATIVE_PYTHON & {project, "*"})


NO_POLICY: Final = "ProjectMembership must have an access policy"
"""Why a membership cannot answer a webhook."""

NOT_NATIVE: Final = "This Bot asks for native Python, which the operator has not switched on for its project (FHIRBOTS_NATIVE_PYTHON)"


class _Memory:
    """What this process remembers of each project, until a notice makes it forget."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: dict[str, dict[str, Any]] = {}
        self._generation = 0
        self._is_listening = False

    def get(self, project: str, reference: str) -> Any:
        """Return what is remembered under a reference, else None."""
        if not self._is_listening:
            with self._lock:
                if not self._is_listening:
                    listen(CHANGED, self.forget, lambda: self.forget(""))
                    self._is_listening = True
        return self._values.get(project, {}).get(reference)

    def load(self, project: str, reference: str, load: Callable[[], Any]) -> Any:
        """Load a value and remember it, unless something changed while it was read."""
        generation = self._generation
        value = load()
        with self._lock:
            if generation == self._generation:
                self._values.setdefault(project, {})[reference] = value
        return value

    def forget(self, project: str) -> None:
        """Forget a project, or with an empty id (notices may have been missed) everything."""
        with self._lock:
            self._generation += 1
            if project:
                self._values.pop(project, None)
            else:
                self._values.clear()


_memory = _Memory()


def context_of(request: ExecutionRequest) -> Context:
    """Return the context of the request's Bot; raises RefusedError when there is no such Bot."""
    try:
        return _context(request.project, request.bot_id, request.fresh)
    except FhirError as error:
        raise _refused(error, f"Bot/{request.bot_id}") from None


def context_for(repository: Repository, bot_id: str) -> Context:
    """Return the context of a Bot for a caller who wants to execute it; raises FhirError unless he may read it."""
    if repository.identity.policy is not None:
        repository.read("Bot", bot_id)
    return _context(repository.identity.project, bot_id, None)


def _context(project: str, bot_id: str, state: tuple[str, int] | None) -> Context:
    known: Context | None = _memory.get(project, f"Bot/{bot_id}")
    if known is not None and state in (None, known.state):
        return known
    loaded: Context = _memory.load(project, f"Bot/{bot_id}", lambda: _load(project, bot_id))
    return loaded


def subscription_of(project: str, subscription_id: str) -> dict[str, Any] | None:
    """Return a Subscription as stored now; None if it is gone."""
    reference = f"Subscription/{subscription_id}"
    known: dict[str, Any] | None = _memory.get(project, reference)
    if known is not None:
        return known
    try:
        loaded: dict[str, Any] = _memory.load(
            project,
            reference,
            lambda: Repository(system_identity(project)).read("Subscription", subscription_id).resource,
        )
    except FhirError as error:
        if error.status >= 500:
            raise
        return None
    return loaded


def project_of(project: str) -> dict[str, Any]:
    """Return a Project as stored now."""
    known: dict[str, Any] | None = _memory.get(project, "Project")
    if known is not None:
        return known
    loaded: dict[str, Any] = _memory.load(
        project, "Project", lambda: Repository(system_identity(project)).read("Project", project).resource
    )
    return loaded


def remembered(project: str, key: str, load: Callable[[], Any]) -> Any:
    """Return what `load` returns, remembered until a resource of :data:`REMEMBERED` changes in the project; never None."""
    known = _memory.get(project, key)
    return known if known is not None else _memory.load(project, key, load)


def author_of(project: str, resource: dict[str, Any]) -> Identity:
    """Return who has written a resource, with the access of today; raises FhirError if that is no member any more."""
    author = str(((resource.get("meta") or {}).get("author") or {}).get("reference") or "system")
    if author == "system":
        return system_identity(project)
    known: Identity | None = _memory.get(project, f"author {author}")
    if known is not None:
        return known
    loaded: Identity = _memory.load(project, f"author {author}", lambda: _member(project, author))
    return loaded


def _member(project: str, profile: str) -> Identity:
    membership = membership_of_profile(project, profile)
    if membership is None:
        raise forbidden("The author of the Subscription is no longer a member of the project")
    return identity_of_membership(membership)


def run_as(request: ExecutionRequest, context: Context) -> Identity:
    """Return who the Bot acts as: the caller (``runAsUser``), else the Bot itself, else, for ``$execute``, the caller.

    A schedule knows no caller: the Bot itself, or whom its Cron names. A Bot that is asked before a write acts as itself. One that
    anybody may call acts under an AccessPolicy, or not at all.

    Raises RefusedError when that is nobody.
    """
    if request.trigger in ("cron", "pre-commit"):
        return _identity(request.caller or context.membership)
    as_user = request.as_caller or context.bot.get("runAsUser") is True
    membership = _caller(request) if as_user else context.membership
    if membership is None and request.trigger == "execute":
        membership = request.caller
    identity = _identity(membership, " to run as its user" if as_user else "")
    # The web process has looked too, but the policy may have been taken away since. A replay is asked for by a person with a login.
    if request.trigger == "webhook" and request.replay_of is None and identity.policy is None:
        raise RefusedError(NO_POLICY, "refused")
    return identity


def _identity(membership: str | None, purpose: str = "") -> Identity:
    if membership is None:
        raise RefusedError(f"Could not find project membership for bot{purpose}", "no-membership")
    try:
        return identity_of_membership(membership)
    except FhirError as error:
        raise _refused(error, "Could not use the project membership of the bot") from None


def _refused(error: FhirError, what: str) -> Exception:
    """What an error of the store means for a run: a refusal, unless it is the store's own trouble."""
    return error if error.status >= 500 else RefusedError(f"{what}: {error}")


def _caller(request: ExecutionRequest) -> str | None:
    """The membership of who called or, for a Subscription, of the author of the change."""
    if request.caller is not None:
        return request.caller
    return (
        membership_of_profile(request.project, request.requester["reference"]) if request.requester else None
    )


def changed(project: str) -> None:
    """Make every process forget the project, this one at once, when the current transaction is committed."""
    notify(CHANGED, project)
    on_commit(lambda: _memory.forget(project))


def _load(project: str, bot_id: str) -> Context:
    repository = Repository(system_identity(project))
    bot = repository.read("Bot", bot_id)
    with connection() as session:
        row = session.execute(
            "SELECT number, code, filename, language, module, wheels FROM bots_deployment"
            " WHERE project = %s AND bot_id = %s ORDER BY number DESC LIMIT 1",
            (project, bot_id),
        ).fetchone()
    code = None
    if row:
        number, text, filename, language, module, wheels = row
        code = Code(number, text, filename, language, module, wheel_contents(project, wheels))
    return Context(
        bot=bot.resource,
        version_id=bot.version_id,
        code=code,
        membership=membership_of_profile(project, f"Bot/{bot_id}"),
        project=repository.read("Project", project).resource,
        sealed={
            (owner, kind): items
            for (owner, kind), items in secrets_of_project(project).items()
            if owner in ("Project", f"Bot/{bot_id}")
        },
    )


def wheel_contents(project: str, wheels: Sequence[Mapping[str, str]]) -> tuple[bytes, ...]:
    """The content of the wheels that a deployment names, remembered once for all Bots of the project."""

    def content(digest: str) -> bytes:
        with connection() as session:
            row = session.execute(
                "SELECT content FROM bots_wheel WHERE project = %s AND digest = %s", (project, digest)
            ).fetchone()
        assert row is not None  # they are never deleted
        return bytes(row[0])

    digests = [wheel["digest"] for wheel in wheels]
    return tuple(remembered(project, f"wheel {digest}", partial(content, digest)) for digest in digests)


def forget_on_write(repository: Repository, _resource: Any, _previous: Any) -> None:
    """Hook before a write of a remembered type."""
    changed(repository.identity.project)


def forget_on_delete(repository: Repository, _previous: Any) -> None:
    """Hook before a delete of a remembered type."""
    changed(repository.identity.project)
