"""The Celery application: ``celery -A console worker`` and ``celery -A console beat``.

Two queues: ``bots`` runs Bots, ``system`` moves rows on (dispatch, sweeps). One worker serves both unless told otherwise by ``-Q``.
Messages are doorbells; the rows they point at are the truth. So nothing is retried here for long, results are not kept by
Celery, and a broker that is down delays work without blocking a write.
"""

from __future__ import annotations

import logging
import os
import socket
import warnings
from typing import Any

import kombu
from celery import Celery, beat, bootsteps, signals
from celery.app.amqp import AMQP
from django.conf import settings
from kombu import Exchange, Queue

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "console.settings")

from console import broker  # registers the postgresql:// transport

# running as root is the operator's decision, as for the web server beside it; no message carries code (JSON only)
warnings.filterwarnings("ignore", message="You're running the worker with superuser privileges")

RECONNECT_SECONDS = 5.0
"""At most between two attempts of a worker or of beat to reach its broker again. Kombu's pauses grow to half a minute."""

logger = logging.getLogger(__name__)


class Connection(kombu.Connection):
    """A connection that is back soon after its broker, however long that was away."""

    def ensure_connection(self, *args: Any, **options: Any) -> Any:
        """Connect; `args` and `options` as kombu's, which sets no other pauses."""
        pauses = {"interval_start": 1.0, "interval_step": 1.0, "interval_max": RECONNECT_SECONDS}
        return super().ensure_connection(*args, **pauses | options)


class Protocol(AMQP):
    """How Celery speaks with the broker."""

    Connection = Connection


class Scheduler(beat.Scheduler):
    """Sends the sweeps. It tells once that it cannot: Celery's would write a hundred lines for each sweep."""

    _is_late = False

    def apply_entry(self, entry: Any, producer: Any = None) -> None:
        """Send what is due; what cannot be sent is made up for by the next."""
        try:
            self.apply_async(entry, producer=producer, advance=False)
        except beat.SchedulingError as error:
            if not self._is_late:
                reason = type(error.__context__).__name__
                logger.warning("The scheduler cannot send (%s): Subscriptions and schedules are late", reason)
            self._is_late = True
        else:
            self._is_late = False


app = Celery("console", amqp=Protocol)
app.conf.update(
    broker_url=settings.CELERY_BROKER_URL,
    broker_connection_timeout=3,
    broker_connection_retry_on_startup=True,
    broker_connection_max_retries=None,  # a worker outlives any pause of its broker
    broker_pool_limit=4,
    # one immediate second try heals a connection that a restart of the broker has cut; then the sweep takes over
    task_publish_retry=True,
    task_publish_retry_policy={"max_retries": 1, "interval_start": 0, "interval_step": 0, "interval_max": 0},
    task_serializer="json",
    accept_content=["json"],
    task_ignore_result=True,
    task_queues=[Queue(name, Exchange(name), routing_key=name) for name in ("system", "bots")],
    task_default_queue="system",
    task_create_missing_queues=False,
    task_default_delivery_mode="transient",
    task_acks_late=False,
    task_store_errors_even_if_ignored=False,
    worker_pool="threads",
    worker_concurrency=settings.WORKER_THREADS,
    worker_prefetch_multiplier=1,
    # else Celery, after it has reconnected, sets the prefetch count on the consumer's channel from the threads that run tasks:
    # two threads read one AMQP connection, and the worker hangs until the broker cuts it (three minutes, again and again)
    worker_enable_prefetch_count_reduction=False,
    worker_enable_remote_control=False,
    worker_send_task_events=False,
    worker_hijack_root_logger=False,
    worker_redirect_stdouts=False,
    worker_cancel_long_running_tasks_on_connection_loss=True,  # concerns late acknowledgement only: nothing here
    beat_scheduler=Scheduler,  # every entry is a sweep: there is nothing to remember between two starts
    beat_max_loop_interval=5,
    beat_schedule={
        "bots-sweep": {
            "task": "bots.tasks.sweep",
            "schedule": 3.0,
            "options": {"queue": "system", "expires": 10},
        },
        "bots-schedules": {
            "task": "bots.tasks.fire_schedules",
            "schedule": 1.0,
            "options": {"queue": "system", "expires": 10},
        },
        "store-sweep": {
            "task": "console.tasks.sweep",
            "schedule": 3.0,
            "options": {"queue": "system", "expires": 10},
        },
    },
    timezone="UTC",
    enable_utc=True,
)
app.autodiscover_tasks()


@signals.setup_logging.connect
def _keep_django_logging(**_: Any) -> None:
    """Celery shall not configure logging: settings.LOGGING already has. Its lines would show task arguments."""
    logging.captureWarnings(capture=True)


class WakeUp(bootsteps.StartStopStep):
    """Wakes the worker's event loop when it shall stop: it would sleep on until its next timer (seconds, with RabbitMQ)."""

    def __init__(self, consumer: Any, **options: Any) -> None:
        super().__init__(consumer, **options)
        self._bell, self._rope = socket.socketpair()
        signals.worker_shutting_down.connect(self._ring)

    def register_with_event_loop(self, consumer: Any, hub: Any) -> None:
        """Called for each connection to a broker with an event loop."""
        hub.add_reader(self._bell, self._bell.recv, 64)

    def _ring(self, **_: Any) -> None:
        self._rope.send(b"!")
        broker.interrupt()


app.steps["consumer"].add(WakeUp)


@signals.worker_ready.connect
def _start_heartbeat(sender: Any, **_: Any) -> None:
    """Write the worker's signs of life from now on (`console.health`)."""
    from console.health import Heartbeat  # it imports this module

    heartbeat = Heartbeat(lambda: sender.connection is not None and sender.connection.connected)
    heartbeat.start()
    signals.worker_shutdown.connect(lambda **_: heartbeat.stop(), weak=False)
