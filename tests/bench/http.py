"""The rows of design.md §7 against a running fhirbots, beside real Medplum's figures.

    python -m tests.bench.http --base-url http://127.0.0.1:8000 --client-id … --client-secret …

The server is started beforehand (``manage.py start``); the data this makes stays in the client's project.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
import uuid

import httpx

from tests.bench import load

MEDPLUM = {
    "GET Patient/{id}": (690, 1790),
    "POST Patient": (264, 589),
    "GET Patient?family=Smith&_count=20": (415, 743),
    "$execute echo, AuditEvent stored": (138, 225),
    "$execute with create + search": (62, 111),
    "$execute echo in Python": (138, 225),
    "$execute in Python with create + search": (62, 111),
}
"""req/s of Medplum 5.0.10 on the same kind of machine at 1 and 16 clients (design.md §7); transactions were not measured."""

ECHO = "exports.handler = async function (medplum, event) { return event.input; };"
WORK = """
exports.handler = async function (medplum, event) {
  const created = await medplum.createResource({ resourceType: 'Patient', name: [{ family: 'Bench', given: ['B'] }] });
  const found = await medplum.searchResources('Patient', { _id: created.id });
  return { found: found.length };
};
"""
PYTHON_ECHO = "async def handler(medplum, event):\n    return event.input\n"
PYTHON_WORK = """
async def handler(medplum, event):
    created = await medplum.create_resource({"resourceType": "Patient", "name": [{"family": "Bench", "given": ["B"]}]})
    return {"found": len(await medplum.search_resources("Patient", {"_id": created["id"]}))}
