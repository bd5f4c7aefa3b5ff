"""Binary content passes through the running server without being held in memory."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path

import httpx

from tests.conftest import Server

SIZE = 96 * 2**20
PIECE = bytes(range(256)) * 4096


def processes(pid: int) -> Iterator[Path]:
    """The folders in /proc of a process and all below it."""
    yield Path(f"/proc/{pid}")
    for listed in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in listed.read_text().split():
            yield from processes(int(child))


def peak(pid: int) -> int:
    """The most memory that a process and those below it have had since the last reset, in bytes."""
    total = 0
    for folder in processes(pid):
        (line,) = [line for line in (folder / "status").read_text().splitlines() if line.startswith("VmHWM")]
        total += int(line.split()[1]) * 1024
    return total


def test_a_large_file_goes_up_and_down_in_little_memory(server: Server) -> None:
    process = server.services["web"].process
    assert process is not None
    for folder in processes(process.pid):
        with contextlib.suppress(OSError):  # without it the peak so far counts, which is no less
            (folder / "clear_refs").write_text("5")
    before = peak(process.pid)
    digest = hashlib.sha256()

    def content() -> Iterator[bytes]:
        for _ in range(SIZE // len(PIECE)):
            yield PIECE

    for piece in content():
        digest.update(piece)
    with httpx.Client(
        base_url=f"{server.base_url}/fhir/R4/", auth=(server.client_id, server.client_secret), timeout=60
    ) as client:
        headers = {"content-type": "application/octet-stream", "content-length": str(SIZE)}
        made = client.post("Binary", content=content(), headers=headers)
        assert made.status_code == 201, made.text
        received = hashlib.sha256()
        with client.stream("GET", f"Binary/{made.json()['id']}", headers={"accept": "*/*"}) as answer:
            assert answer.headers["content-length"] == str(SIZE)
            for chunk in answer.iter_bytes():
                received.update(chunk)
        assert received.digest() == digest.digest()
        used = peak(process.pid) - before
        assert client.post(f"Binary/{made.json()['id']}/$expunge").status_code == 200
    assert used < 48 * 2**20, f"{used / 2**20:.0f} MiB more than before"
