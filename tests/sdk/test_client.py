"""The client for Python: each method against the real server, and what it sends (shared/medplum/client-surface.md)."""

from __future__ import annotations

import ast
import asyncio
import inspect
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fhirbots import (
    MedplumClient,
    OperationOutcomeError,
    Response,
    SyncMedplumClient,
    TransportError,
    fetch_sync,
)
from fhirbots import client as client_module
from fhirbots.make_sync import TARGET, sync_source
from fhirbots.testing import ServerAddress

PATIENT = {"resourceType": "Patient", "name": [{"family": "Sdk"}], "active": True}


class Recorder:
    """A transport that notes what is sent, and answers as it was told."""

    def __init__(self, *answers: Response | Exception) -> None:
        self.answers = list(answers)
        self.sent: list[tuple[str, str, Mapping[str, str], bytes | None]] = []

    def send(self, method: str, url: str, headers: Mapping[str, str], body: bytes | None) -> Response:
        self.sent.append((method, url, headers, body))
        answer = (
            self.answers.pop(0)
            if self.answers
            else Response(200, {"content-type": "application/json"}, b"{}")
        )
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self) -> None:
        pass


def recorded(*answers: Response | Exception, **options: Any) -> tuple[SyncMedplumClient, Recorder]:
    recorder = Recorder(*answers)
    return SyncMedplumClient("https://x.example", transport=recorder, **options), recorder


def test_the_client_without_await_is_made_from_the_other() -> None:
    assert ast.dump(ast.parse(TARGET.read_text())) == ast.dump(ast.parse(sync_source()))


def test_every_method_has_a_docstring_and_types() -> None:
    for of in (MedplumClient, SyncMedplumClient, client_module.KeyValue):
        for name, method in vars(of).items():
            if not name.startswith("_") and inspect.isfunction(method):
                assert method.__doc__, name
                assert "return" in method.__annotations__, name


def test_resources_from_birth_to_end(client: SyncMedplumClient) -> None:
    created = client.create_resource(PATIENT)
    id = created["id"]
    assert (
        client.read_resource("Patient", id)
        == created
        == client.read_reference({"reference": f"Patient/{id}"})
    )
    created["active"] = False
    updated = client.update_resource(created)
    patched = client.patch_resource("Patient", id, [{"op": "add", "path": "/gender", "value": "female"}])
    assert (updated["active"], patched["gender"]) == (False, "female")
    history = client.read_history("Patient", id)
    assert len(history["entry"]) == 3
    assert client.read_version("Patient", id, created["meta"]["versionId"])["active"] is True
    with pytest.raises(OperationOutcomeError) as caught:
        client.update_resource(created, headers={"If-Match": f'W/"{created["meta"]["versionId"]}"'})
    assert caught.value.status == 412
    client.delete_resource("Patient", id)
    with pytest.raises(OperationOutcomeError) as caught:
        client.read_resource("Patient", id)
    assert (caught.value.status, caught.value.outcome["id"]) == (410, "gone")


def test_conditional_writes_and_searches(client: SyncMedplumClient) -> None:
    identifier = {"identifier": [{"system": "urn:sdk", "value": "1"}]}
    first = client.create_resource_if_none_exist(PATIENT | identifier, {"identifier": "urn:sdk|1"})
    assert (
        client.create_resource_if_none_exist(PATIENT | identifier, "identifier=urn:sdk|1")["id"]
        == first["id"]
    )
    upserted = client.upsert_resource(PATIENT | identifier | {"gender": "male"}, {"identifier": "urn:sdk|1"})
    assert (upserted["id"], upserted["gender"]) == (first["id"], "male")
    for number in range(5):
        client.create_resource({"resourceType": "Organization", "name": f"Sdk {number}"})
    assert client.search("Organization", {"name": "Sdk", "_total": "accurate"})["total"] == 5
    one = client.search_one("Organization", {"name": ["Sdk 3", "nobody"]})
    assert one is not None
    assert one["name"] == "Sdk 3"
    assert client.search_one("Organization", "name=nobody") is None
    found = client.search_resources("Organization", [("name", "Sdk"), ("_sort", "name")])
    assert ([each["name"] for each in found][:2], found.bundle["type"]) == (["Sdk 0", "Sdk 1"], "searchset")
    pages = list(client.search_resource_pages("Organization", "name=Sdk&_count=2&_sort=name"))
    assert [len(page) for page in pages] == [2, 2, 1]
    everything = client.read_patient_everything(first["id"])
    assert everything["entry"][0]["resource"]["id"] == first["id"]


