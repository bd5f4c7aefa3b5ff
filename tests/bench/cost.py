"""What a run of a Bot costs: milliseconds of CPU a call, by the kind of process that spends them.

    python -m tests.bench.cost
    python -m tests.bench.cost . ../other        # two checkouts in turn: before and after

Each checkout's fhirbots is started in a temporary folder. On a machine that others use as well, times say little and CPU says
most; what is compared has to be measured in turn, and the medians of several rounds are printed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import signal
import statistics
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx

from tests.bench import load
from tests.bench.http import ECHO, HELLO, WORK, patient
from tests.conftest import free_port
from tests.platform.installation import Installation

ROLES = {
    "web": "granian",
    "worker": " console worker ",
    "postgres": "postgres",
    "sandbox": "/deno",
    "beat": " console beat ",
}
"""Kinds of processes, and what their command lines look like."""

_TICKS = os.sysconf("SC_CLK_TCK")


class Site:
    """A fhirbots with the Bots that are measured.

    Args:
        source: of its code.
        folder: for its data.
    """

    def __init__(self, source: Path, folder: Path) -> None:
        self.name = str(source)
        self._client_id, self._secret = str(uuid.uuid4()), uuid.uuid4().hex
        self.installation = Installation(
            folder / "data",
            free_port(),
            source=source.resolve(),
            FHIRBOTS_CLIENT_ID=self._client_id,
            FHIRBOTS_CLIENT_SECRET=self._secret,
        )
        self._client = httpx.Client(base_url=f"{self.installation.base_url}/fhir/R4", timeout=60)
        self.headers: dict[str, str] = {}
        self.bots: dict[str, str] = {}

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Start it, with Bots and data."""
        self.installation.start()
        try:
            self.installation.wait_until_healthy()
            self._prepare()
            yield
        finally:
            self.installation.signal(signal.SIGINT)

    def _prepare(self) -> None:
        base = self.installation.base_url
        form = {
            "grant_type": "client_credentials",
            "client_id": self._client_id,
            "client_secret": self._secret,
        }
        token = httpx.post(f"{base}/oauth2/token", data=form).json()["access_token"]
        self.headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/fhir+json"}
        self._client.headers.update(self.headers)
        project = self._client.get(f"{base}/auth/me").json()["project"]["id"]
        for name, code in {"echo": ECHO, "work": WORK, "hello": HELLO}.items():
            made = self.post(f"{base}/admin/projects/{project}/bot", {"name": name})
            self.bots[name] = made["id"]
            self.post(f"/Bot/{made['id']}/$deploy", {"code": code, "filename": "index.js"})
        channel = {
            "type": "rest-hook",
            "endpoint": f"Bot/{self.bots['hello']}",
            "payload": "application/fhir+json",
        }
        subscription = {
            "status": "active",
            "reason": "bench",
            "criteria": "Patient?family=Heard",
            "channel": channel,
        }
        self.post("/Subscription", {"resourceType": "Subscription", **subscription})

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """POST JSON, return the answer."""
        answer = self._client.post(path, content=json.dumps(body))
        answer.raise_for_status()
        found: dict[str, Any] = answer.json()
        return found

    def events(self, query: str) -> dict[str, Any]:
        """Search AuditEvents."""
        found: dict[str, Any] = self._client.get(f"/AuditEvent?{query}").json()
        return found

    def cpu(self) -> Counter[str]:
        """Milliseconds of CPU so far, by role."""
        spent: Counter[str] = Counter()
        for pid, command in self.installation.descendants().items():
            role = next((role for role, text in ROLES.items() if text in command), "other")
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                spent[role] += (int(fields[11]) + int(fields[12])) * 1000 / _TICKS  # type: ignore[assignment]
        return spent


Row = dict[str, float]