"""
HELLO = "exports.handler = async function (medplum, event) { console.log('Hello world'); };"


def patient(family: str) -> dict[str, object]:
    """A Patient of ordinary size."""
    return {
        "resourceType": "Patient",
        "identifier": [{"system": "https://example.com/mrn", "value": uuid.uuid4().hex}],
        "name": [{"family": family, "given": ["Jane", "Q"]}],
        "gender": "female",
        "birthDate": "1980-02-03",
        "telecom": [{"system": "phone", "value": "+1 555 0100"}],
        "address": [{"line": ["1 Main St"], "city": "Springfield", "state": "IL", "postalCode": "62701"}],
    }


def main() -> None:
    """Run the rows and print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base-url", default="http://127.0.0.1:8000")
    parser.add_argument("--client-id", default=os.environ.get("FHIRBOTS_CLIENT_ID"))
    parser.add_argument("--client-secret", default=os.environ.get("FHIRBOTS_CLIENT_SECRET"))
    parser.add_argument("--patients", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=5)
    options = parser.parse_args()
    base = options.base_url.rstrip("/")
    fhir = f"{base}/fhir/R4"
    client = httpx.Client(timeout=120)
    token = client.post(
        f"{base}/oauth2/token",
        data={
            "grant_type": "client_credentials",
            "client_id": options.client_id,
            "client_secret": options.client_secret,
        },
    ).json()["access_token"]
    headers = {"Authorization": f"Bearer {token}", "X-Medplum": "extended"}
    json_headers = {**headers, "Content-Type": "application/fhir+json"}
    client.headers.update(json_headers)
    print(f"{platform.platform()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")

    smiths = client.get(f"{fhir}/Patient?family=Smith&_count=0&_total=accurate").json().get("total", 0)
    others = client.get(f"{fhir}/Patient?_count=0&_total=accurate").json().get("total", 0)
    missing = ["Smith"] * max(0, 100 - smiths)
    missing += [f"Family{n % 997}" for n in range(max(0, options.patients - others - len(missing)))]
    for start in range(0, len(missing), 100):
        entries = [
            {"request": {"method": "POST", "url": "Patient"}, "resource": patient(family)}
            for family in missing[start : start + 100]
        ]
        answer = client.post(
            fhir, content=json.dumps({"resourceType": "Bundle", "type": "transaction", "entry": entries})
        )
        answer.raise_for_status()
    one = client.post(f"{fhir}/Patient", content=json.dumps(patient("Single"))).json()["id"]

    project = client.get(f"{base}/auth/me").json()["project"]["id"]

    def bot(name: str, code: str, filename: str = "index.js") -> str:
        made = client.post(f"{base}/admin/projects/{project}/bot", content=json.dumps({"name": name})).json()[
            "id"
        ]
        client.post(
            f"{fhir}/Bot/{made}/$deploy", content=json.dumps({"code": code, "filename": filename})
        ).raise_for_status()
        return str(made)

    echo, work, hello = bot("bench echo", ECHO), bot("bench work", WORK), bot("bench hello", HELLO)
    python_echo = bot("bench Python echo", PYTHON_ECHO, "index.py")
    python_work = bot("bench Python work", PYTHON_WORK, "index.py")
    body = json.dumps(patient("Posted")).encode()
    entry = {"request": {"method": "POST", "url": "Patient"}, "resource": patient("Posted")}
    bundle = json.dumps({"resourceType": "Bundle", "type": "transaction", "entry": [entry] * 100}).encode()
    rows = [
        ("GET Patient/{id}", lambda _: load.request("GET", f"{fhir}/Patient/{one}", headers)),
        ("POST Patient", lambda _: load.request("POST", f"{fhir}/Patient", json_headers, body)),
        (
            "GET Patient?family=Smith&_count=20",
            lambda _: load.request("GET", f"{fhir}/Patient?family=Smith&_count=20", headers),
        ),
        ("transaction of 100 Patients", lambda _: load.request("POST", fhir, json_headers, bundle)),
        (
            "$execute echo, AuditEvent stored",
            lambda _: load.request("POST", f"{fhir}/Bot/{echo}/$execute", json_headers, b'{"a": 1}'),
        ),
        (
            "$execute with create + search",
            lambda _: load.request("POST", f"{fhir}/Bot/{work}/$execute", json_headers, b'{"a": 1}'),
        ),
        (
            "$execute echo in Python",
            lambda _: load.request("POST", f"{fhir}/Bot/{python_echo}/$execute", json_headers, b'{"a": 1}'),
        ),
        (
            "$execute in Python with create + search",
            lambda _: load.request("POST", f"{fhir}/Bot/{python_work}/$execute", json_headers, b'{"a": 1}'),
        ),
    ]
    for title, make in rows:
        for clients, medplum in zip((1, 16), MEDPLUM.get(title, (0, 0)), strict=True):
            result = load.run(make, clients=clients, seconds=options.seconds)
            beside = f"  {result.rate / medplum:5.1f} x Medplum" if medplum else ""
            print(f"{title:40} {clients:3} clients {result.row()}{beside}")

    subscription = client.post(
        f"{fhir}/Subscription",
        content=json.dumps(
            {
                "resourceType": "Subscription",
                "status": "active",
                "reason": "bench",
                "criteria": "Patient?family=Latency",
                "channel": {
                    "type": "rest-hook",
                    "endpoint": f"Bot/{hello}",
                    "payload": "application/fhir+json",
                },
            }
        ),
    ).json()["id"]

    def events() -> int:
        found = client.get(
            f"{fhir}/AuditEvent?entity=Subscription/{subscription}&_count=0&_total=accurate"
        ).json()
        return int(found.get("total", 0))

    latencies = []
    for _ in range(40):
        before = events()
        started = time.perf_counter()
        client.post(f"{fhir}/Patient", content=json.dumps(patient("Latency")))
        while events() == before:
            pass
        latencies.append((time.perf_counter() - started) * 1000)
    latencies.sort()
    print(
        f"Subscription, POST Patient to AuditEvent visible: p50 {latencies[20]:.1f} ms, p95 {latencies[37]:.1f} ms"
        f"  (Medplum 20 ms, {20 / latencies[20]:.1f} x)"
    )
    before = events()
    posted = json.dumps(patient("Latency")).encode()
    started = time.perf_counter()
    load.run(
        lambda _: load.request("POST", f"{fhir}/Patient", json_headers, posted),
        clients=8,
        count=500,
        warm_up=0,
    )
    while events() < before + 500:
        time.sleep(0.01)
    elapsed = time.perf_counter() - started
    print(
        f"Subscription, 500 creates to 500 AuditEvents: {elapsed:.2f} s = {500 / elapsed:.0f} runs/s"
        f"  (Medplum 128 runs/s, {500 / elapsed / 128:.1f} x)"
    )


if __name__ == "__main__":
    main()