def test_batches_validation_graphql_and_files(client: SyncMedplumClient) -> None:
    bundle = {"resourceType": "Bundle", "type": "transaction", "entry": []}
    entry = {"resource": PATIENT, "request": {"method": "POST", "url": "Patient"}}
    answer = client.execute_batch(bundle | {"entry": [entry, entry]})
    assert [each["response"]["status"].partition(" ")[0] for each in answer["entry"]] == ["201", "201"]
    assert client.validate_resource(PATIENT)["resourceType"] == "OperationOutcome"
    patient = answer["entry"][0]["resource"]["id"]
    data = client.graphql(f'{{ Patient(id: "{patient}") {{ active }} }}')
    assert data["data"]["Patient"]["active"] is True
    attachment = client.create_attachment(b"\x00bytes", "x.bin", "application/octet-stream")
    assert client.download(attachment["url"]) == b"\x00bytes"
    binary = client.create_binary("text", "x.txt", "text/plain")
    assert client.download(f"Binary/{binary['id']}") == b"text"
    document = client.create_document_reference(b"%PDF", "x.pdf", "application/pdf")
    assert client.download(document["content"][0]["attachment"]["url"]) == b"%PDF"
    profile = client.get_profile()
    assert profile is not None
    assert profile["resourceType"] == "ClientApplication"
    assert client.is_project_admin()


def test_the_client_with_await_does_the_same(address: ServerAddress) -> None:
    async def story() -> list[int]:
        async with MedplumClient(address.base_url) as medplum:
            profile = await medplum.start_client_login(address.client_id, address.client_secret)
            assert profile is not None
            assert profile["id"] == address.client_id
            await asyncio.gather(
                *(medplum.create_resource({"resourceType": "Location", "name": "Sdk"}) for _ in range(3))
            )
            return [
                len(page)
                async for page in medplum.search_resource_pages("Location", {"name": "Sdk", "_count": 2})
            ]

    with ThreadPoolExecutor(1) as thread:  # Playwright leaves a running event loop in the main one
        assert thread.submit(asyncio.run, story()).result() == [2, 1]


def test_wrong_credentials_are_refused(address: ServerAddress) -> None:
    with (
        SyncMedplumClient(address.base_url) as client,
        pytest.raises(OperationOutcomeError, match="Invalid secret"),
    ):
        client.start_client_login(address.client_id, "wrong")


def test_what_is_sent_is_what_medplum_client_sends() -> None:
    client, recorder = recorded()
    client.create_resource_if_none_exist(PATIENT, {"identifier": "a|b", "active": True})
    client.patch("fhir/R4/Patient/1", [])
    client.key_value.set("a/b", "c")
    client.execute_bot({"system": "https://x", "value": "1|2"}, "words", "text/plain")
    client.post("fhir/R4/x")
    create, patch, key, bot, bare = recorder.sent
    assert create[:2] == ("POST", "https://x.example/fhir/R4/Patient")
    assert create[2]["if-none-exist"] == "identifier=a%7Cb&active=true"
    assert (create[2]["accept"], create[2]["x-medplum"]) == ("application/fhir+json, */*; q=0.1", "extended")
    assert create[2]["content-type"] == "application/fhir+json"
    assert json.loads(create[3] or b"") == PATIENT
    assert patch[2]["content-type"] == "application/json-patch+json"
    assert key[:2] == ("PUT", "https://x.example/keyvalue/v1/a%2Fb")
    assert (key[2]["content-type"], key[3]) == ("text/plain", b"c")
    assert bot[1] == "https://x.example/fhir/R4/Bot/$execute?identifier=https%3A%2F%2Fx%7C1%7C2"
    assert "content-type" not in bare[2]