def execute(site: Site, bot: str, clients: int, calls: int) -> Row:
    """``$execute`` of a Bot: CPU by role, and calls per second."""
    url = f"{site.installation.base_url}/fhir/R4/Bot/{site.bots[bot]}/$execute"
    before = site.cpu()
    outcome = load.run(
        lambda _: load.request("POST", url, site.headers, b'{"a": 1}'),
        clients=clients,
        count=calls,
        warm_up=0,
    )
    assert not outcome.errors
    return _row(before, site.cpu(), outcome.requests) | {"rate": outcome.rate}


def subscribed(site: Site, calls: int) -> Row:
    """Creates by 8 clients, each of which sets off a run: CPU of both, and runs per second until the last one is stored."""
    url = f"{site.installation.base_url}/fhir/R4/Patient"
    body = json.dumps(patient("Heard")).encode()
    query = f"_count=0&_total=accurate&entity=Bot/{site.bots['hello']}"
    known = site.events(query)["total"]
    before, started = site.cpu(), time.perf_counter()
    load.run(lambda _: load.request("POST", url, site.headers, body), clients=8, count=calls, warm_up=0)
    while site.events(query)["total"] < known + calls:
        time.sleep(0.02)
    elapsed = time.perf_counter() - started
    return _row(before, site.cpu(), calls) | {"rate": calls / elapsed}


def latency(site: Site, calls: int) -> Row:
    """Lone writes: milliseconds from the write's ``lastUpdated`` to that of the AuditEvent of the run it sets off."""
    found = []
    before = site.cpu()
    for _ in range(calls):
        made = site.post("/Patient", patient("Heard"))
        while not (entries := site.events(f"entity=Patient/{made['id']}").get("entry")):
            time.sleep(0.03)
        stored = entries[0]["resource"]["meta"]["lastUpdated"]
        found.append((_moment(stored) - _moment(made["meta"]["lastUpdated"])).total_seconds() * 1000)
    return _row(before, site.cpu(), calls) | {"latency": statistics.median(found)}


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _row(before: Counter[str], after: Counter[str], calls: int) -> Row:
    spent = {role: (after[role] - before[role]) / calls for role in (*ROLES, "other")}
    return {"all": sum(spent.values()), **spent}


def _measures(calls: int) -> dict[str, Callable[[Site], Row]]:
    return {
        "$execute echo, 1 client": lambda site: execute(site, "echo", 1, calls),
        "$execute echo, 16 clients": lambda site: execute(site, "echo", 16, 2 * calls),
        "$execute create + search, 1": lambda site: execute(site, "work", 1, calls // 2),
        "$execute create + search, 16": lambda site: execute(site, "work", 16, calls),
        "write and Subscription, 8": lambda site: subscribed(site, calls),
        "Subscription, lone writes": lambda site: latency(site, 40),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sources", nargs="*", type=Path, default=[Path()])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--calls", type=int, default=500)
    parser.add_argument("--only", default="", help="measure only what has this in its title")
    options = parser.parse_args()
    print(f"{platform.platform()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    rows: dict[tuple[str, str], list[Row]] = {}
    with contextlib.ExitStack() as stack:
        sites = []
        for source in options.sources:
            site = Site(
                source, Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fhirbots-cost-")))
            )
            stack.enter_context(site.running())
            sites.append(site)
            for bot in ("echo", "work"):
                execute(site, bot, 16, 300)
            subscribed(site, 100)
        for _ in range(options.rounds):
            for title, measure in _measures(options.calls).items():
                for site in sites if options.only in title else ():
                    rows.setdefault((title, site.name), []).append(measure(site))
    titles = ("all", *ROLES, "other", "rate", "latency")
    print(f"{'ms of CPU a call':30} {'':24}" + "".join(f"{title:>9}" for title in titles))
    for (title, name), found in rows.items():
        values = {each: statistics.median(row[each] for row in found) for each in titles if each in found[0]}
        print(
            f"{title:30} {name[-24:]:24}"
            + "".join(f"{values[each]:9.2f}" if each in values else f"{'':9}" for each in titles)
        )


if __name__ == "__main__":
    main()
