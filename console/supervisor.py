"""Runs the processes of fhirbots as one: starts them, starts the crashed again with back-off, stops all in order.

Used by ``manage.py start``. No process is left behind: each child gets a signal from the kernel when its parent
ends in whatever way (`console.child`), and `console.postgres` ends what a killed predecessor left.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from console.child import adopt_orphans
from console.postgres import EmbeddedPostgres, PostgresError

STABLE_SECONDS = 60.0
"""A process that ran for so long starts again at once when it ends."""

LONGEST_PAUSE = 30.0
"""Seconds between two attempts, at most."""

BASE_DIR = Path(__file__).resolve().parent.parent


@dataclass
class Service:
    """One child process.

    Attributes:
        name: what the terminal calls it.
        command: program and arguments.
        environment: its whole environment.
        output: where its output goes; None is the terminal.
        chatty: its standard output is not worth the terminal (its log goes to standard error).
        patience: seconds it gets to stop before it is killed.
    """

    name: str
    command: list[str]
    environment: Mapping[str, str]
    output: IO[bytes] | None = None
    chatty: bool = False
    patience: float = 10.0
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)
    started: float = field(default=0.0, init=False)
    failures: int = field(default=0, init=False)
    retry_at: float = field(default=0.0, init=False)

    def start(self) -> None:
        """Start the process, in a session of its own: Ctrl-C in the terminal is ours alone to handle."""
        child = [
            sys.executable,
            "-I",
            str(Path(__file__).with_name("child.py")),
            "--parent",
            str(os.getpid()),
            "--",
        ]
        self.started = time.monotonic()
        self.process = subprocess.Popen(  # noqa: S603
            [*child, *self.command],
            cwd=BASE_DIR,
            env=dict(self.environment),
            stdin=subprocess.DEVNULL,
            stdout=self.output or (subprocess.DEVNULL if self.chatty else None),
            stderr=self.output,
            start_new_session=True,
        )

    def is_running(self) -> bool:
        """Whether the process has been started and has not ended."""
        return self.process is not None and self.process.poll() is None

    def ask_to_stop(self) -> None:
        """Send SIGTERM."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()

    def wait(self) -> None:
        """Wait until it has stopped; kill it, and what is left of its session, when it takes too long."""
        if self.process is None:
            return
        try:
            self.process.wait(self.patience)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.kill_session()

    def kill(self) -> None:
        """Kill it at once, with what it has started in its session."""
        if self.process is not None:
            self.kill_session()
            self.process.kill()
            self.process.wait()

    def kill_session(self) -> None:
        """Kill what is left of the process group that the process led."""
        if self.process is not None:
            try:
                os.killpg(self.process.pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                return


def web_server(
    environment: Mapping[str, str],
    host: str,
    port: int,
    workers: int,
    threads: int,
    *,
    websockets: bool = False,
) -> Service:
    """The web server: granian with `workers` processes of `threads` threads each; the price of `websockets` tells decision 10."""
    interface = "rsgi" if websockets else "wsgi"
    command = [sys.executable, "-m", "granian", "--interface", interface, "--host", host, "--port", str(port)]
    command += ["--workers", str(workers), "--respawn-failed-workers"]
    command += [] if websockets else ["--blocking-threads", str(threads), "--no-ws"]
    command += ["--log-level", "error", "--workers-kill-timeout", "5", f"console.{interface}:application"]
    own = {"FHIRBOTS_DIE_WITH_PARENT": "1", "FHIRBOTS_WEB_THREADS": str(threads)}
    return Service("web", command, {**environment, **own})


def worker(environment: Mapping[str, str]) -> Service:
    """The Celery worker of both queues."""
    options = ["--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel", "WARNING"]
    return Service(
        "worker",
        [sys.executable, "-m", "celery", "--quiet", "-A", "console", "worker", *options],
        environment,
        chatty=True,
        patience=6.0,
    )


def beat(environment: Mapping[str, str]) -> Service:
    """The scheduler."""
    options = ["--loglevel", "WARNING", "--pidfile="]
    return Service(
        "beat",
        [sys.executable, "-m", "celery", "--quiet", "-A", "console", "beat", *options],
        environment,
        chatty=True,
    )


class Supervisor:
    """Keeps the services and the embedded database running between `__enter__` and `__exit__`.

    Args:
        services: in the order they start; they stop in the same order, and the database after them.
        postgres: the embedded database, or None when there is a server elsewhere.
        say: prints one line.
    """

    def __init__(
        self, services: list[Service], postgres: EmbeddedPostgres | None, say: Callable[[str], None]
    ) -> None:
        self._services = services
        self._postgres = postgres
        self._say = say
        self._asked = 0
        self._bell, self._rope = socket.socketpair()
        self._bell.setblocking(False)
        self._rope.setblocking(False)

    def __enter__(self) -> Supervisor:
        """Take over the signals and start the database; raises `PostgresError`."""
        signal.set_wakeup_fd(self._rope.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._on_stop_signal)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)  # only wakes `rest`
        adopt_orphans()
        if self._postgres is not None:
            self._postgres.start(self._say)
        return self

    def __exit__(self, *_: object) -> None:
        """Stop everything in order."""
        self._say("Stopping")
        for service in self._services:
            service.ask_to_stop()
        for service in self._services:
            service.wait()
        if self._postgres is not None:
            self._postgres.stop()
        self._say("Stopped")

    def start_services(self) -> None:
        """Start all services."""
        for service in self._services:
            service.start()

    def is_asked_to_stop(self) -> bool:
        """Whether a signal asked for the end."""
        return self._asked > 0

    def dead_service(self) -> str | None:
        """The name of a service that has ended."""
        return next((service.name for service in self._services if not service.is_running()), None)

    def rest(self, seconds: float) -> None:
        """Sleep for so long, but wake up for a signal or the end of a child."""
        if select.select([self._bell], [], [], seconds)[0]:
            self._bell.recv(4096)

    def watch(self) -> None:
        """Start again what ends, each time after a longer pause, until a signal asks for the end."""
        while not self.is_asked_to_stop():
            if self._postgres is not None:
                self._revive_database(self._postgres)
            waits = [pause for service in self._services if (pause := self._revive(service)) is not None]
            self._bury_orphans()
            self.rest(min(waits, default=60.0))

    def _revive(self, service: Service) -> float | None:
        """Start `service` if it has ended and its pause is over; returns the seconds still to wait."""
        if service.process is None or service.process.poll() is None:
            return None
        now = time.monotonic()
        if not service.retry_at:
            service.kill_session()
            service.failures = 1 if now - service.started > STABLE_SECONDS else service.failures + 1
            pause = min(LONGEST_PAUSE, 0.25 * 2**service.failures) if service.failures > 1 else 0.0
            service.retry_at = now + pause
            self._say(
                f"The {service.name} process has ended ({_ending(service.process.returncode)}); starting it again."
            )
        if now < service.retry_at:
            return service.retry_at - now
        service.retry_at = 0.0
        service.start()
        return None

    def _revive_database(self, postgres: EmbeddedPostgres) -> None:
        pause = 1.0
        while not self.is_asked_to_stop() and postgres.has_ended():
            self._say("The database has ended; starting it again.")
            try:
                postgres.start(self._say)
            except PostgresError as error:
                self._say(str(error))
                self.rest(pause)
                pause = min(LONGEST_PAUSE, pause * 2)

    def _bury_orphans(self) -> None:
        """Collect grandchildren whose parent has gone: in a container nobody else may do it."""
        own = {service.process.pid for service in self._services if service.process is not None}
        if self._postgres is not None and self._postgres.process is not None:
            own.add(self._postgres.process.pid)
        with contextlib.suppress(ChildProcessError):
            while ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                if ended.si_pid in own:
                    return  # its turn comes with the next look at the services
                os.waitpid(ended.si_pid, 0)

    def _on_stop_signal(self, _number: int, _frame: object) -> None:
        self._asked += 1
        if (
            self._asked > 1
        ):  # impatient: no more waiting for requests and Bots; the database still stops cleanly
            for service in self._services:
                if service.is_running() and service.process is not None:
                    service.process.kill()


def _ending(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