@pytest.mark.parametrize(
    ("status", "content_type", "body", "text"),
    [
        (
            400,
            "application/fhir+json",
            {"resourceType": "OperationOutcome", "issue": [{"details": {"text": "No"}}]},
            "No",
        ),
        (400, "application/json", {"errorType": "x"}, '{"errorType": "x"}'),
        (400, "text/plain", "plain words", "plain words"),
        (404, "text/html", "<html>", "Not found"),
    ],
)
def test_errors_are_worded_as_medplum_client_words_them(
    status: int, content_type: str, body: Any, text: str
) -> None:
    data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    client, _ = recorded(Response(status, {"content-type": content_type}, data))
    with pytest.raises(OperationOutcomeError) as caught:
        client.get("fhir/R4/Patient/1")
    assert (str(caught.value), caught.value.status) == (text, status)


def test_a_request_is_tried_three_times(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr("time.sleep", waited.append)
    ok = Response(200, {"content-type": "application/json"}, b'{"a":1}')
    client, recorder = recorded(Response(503, {}, b""), TransportError("no network"), ok)
    assert client.post("x", {}) == {"a": 1}
    assert (len(recorder.sent), waited) == (3, [0.5, 0.75])
    client, recorder = recorded(*[Response(500, {}, b"broken")] * 4)
    with pytest.raises(OperationOutcomeError, match="broken"):
        client.get("x")
    assert len(recorder.sent) == 3
    client, recorder = recorded(Response(429, {"ratelimit": '"default";r=0;t=60'}, b"slow down"))
    with pytest.raises(OperationOutcomeError, match="slow down"):
        client.get("x")
    assert len(recorder.sent) == 1


@pytest.mark.parametrize(
    ("headers", "tries"),
    [
        ({"retry-after": "1"}, 3),
        ({"retry-after": "30"}, 1),
        ({"retry-after": "Fri, 01 Jan 2100 00:00:00 GMT"}, 1),
        ({"retry-after": "Mon, 01 Jan 2001 00:00:00 GMT"}, 3),
        ({"retry-after": "soon"}, 3),
    ],
)
def test_it_waits_as_long_as_the_server_asks_or_gives_up(
    monkeypatch: pytest.MonkeyPatch, headers: dict[str, str], tries: int
) -> None:
    waited: list[float] = []
    monkeypatch.setattr("time.sleep", waited.append)
    client, recorder = recorded(*[Response(503, headers, b"busy")] * 3)
    with pytest.raises(OperationOutcomeError, match="busy"):
        client.get("x")
    assert len(recorder.sent) == tries
    assert headers["retry-after"] != "1" or waited == [1.0, 1.0]


def test_only_the_own_server_learns_who_asks() -> None:
    options: dict[str, Any] = {
        "access_token": "the-token",
        "headers": {"Cookie": "session=1", "X-Trace-Id": "t"},
    }
    client, recorder = recorded(**options)
    client.set_basic_auth("a", "b")
    own = ("https://x.example/fhir/R4/Binary/1", "/fhir/R4/Binary/1", "Binary/1")
    others = (
        "https://files.example/fhir/R4/Binary/1",
        "https://x.example.evil.example/1",
        "https://x.example@evil.example/1",
        "http://x.example/fhir/R4/Binary/1",
        "//evil.example/1",
    )
    for url in (*own, *others):
        client.download(url)
    for number, (_, _, headers, _) in enumerate(recorder.sent):
        assert ("authorization" in headers, "cookie" in headers) == (number < len(own),) * 2
    assert "the-token" not in str([headers for _, _, headers, _ in recorder.sent[len(own) :]])
    client, recorder = recorded(Response(401, {}, b""), client_id="a", client_secret="b", access_token="t")
    with pytest.raises(OperationOutcomeError):
        client.download("https://evil.example/1")
    assert len(recorder.sent) == 1  # no new login because another server wants one


def test_a_job_is_asked_for_where_the_server_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    accepted = Response(202, {"content-location": "http://inside:8000/fhir/R4/job/1/status"}, b"")
    client, recorder = recorded(accepted, access_token="t")
    client.start_async_request("POST", "fhir/R4/$export")
    _, url, headers, _ = recorder.sent[-1]
    assert (url, headers["authorization"]) == ("https://x.example/fhir/R4/job/1/status", "Bearer t")


def test_an_id_from_data_stays_an_id() -> None:
    client, recorder = recorded()
    for id in ("../Bot/1", "..", "1?_summary=true", "1#x", "a b", "1/_history/2"):
        with pytest.raises(OperationOutcomeError, match="letters, digits, dashes and dots"):
            client.read_resource("Patient", id)
        with pytest.raises(OperationOutcomeError, match="letters, digits, dashes and dots"):
            client.update_resource({"resourceType": "Patient", "id": id})
    for reference in (
        "../x",
        "Patient/..",
        "#inside",
        "https://evil.example/Patient/1",
        "Patient?identifier=1",
    ):
        with pytest.raises(OperationOutcomeError):
            client.read_reference(reference)
    assert not recorder.sent
    client.read_reference("Patient/1/_history/2")
    assert recorder.sent[0][1] == "https://x.example/fhir/R4/Patient/1"


def test_what_cannot_be_sent_is_told_without_its_secrets(address: ServerAddress) -> None:
    for secret in ("secret-token\n", "secret-töken"):
        with (
            SyncMedplumClient(address.base_url, access_token=secret) as client,
            pytest.raises(TransportError, match="A header has a character") as caught,
        ):
            client.get("fhir/R4/Patient")
        assert "secret" not in str(caught.value).replace("secrets", "")
        assert caught.value.__cause__ is None
    for base_url in ("127.0.0.1:8000", "http://[bad"):
        with (
            SyncMedplumClient(base_url, access_token="t") as client,
            pytest.raises(TransportError, match="This is no address of a server"),
        ):
            client.get("fhir/R4/Patient")
    assert address.client_secret not in repr(address)


def test_a_server_that_is_none_says_so_at_login() -> None:
    client, _ = recorded(
        Response(200, {"content-type": "text/html"}, b"<html>"), client_id="a", client_secret="b"
    )
    with pytest.raises(OperationOutcomeError, match="is the base URL right"):
        client.get("x")


def test_a_401_makes_it_sign_in_again_once() -> None:
    json_type = {"content-type": "application/json"}
    token = Response(200, json_type, b'{"access_token":"t","expires_in":3600}')
    me = Response(200, json_type, b'{"profile":{"resourceType":"ClientApplication","id":"1"}}')
    client, recorder = recorded(
        token,
        me,
        Response(401, {}, b""),
        token,
        me,
        Response(200, json_type, b'{"a":1}'),
        client_id="a",
        client_secret="b",
    )
    assert client.get("x") == {"a": 1}
    assert [url.rpartition("/")[2] for _, url, _, _ in recorder.sent] == [
        "token",
        "me",
        "x",
        "token",
        "me",
        "x",
    ]


def test_small_rules() -> None:
    client, recorder = recorded(Response(304, {}, b""), Response(204, {}, b""))
    assert client.update_resource({"resourceType": "Patient", "id": "1", "x": 1})["x"] == 1
    assert client.delete("x") is None
    assert client.read_reference("system")["resourceType"] == "Device"
    for call in (
        lambda: client.read_resource("Patient", ""),
        lambda: client.read_reference({}),
        lambda: client.update_resource({"resourceType": "Patient"}),
        lambda: client.create_resource({}),
    ):
        with pytest.raises(OperationOutcomeError):
            call()
    assert len(recorder.sent) == 2


def test_fetch_outside_is_plain_http(address: ServerAddress) -> None:
    assert fetch_sync(f"{address.base_url}healthcheck").json()["ok"] is True
