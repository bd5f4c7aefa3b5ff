"""What a Bot's life needs beside FHIR resources: its deployments, its schedules, and the deliveries that run it.

The schema is Django's. Rows that must be written in one transaction with resources go through
``fhirstore.api.transaction()`` in SQL; pages read them through the ORM.
"""

from __future__ import annotations

from django.db import models
from django.db.models import Q
from django.db.models.functions import Now


class Deployment(models.Model):
    """Code that was deployed to a Bot. Rows are never changed: the newest one is current, rolling back adds one."""

    project = models.CharField(max_length=64)
    bot_id = models.CharField(max_length=64)
    number = models.PositiveIntegerField()
    """Counts up from 1 for each Bot; shown as v1, v2, …"""
    source = models.TextField()
    """As it was uploaded."""
    source_filename = models.CharField(max_length=255)
    code = models.TextField()
    """What runs: JavaScript or Python."""
    filename = models.CharField(max_length=255)
    language = models.CharField(max_length=16)
    module = models.CharField(max_length=16)
    """``esm`` or ``commonjs``; empty for Python."""
    binary_id = models.CharField(max_length=64)
    """The Binary that ``Bot.executableCode`` pointed to."""
    source_version_id = models.CharField(max_length=64, null=True)  # noqa: DJ001  (unknown is not empty)
    """Version of the Bot whose saved code was deployed, where it was deployed from there."""
    note = models.TextField(blank=True)
    via = models.CharField(max_length=16)
    """``api``, ``cli`` or ``console``."""
    author = models.CharField(max_length=128)
    author_display = models.CharField(max_length=255, blank=True)
    created = models.DateTimeField()
    wheels = models.JSONField(default=list)
    """Of Python code: ``{filename, digest}`` of each :class:`Wheel` it runs with."""

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["project", "bot_id", "number"], name="bots_deployment_number")
        ]

    def __str__(self) -> str:
        return f"v{self.number}"


class Wheel(models.Model):
    """A pure-Python package of a project. Rows are never deleted, and their content never changed: deployments name them."""

    project = models.CharField(max_length=64)
    name = models.CharField(max_length=100)
    """Normalized, as in ``pip install name``."""
    filename = models.CharField(max_length=255)
    digest = models.CharField(max_length=64)
    """SHA-256 of the content, in hexadecimal digits."""
    content = models.BinaryField()
    is_listed = models.BooleanField()
    """The next deployments get it. Of one name there is at most one."""
    author = models.CharField(max_length=128)
    author_display = models.CharField(max_length=255, blank=True)
    created = models.DateTimeField()
    size: int
    """Bytes of the content; in lists only, which leave the content out."""

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["project", "digest"], name="bots_wheel_content"),
            models.UniqueConstraint(
                fields=["project", "name"], condition=models.Q(is_listed=True), name="bots_wheel_name"
            ),
        ]

    def __str__(self) -> str:
        return self.filename


