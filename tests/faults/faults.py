"""Kill a process with `kill -9` while deliveries are in flight, and count what became of every event.

    python -m tests.faults.faults --events 2000
    python -m tests.faults.faults --events 2000 --broker redis --broker rabbitmq

starts a fhirbots of its own (with ``--broker`` also a broker, whose program must be there), kills each kind of process in turn and prints a row for each; the suite does the same with fewer
events. What must hold: each stored Patient has exactly one AuditEvent without failure, and the Bot's own work was done more than
once only for those whose AuditEvent says that they were attempted before.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psycopg

from console.postgres import ROLE, socket_folder
from tests.conftest import free_port
from tests.platform.installation import Installation, descendants_of, is_alive

PARTS = {
    "worker": " console worker ",
    "web server": "granian --interface",
    "scheduler": " console beat ",
    "database and broker": "bin/postgres -D ",
    "sandbox": "/deno",
}
"""What is killed, and what its command line looks like. The embedded broker lives in the database."""

KILLED = "broker"
STOPPED = "broker, SIGTERM"
"""What is done to the broker of a fhirbots that does not use its database for that."""

CLIENTS = 4
CODE = """
exports.handler = async (medplum, event) => {
  const number = event.input.multipleBirthInteger;
  await new Promise(done => setTimeout(done, 30));
  await medplum.createResource({
    resourceType: 'Basic', code: { text: 'done' }, subject: { reference: 'Patient/' + event.input.id } });
  console.log('n' + number);
};"""
RUN = "urn:fhirbots:bot-run"


@dataclass
class Fault:
    """One kill, and what was found afterwards.

    Attributes:
        stored: ids of the Patients that exist.
        accepted: ids the server has answered 201 for.
        runs: AuditEvents by Patient: their outcomes.
        attempts: the highest attempt an AuditEvent tells of, by Patient.
        work: how often the Bot has done its work, by Patient.
    """

    part: str
    stored: set[str] = field(default_factory=set)
    accepted: set[str] = field(default_factory=set)
    runs: dict[str, list[str]] = field(default_factory=dict)
    attempts: dict[str, int] = field(default_factory=dict)
    work: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    def problems(self) -> list[str]:
        """What must not be."""
        found = [f"Patient/{each} was accepted and is lost" for each in self.accepted - self.stored]
        for each in self.stored:
            outcomes = self.runs.get(each, [])
            if outcomes.count("0") != 1:
                found.append(f"Patient/{each} has the runs {outcomes}")
            if not self.work[each]:
                found.append(f"The work for Patient/{each} was not done")
            if self.work[each] > 1 and self.attempts.get(each, 1) < 2:
                found.append(
                    f"The work for Patient/{each} was done {self.work[each]} times, and no attempt tells of it"
                )
        return found

    def doubles(self) -> int:
        """How many Patients were worked for more than once."""
        return sum(count > 1 for count in self.work.values())


class Broker:
    """A Redis or RabbitMQ of our own, which keeps nothing on disk that counts."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.port = free_port()
        environment: dict[str, str] = {}
        if kind == "redis":
            self.url = f"redis://127.0.0.1:{self.port}/0"
            self.command = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--save", ""]
        else:
            self.url = f"amqp://guest:guest@127.0.0.1:{self.port}//"
            self.command = ["rabbitmq-server"]
            environment = {
                "RABBITMQ_NODENAME": f"faults{self.port}@localhost",
                "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
                "RABBITMQ_DIST_PORT": str(free_port()),
                "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
                "RABBITMQ_LOG_BASE": str(folder / "log"),
                "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "no_plugins"),
            }
            (folder / "rabbitmq.conf").write_text(f"listeners.tcp.1 = 127.0.0.1:{self.port}\n")
            folder.chmod(0o777)  # its script changes to a user of its own where it is run as root
        self.folder, self.environment = folder, os.environ | environment
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it can be connected to."""
        self.process = subprocess.Popen(
            self.command,
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        _wait(
            self._answers, 120, "the broker to start"
        )  # Erlang takes its time on a machine that has others to serve

    def stop(self) -> None:
        """Ask it to end, as for an upgrade; of RabbitMQ the server itself, as its scripts are killed after two seconds."""
        assert self.process is not None
        server = [pid for pid, command in descendants_of(self.process.pid).items() if "/beam" in command]
        for pid in server or [self.process.pid]:
            os.kill(pid, signal.SIGTERM)
        self._wait_until_dead()

    def kill(self) -> None:
        """`kill -9` it, with the processes it has started itself."""
        assert self.process is not None
        frozen: set[int] = set()
        while (
            new := {self.process.pid, *descendants_of(self.process.pid)} - frozen
        ):  # none starts another now
            for pid in new:
                _signal(pid, signal.SIGSTOP)
            frozen |= new
        for pid in frozen:
            _signal(pid, signal.SIGKILL)
        self._wait_until_dead()

    def _wait_until_dead(self) -> None:
        assert self.process is not None
        self.process.wait(60)
        _wait(lambda: not self._answers(), 60, "the broker to be dead")

    def _answers(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


class Site:
    """A fhirbots that was started for this, as its client sees it."""

    def __init__(self, folder: Path, broker: Broker | None = None) -> None:
        self.client, self.secret = str(uuid.uuid4()), uuid.uuid4().hex
        self.broker = broker
        environment = {"FHIRBOTS_CLIENT_ID": self.client, "FHIRBOTS_CLIENT_SECRET": self.secret}
        if broker is not None:
            environment["CELERY_BROKER_URL"] = broker.url
        self.installation = Installation(folder / "data", free_port(), **environment)
        self.http = httpx.Client(
            base_url=self.installation.base_url, auth=(self.client, self.secret), timeout=30
        )

    def start(self) -> None:
        """Start it, with a Bot that all Subscriptions run."""
        self.installation.start()
        self.installation.wait_until_healthy()
        project = self.get("Project")[0]["id"]
        self.bot = self.post(f"admin/projects/{project}/bot", {"name": "Fault"})["id"]
        self.post(f"fhir/R4/Bot/{self.bot}/$deploy", {"code": CODE, "filename": "a.cjs"})

    def stop(self) -> None:
        self.http.close()
        self.installation.signal(signal.SIGTERM)

    def post(self, path: str, value: Any) -> Any:
        answer = self.http.post(f"/{path}", json=value)
        answer.raise_for_status()
        return answer.json()

    def get(self, query: str) -> list[dict[str, Any]]:
        """All resources a search finds, page by page."""
        found: list[dict[str, Any]] = []
        url: str | None = f"/fhir/R4/{query}{'&' if '?' in query else '?'}_count=1000"
        while url:
            answer = self.http.get(url)
            answer.raise_for_status()
            bundle = answer.json()
            found += [entry["resource"] for entry in bundle.get("entry", [])]
            url = next((link["url"] for link in bundle.get("link", []) if link["relation"] == "next"), None)
        return found

    def processes(self, part: str) -> list[int]:
        """What is to be killed: the first process of this kind, of the sandboxes all, since most of them only wait."""
        found = sorted(
            pid for pid, command in self.installation.descendants().items() if PARTS[part] in command
        )
        return found if part == "sandbox" else found[:1]

    def database(self) -> psycopg.Connection:
        host = str(socket_folder(self.installation.data))
        return psycopg.connect(host=host, user=ROLE, dbname=ROLE, autocommit=True)


def inflict(site: Site, part: str, events: int, patience: float) -> Fault:
    """Post Patients, kill a process when a third of them are delivered, wait until all deliveries have ended."""
    fault = Fault(part)
    begin = time.monotonic()
    tag = uuid.uuid4().hex
    subscription = site.post("fhir/R4/Subscription", {
        "resourceType": "Subscription", "status": "active", "reason": "fault",
        "criteria": f"Patient?identifier=urn:fault|{tag}",
        "extension": [{
            "url": "https://medplum.com/fhir/StructureDefinition/subscription-supported-interaction", "valueCode": "create"
        }],
        "channel": {"type": "rest-hook", "endpoint": f"Bot/{site.bot}"},
    })["id"]  # fmt: skip
    clients = [
        threading.Thread(target=_write, args=(site, tag, range(first, events, CLIENTS), fault))
        for first in range(CLIENTS)
    ]
    for client in clients:
        client.start()
    _wait(lambda: _ended(site, subscription) >= events // 3, patience, f"a third before the {part} is killed")
    _kill(site, part, patience)
    for client in clients:
        client.join()
    site.installation.wait_until_healthy()
    stored = f"Patient?identifier=urn:fault|{tag}"
    fault.stored = {each["id"] for each in site.get(stored)}
    _wait(lambda: _ended(site, subscription) >= len(fault.stored), patience, "all deliveries to end")
    for event in site.get(f"AuditEvent?entity=Subscription/{subscription}"):
        patient = event["entity"][1]["what"]["reference"].partition("/")[2]
        fault.runs.setdefault(patient, []).append(event["outcome"])
        told = next(each["extension"] for each in event["extension"] if each["url"] == RUN)
        attempt = next((each["valuePositiveInt"] for each in told if each["url"] == "attempt"), 1)
        fault.attempts[patient] = max(attempt, fault.attempts.get(patient, 1))
    for work in site.get(f"Basic?subject:Patient.identifier=urn:fault|{tag}"):
        fault.work[work["subject"]["reference"].partition("/")[2]] += 1
    fault.seconds = time.monotonic() - begin
    return fault


def _kill(site: Site, part: str, patience: float) -> None:
    if part in (KILLED, STOPPED):
        assert site.broker is not None
        if part == KILLED:
            site.broker.kill()
        else:
            site.broker.stop()
        time.sleep(1)  # long enough for writes and deliveries without a broker
        site.broker.start()
        return
    killed = site.processes(part)
    assert killed, f"no {part} to kill"
    for pid in killed:
        _signal(pid, signal.SIGKILL)
    _wait(lambda: not any(map(is_alive, killed)), patience, f"the {part} to be dead")


def _write(site: Site, tag: str, numbers: range, fault: Fault) -> None:
    """Create Patients one after the other; what gets no answer because the server was killed is tried no more."""
    with httpx.Client(
        base_url=site.installation.base_url, auth=(site.client, site.secret), timeout=60
    ) as http:
        for number in numbers:
            patient = {
                "resourceType": "Patient",
                "identifier": [{"system": "urn:fault", "value": tag}],
                "multipleBirthInteger": number,
            }
            try:
                answer = http.post("/fhir/R4/Patient", json=patient)
            except httpx.TransportError:
                time.sleep(0.2)
                continue
            if answer.status_code == 201:
                fault.accepted.add(answer.json()["id"])
            else:
                assert answer.status_code in (500, 503), answer.text
                time.sleep(0.2)


def _ended(site: Site, subscription: str) -> int:
    """How many deliveries have ended; those that wait for their next attempt need wait no longer."""
    try:
        with site.database() as session:
            session.execute(
                "UPDATE bots_delivery SET due = now() WHERE state = 'retrying' AND subscription_id = %s",
                (subscription,),
            )
            row = session.execute(
                "SELECT count(*) FROM bots_delivery WHERE subscription_id = %s"
                " AND state NOT IN ('waiting', 'running', 'retrying')",
                (subscription,),
            ).fetchone()
    except psycopg.OperationalError:  # it is the one that was killed
        return 0
    return row[0] if row else 0


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _wait(condition: Any, patience: float, what: str) -> None:
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.1)


def main() -> None:
    """Inflict each fault once and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=2000)
    parser.add_argument("--part", choices=list(PARTS), action="append")
    parser.add_argument("--broker", choices=["redis", "rabbitmq"], action="append")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # whatever ends it, nothing is left running
    print("killed                  stored  accepted  runs  attempt 2+  done twice  seconds  problems")
    if options.broker:
        bad = sum(_inflict_all([KILLED, STOPPED], options.events, kind) for kind in options.broker)
    else:
        bad = _inflict_all(options.part or list(PARTS), options.events)
    raise SystemExit(bad > 0)


def _inflict_all(parts: list[str], events: int, kind: str = "") -> int:
    """Kill these parts one after the other and print a row for each; returns the number of problems."""
    folder = Path(tempfile.mkdtemp(prefix="fhirbots-faults-"))
    broker = Broker(kind, folder) if kind else None
    site = Site(folder, broker)
    bad = 0
    try:
        if broker is not None:
            broker.start()
        site.start()
        for part in parts:
            fault = inflict(site, part, events, 600)
            problems = fault.problems()
            bad += len(problems)
            again = sum(each > 1 for each in fault.attempts.values())
            print(
                f"{part.replace(KILLED, kind) if kind else part:22}  {len(fault.stored):6}  {len(fault.accepted):8}  {sum(map(len, fault.runs.values())):4}"
                f"  {again:10}  {fault.doubles():10}  {fault.seconds:7.1f}  {len(problems)}",
                flush=True,
            )
            for problem in problems[:10]:
                print("   ", problem)
    finally:
        if site.installation.process is not None:
            site.stop()
        if broker is not None and broker.process is not None:
            broker.kill()
        shutil.rmtree(folder, ignore_errors=True)
    return bad


if __name__ == "__main__":
    main()
