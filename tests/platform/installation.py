"""Drives ``manage.py start`` as a person at a terminal would, and looks at the processes it makes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx

from tests.tls import TLS

ROOT = Path(__file__).resolve().parent.parent.parent
PATIENCE = 60.0


class Installation:
    """One data folder, and at most one running fhirbots on it.

    Args:
        source: the checkout whose ``manage.py`` is started.
    """

    def __init__(self, data: Path, port: int, *, source: Path = ROOT, **environment: str) -> None:
        self.data = data
        self.source = source
        self.port = port
        self.base_url = f"http://127.0.0.1:{port}"
        self.lines: list[str] = []
        self.process: subprocess.Popen[bytes] | None = None
        inherited = {
            name: value
            for name, value in os.environ.items()
            if name not in {"DATABASE_URL", "CELERY_BROKER_URL", "SECRET_KEY", "DJANGO_SETTINGS_MODULE"}
        }
        self.environment = inherited | environment

    def command(self, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run ``manage.py start`` with `options` to its end, which must come by itself."""
        return subprocess.run(
            [sys.executable, "manage.py", "start", *options],
            cwd=self.source,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )

    def start(self) -> list[str]:
        """Start and wait until it says that it runs; returns the lines printed up to there."""
        output = self.data.parent / "output"
        with output.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "manage.py", "start", "--port", str(self.port), "--data", str(self.data)],
                cwd=self.source,
                env=self.environment,
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        while True:
            running = self.process.poll() is None
            self.lines = output.read_text(errors="replace").splitlines()
            if any("Ctrl-C" in line for line in self.lines):
                return self.lines
            assert running, "fhirbots did not start:\n" + "\n".join(self.lines)
            time.sleep(0.05)

    def signal(self, number: signal.Signals) -> int:
        """Send a signal to the command and wait for its end; returns its exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        try:
            code = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            still = "\n".join(self.descendants().values())
            said = (self.data.parent / "output").read_text(errors="replace")[-4000:]
            raise AssertionError(f"It does not stop. Still running:\n{still}\nIt said:\n{said}") from None
        self.process = None
        return code

    def descendants(self) -> dict[int, str]:
        """All processes below the command: process id and command line."""
        assert self.process is not None
        return descendants_of(self.process.pid)

    def health(self) -> dict[str, Any]:
        """What /healthcheck answers; an empty dictionary while nothing answers."""
        try:
            answer: dict[str, Any] = httpx.get(f"{self.base_url}/healthcheck", timeout=10, verify=TLS).json()
        except httpx.TransportError:
            return {}
        return answer

    def wait_until_healthy(self) -> None:
        """Wait for ``"ok": true``."""
        wait_for(lambda: self.health().get("ok", False))


def wait_for(condition: Any) -> None:
    """Wait until `condition()` is true."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "this did not happen in time"
        time.sleep(0.05)


def descendants_of(pid: int) -> dict[int, str]:
    """Process ids and command lines of the children, their children, and so on."""
    found: dict[int, str] = {}
    for task in Path(f"/proc/{pid}/task").glob("*"):
        try:
            children = (task / "children").read_text().split()
        except OSError:
            continue
        for child in map(int, children):
            try:
                found[child] = Path(f"/proc/{child}/cmdline").read_text().replace("\0", " ")
            except OSError:
                continue
            found |= descendants_of(child)
    return found


def is_alive(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in {"Z", "X"}
    except OSError:
        return False