class Delivery(models.Model):
    """One event that must be handled once: a change that a Subscription hears about, or a moment a schedule has named.

    1. ``waiting``: not begun. Runs when it is due and no earlier delivery of the same Subscription and resource is open.
    2. ``running``: claimed by the worker process that holds the advisory lock ``lease``.
    3. ``retrying``: an attempt failed; ``waiting`` again when the next one is due.
    4. ``done``, ``failed``: ended well, or for good without.
    5. ``skipped``: left out on purpose, ``outcome`` says why: the Subscription was off, a newer version exists, …

    A worker that dies gives its ``running`` rows back to ``waiting``. At most one row for each pair of ``subscription_id`` and
    ``change_id``: that is why no event is handled twice.
    """

    class State(models.TextChoices):
        WAITING = "waiting"
        RUNNING = "running"
        RETRYING = "retrying"
        DONE = "done"
        FAILED = "failed"
        SKIPPED = "skipped"

    class Trigger(models.TextChoices):
        SUBSCRIPTION = "subscription"
        CRON = "cron"

    OPEN = (State.WAITING, State.RUNNING, State.RETRYING)

    project = models.CharField(max_length=64)
    trigger = models.CharField(
        max_length=12, choices=Trigger.choices, default=Trigger.SUBSCRIPTION, db_default=Trigger.SUBSCRIPTION
    )
    subscription_id = models.CharField(max_length=64)
    """Of the Subscription; for a schedule of its Bot or Cron."""
    change_id = models.BigIntegerField()
    """Of the Change; for a schedule made of the moment it fires, and below zero. Deliveries are claimed in this order."""
    bot_id = models.CharField(max_length=64, blank=True)
    """Empty where the channel is no Bot."""
    unordered = models.BooleanField(default=False, db_default=False)
    """Does not wait for earlier ones."""
    resource_type = models.CharField(max_length=64)
    resource_id = models.CharField(max_length=64)
    version_id = models.CharField(max_length=64)
    previous_version_id = models.CharField(max_length=64, null=True)  # noqa: DJ001  (a first version has none)
    interaction = models.CharField(max_length=8)
    author = models.CharField(max_length=128)
    """Reference of the profile that made the change."""
    changed = models.DateTimeField()
    trace_id = models.CharField(max_length=128, blank=True)
    depth = models.PositiveIntegerField(default=0)
    """How many runs lie between the change and a request from outside."""

    state = models.CharField(max_length=8, choices=State.choices, default=State.WAITING)
    attempts = models.PositiveIntegerField(default=0)
    """Times it was begun, also those the worker did not survive."""
    failures = models.PositiveIntegerField(default=0, db_default=0)
    """Attempts that ended badly by themselves; what retries are counted by."""
    forgiven = models.PositiveIntegerField(default=0, db_default=0)
    """Attempts that count no more, because it was replayed since."""
    due = models.DateTimeField()
    lease = models.PositiveIntegerField(null=True)
    started = models.DateTimeField(null=True)
    finished = models.DateTimeField(null=True)
    outcome = models.TextField(blank=True)
    """Why the last attempt did not end well: one sentence, no patient data."""
    audit_event_id = models.CharField(max_length=64, null=True)  # noqa: DJ001  (a Bot may keep no AuditEvents)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["subscription_id", "change_id"], name="bots_delivery_once")
        ]
        indexes = [
            models.Index(
                fields=["project", "change_id", "id"],
                name="bots_delivery_waiting",
                condition=Q(state="waiting"),
            ),
            models.Index(fields=["due"], name="bots_delivery_retrying", condition=Q(state="retrying")),
            models.Index(
                fields=["subscription_id", "resource_type", "resource_id", "change_id"],
                name="bots_delivery_order",
                condition=Q(state__in=["waiting", "running", "retrying"]),
            ),
            models.Index(
                fields=["project", "subscription_id", "change_id"],
                name="bots_delivery_dead",
                condition=Q(state="failed"),
            ),
        ]

    def __str__(self) -> str:
        return f"{self.interaction} {self.resource_type}/{self.resource_id} to Subscription/{self.subscription_id}"


class QueuedRun(models.Model):
    """A run that was asked for and is done in the background. The row goes with its end.

    ``lease`` names the worker process that runs it; a worker that dies gives its rows back.
    """

    id = models.UUIDField(primary_key=True)
    """Of the AsyncJob."""
    project = models.CharField(max_length=64)
    bot_id = models.CharField(max_length=64)
    request = models.TextField()
    """The ExecutionRequest as JSON, without credentials."""
    attempts = models.PositiveIntegerField(default=0)
    due = models.DateTimeField(db_default=Now())
    lease = models.PositiveIntegerField(null=True)

    class Meta:
        indexes = [
            # ids of jobs grow with time: the oldest first
            models.Index(fields=["project", "id"], name="bots_queuedrun_claimable", condition=Q(lease=None)),
            models.Index(
                fields=["lease", "project"], name="bots_queuedrun_lease", condition=Q(lease__isnull=False)
            ),
        ]

    def __str__(self) -> str:
        return str(self.id)


