"""The unmodified npm client ``@medplum/core`` against the real server (the .mjs files hold the checks)."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from deno import find_deno_bin

if TYPE_CHECKING:
    from tests.conftest import Server

HERE = Path(__file__).parent


@pytest.mark.parametrize("checks_file", ["medplum_client.mjs", "medplum_rest.mjs", "medplum_websockets.mjs"])
def test_the_unmodified_medplum_client_works(server: Server, websocket_url: str, checks_file: str) -> None:
    ran = subprocess.run(
        [
            find_deno_bin(),
            "run",
            "--no-prompt",
            "--allow-net=127.0.0.1",
            "--allow-env",
            "--allow-read",
            HERE / checks_file,
        ],
        env={
            "BASE_URL": (websocket_url if "websockets" in checks_file else server.base_url) + "/",
            "CLIENT_ID": server.client_id,
            "CLIENT_SECRET": server.client_secret,
            "NO_COLOR": "1",
        },
        cwd=HERE.parent.parent,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    checks = [json.loads(line) for line in ran.stdout.splitlines()]
    failed = [f"{check['name']}: {check['error']}" for check in checks if check["error"]]
    assert not failed, "\n".join(failed)
    assert ran.returncode == 0, ran.stderr
    assert len(checks) == (HERE / checks_file).read_text().count("\nawait check("), ran.stderr
