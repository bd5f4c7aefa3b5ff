"""Binary content, presigned addresses and how attachments are folded."""

from __future__ import annotations

import base64
import io
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import boto3
import orjson
import pytest
from moto.server import ThreadedMotoServer
from pytest_django import Settings

from console.settings import _binary_storage
from fhirstore import binaries, database
from fhirstore.errors import FhirError
from fhirstore.repository import Repository
from tests.fhirstore.conftest import patient


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, settings: Settings) -> Iterator[Path]:
    """Content of this test."""
    settings.STORAGES = {
        **settings.STORAGES,
        "binary": {
            **settings.STORAGES["binary"],
            "OPTIONS": {**settings.STORAGES["binary"]["OPTIONS"], "location": tmp_path / "binary"},
        },
    }
    return tmp_path / "binary"


def content(repository: Repository, id: str, version_id: str | None = None) -> bytes:
    with repository.open_binary(id, version_id)[1] as stream:
        return stream.read()


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_content_is_kept_by_version(repository: Repository, folder: Path) -> None:
    first = repository.store_binary(b"one", "text/plain", filename="one.txt")
    assert first.resource["contentType"] == "text/plain"
    second = repository.store_binary(io.BytesIO(b"two"), "text/x-other", id=first.id)
    same = repository.store_binary(b"three", "text/x-other", id=first.id)
    assert second.version_id != same.version_id, "new content is a new version, whatever the resource says"
    assert content(repository, first.id) == b"three"
    assert content(repository, first.id, first.version_id) == b"one"
    assert content(repository, first.id, second.version_id) == b"two"
    assert repository.history("Binary", first.id)[1] == 3
    assert {path.stat().st_mode & 0o777 for path in files(folder)} == {0o600}


def test_a_binary_as_json_holds_its_content_apart(repository: Repository) -> None:
    given = {
        "resourceType": "Binary",
        "contentType": "text/plain",
        "data": base64.b64encode(b"data").decode(),
    }
    stored = repository.create(given)
    assert "data" not in stored.resource
    assert "data" in given
    assert content(repository, stored.id) == b"data"
    given |= {"id": stored.id, "data": base64.b64encode(b"changed").decode()}
    updated, made = repository.update(given)
    assert made
    assert content(repository, stored.id) == b"changed"
    security = {"reference": f"Patient/{repository.create(patient()).id}"}
    repository.update({**updated.resource, "securityContext": security})
    assert content(repository, stored.id) == b"changed", "an update without data keeps the content"
    with pytest.raises(FhirError, match="Invalid base64"):
        repository.create({**given, "data": "?"})


def test_without_a_resource_no_content_stays(repository: Repository, folder: Path) -> None:
    with pytest.raises(FhirError):
        repository.store_binary(b"x", "text/plain", id=str(uuid.uuid4()))
    with pytest.raises(FhirError):
        repository.store_binary(b"x", 5)  # type: ignore[arg-type]
    stored = repository.store_binary(b"x", "text/plain")
    with pytest.raises(FhirError):
        repository.store_binary(b"y", "text/plain", id=stored.id, if_match=str(uuid.uuid4()))
    assert len(files(folder)) == 1
    empty = repository.create({"resourceType": "Binary", "contentType": "text/plain"})
    with pytest.raises(FhirError) as missing:
        repository.open_binary(empty.id)
    assert missing.value.status == 404


def query_of(url: str) -> dict[str, str]:
    return dict(parse_qsl(urlsplit(url).query))