class Schedule(models.Model):
    """When a Bot or Cron runs next: its resource says when, this row says what is due. Written by hooks with the resource."""

    project = models.CharField(max_length=64)
    owner_type = models.CharField(max_length=8)
    """``Bot`` or ``Cron``."""
    owner_id = models.CharField(max_length=64)
    bot_id = models.CharField(max_length=64)
    expression = models.CharField(max_length=255)
    """Cron expression of five fields."""
    zone = models.CharField(max_length=64, blank=True)
    """IANA name of the time zone it is read in; empty for the project's."""
    overlap = models.CharField(max_length=8)
    missed = models.CharField(max_length=8)
    ends = models.DateTimeField(null=True)
    next_due = models.DateTimeField(null=True)
    """None when it never comes again."""

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["project", "owner_type", "owner_id"], name="bots_schedule_owner")
        ]
        indexes = [models.Index(fields=["next_due"], name="bots_schedule_due")]

    def __str__(self) -> str:
        return f"{self.expression} of {self.owner_type}/{self.owner_id}"


class RunRecord(models.Model):
    """A run that has ended: see :class:`bots.runs.Run`, which names the columns."""

    pk = models.CompositePrimaryKey("project", "bot_id", "id")
    id = models.UUIDField()
    """Of its AuditEvent; begins with the time."""
    project = models.CharField(max_length=64)
    bot_id = models.CharField(max_length=64)
    ended = models.DateTimeField()
    trigger = models.CharField(max_length=12)
    kind = models.CharField(max_length=16, null=True)  # noqa: DJ001  (none is not empty)
    status = models.PositiveIntegerField()
    duration_ms = models.FloatField()
    deployment = models.PositiveIntegerField(null=True)
    attempt = models.PositiveIntegerField()
    trace_id = models.CharField(max_length=128)
    details = models.TextField()
    log = models.TextField(null=True)  # noqa: DJ001  (not kept is not empty)
    request = models.BinaryField(null=True)

    class Meta:
        db_table = "bots_run"

    def __str__(self) -> str:
        return str(self.id)


class IdempotentCall(models.Model):
    """The answer to a request with an ``Idempotency-Key``, from the moment it is made until a day later."""

    project = models.CharField(max_length=64)
    caller = models.CharField(max_length=64)
    """Id of the ProjectMembership; empty for the server itself."""
    bot_id = models.CharField(max_length=64)
    key_digest = models.BinaryField()
    request_digest = models.BinaryField()
    created = models.DateTimeField(db_default=Now())
    until = models.DateTimeField()
    """When a run without an answer is given up."""
    answer = models.BinaryField(null=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["project", "caller", "bot_id", "key_digest"], name="bots_idempotentcall_key"
            )
        ]
        indexes = [models.Index(fields=["created"], name="bots_idempotentcall_age")]

    def __str__(self) -> str:
        return str(self.id)


class AwaitedSubscription(models.Model):
    """A Subscription over WebSocket, and until when somebody is awaited who listens to it (`bots/websockets.py`)."""

    subscription_id = models.CharField(max_length=64, primary_key=True)
    project = models.CharField(max_length=64)
    until = models.DateTimeField()

    class Meta:
        indexes = [models.Index(fields=["until"], name="bots_awaitedsubscription_until")]

    def __str__(self) -> str:
        return self.subscription_id


class Reply(models.Model):
    """An answer of a worker too long for a NOTIFY, until the process that asked has fetched it. The table is UNLOGGED."""

    id = models.UUIDField(primary_key=True)
    body = models.BinaryField()
    created = models.DateTimeField(db_default=Now())

    def __str__(self) -> str:
        return str(self.id)