def test_a_presigned_url_opens_exactly_its_content_for_an_hour(
    project: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    id, version = str(uuid.uuid4()), str(uuid.uuid4())
    url = binaries.presigned_url(id, version, project)
    assert url.startswith(f"{settings.BASE_URL}storage/{id}/{version}?")
    query = query_of(url)
    assert binaries.verify(id, version, query) == project
    for forged in (
        {**query, "Project": str(uuid.uuid4())},
        {**query, "Expires": str(int(query["Expires"]) + 1)},
        {**query, "Signature": "0" * 64},
        {**query, "Signature": "ü"},
        {**query, "Expires": "soon"},
        {},
    ):
        with pytest.raises(FhirError) as refused:
            binaries.verify(id, version, forged)
        assert refused.value.status == 403
    with pytest.raises(FhirError):
        binaries.verify(str(uuid.uuid4()), version, query)
    settings.SECRET_KEY, settings.SECRET_KEY_FALLBACKS = "another", [settings.SECRET_KEY]
    assert binaries.verify(id, version, query) == project
    monkeypatch.setattr("time.time", lambda: int(query["Expires"]) + 1)
    with pytest.raises(FhirError, match="expired"):
        binaries.verify(id, version, query)


def test_attachments_are_folded_on_write_and_presigned_on_read(
    repository: Repository, settings: Settings
) -> None:
    binary = repository.store_binary(b"photo", "image/png")
    forms = [
        f"Binary/{binary.id}",
        f"{settings.BASE_URL}fhir/R4/Binary/{binary.id}",
        binaries.presigned_url(binary.id, binary.version_id, repository.identity.project),
    ]
    stored = repository.create(patient(photo=[{"url": url} for url in forms]))
    assert [photo["url"] for photo in stored.resource["photo"]] == [f"Binary/{binary.id}"] * 3
    shown: dict[str, Any] = orjson.loads(binaries.presign_urls(stored.content))
    url = shown["photo"][0]["url"]
    assert binaries.verify(binary.id, binary.version_id, query_of(url)) == repository.identity.project
    _, made = repository.update(shown)
    assert not made, "what was read can be written back"
    repository.store_binary(b"newer", "image/png", id=binary.id)
    newest = repository.read("Binary", binary.id).version_id
    assert f"/storage/{binary.id}/{newest}?".encode() in binaries.presign_urls(stored.content)


def test_other_addresses_stay_as_they_are(repository: Repository) -> None:
    unknown = f"Binary/{uuid.uuid4()}"
    urls = [
        unknown,
        "https://elsewhere.example.com/fhir/R4/Binary/1",
        "Binary/none",
        f"Binary/{uuid.uuid4()}/_history/1",
    ]
    stored = repository.create(patient(photo=[{"url": url} for url in urls]))
    assert [photo["url"] for photo in stored.resource["photo"]] == urls
    assert binaries.presign_urls(stored.content) == stored.content
    plain = repository.create(patient(name=[{"text": '"url":"Binary/x"'}]))
    assert binaries.presign_urls(plain.content) is plain.content


def test_folding_in_place() -> None:
    id = str(uuid.uuid4())
    resource = {"url": f"Binary/{id}", "items": [{"path": f"Binary/{id}", "other": 1, "text": None}]}
    binaries.fold_urls(resource)
    assert resource == {"url": f"Binary/{id}", "items": [{"path": f"Binary/{id}", "other": 1, "text": None}]}


def test_files_without_a_resource_are_found_and_removed(repository: Repository, folder: Path) -> None:
    kept = repository.store_binary(b"kept", "text/plain")

    def fail() -> None:
        with repository.transaction():
            repository.store_binary(b"orphan", "text/plain")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert len(files(folder)) == 2
    binaries.sweep()
    assert len(files(folder)) == 2, "a young file may still get its resource"
    with database.connection() as connection:
        connection.execute("UPDATE pending_file SET created = created - interval '7 hours'")
    binaries.sweep()
    assert [path.name for path in files(folder)] == [kept.version_id]
    with database.connection() as connection:
        assert not connection.execute("SELECT FROM pending_file").rowcount


def test_content_lies_in_s3_by_configuration(
    repository: Repository, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "x",
            "AWS_SECRET_ACCESS_KEY": "x",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr("console.settings.BINARY_STORAGE", "s3://patients/some/folder")
        settings.STORAGES = {**settings.STORAGES, "binary": _binary_storage()}
        bucket = boto3.resource("s3").create_bucket(Bucket="patients")
        first = repository.store_binary(b"in the cloud", "text/plain")
        repository.store_binary(io.BytesIO(b"x" * 3_000_000), "text/plain", id=first.id)
        assert content(repository, first.id, first.version_id) == b"in the cloud"
        assert content(repository, first.id) == b"x" * 3_000_000
        with pytest.raises(FhirError):
            repository.store_binary(b"y", "text/plain", id=first.id, if_match=str(uuid.uuid4()))
        names = [each.key for each in bucket.objects.all()]
        assert len(names) == 2
        assert all(name.startswith(f"some/folder/{repository.identity.project}/") for name in names)
        with pytest.raises(FhirError) as missing:
            binaries.open_content(repository.identity.project, first.id, str(uuid.uuid4()))
        assert missing.value.status == 404
    finally:
        server.stop()
