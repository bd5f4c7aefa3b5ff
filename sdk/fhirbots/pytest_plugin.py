"""Fixtures for tests of Bots. Loaded by pytest wherever the package is installed; nothing starts before a test asks for it.

==================  ==================================================================================================
fixture             what it is
==================  ==================================================================================================
``fhirbots_server`` a throw-away server for the whole run: address and credentials of an admin client
``medplum``         a client without ``await``, signed in as that admin: to prepare and look at data
``run_bot``         ``run_bot(handler, input, secrets=…)`` runs a handler in this process, its client asks the server
``deploy_bot``      ``deploy_bot("bots/hello.py").execute(input)`` runs the file in the server's sandbox
==================  ==================================================================================================
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from fhirbots.handler import Handler
    from fhirbots.sync_client import SyncMedplumClient
    from fhirbots.testing import DeployedBot, ServerAddress


@pytest.fixture(scope="session")
def fhirbots_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerAddress]:
    """A server for the run: a new one on this machine, or the one that ``FHIRBOTS_TEST_BASE_URL``,
    ``FHIRBOTS_TEST_CLIENT_ID`` and ``FHIRBOTS_TEST_CLIENT_SECRET`` name."""
    from fhirbots.testing import LocalServer, ServerAddress  # slow to import where no test needs it

    base_url = os.environ.get("FHIRBOTS_TEST_BASE_URL")
    if base_url:
        names = ("FHIRBOTS_TEST_CLIENT_ID", "FHIRBOTS_TEST_CLIENT_SECRET")
        if missing := [name for name in names if not os.environ.get(name)]:
            pytest.fail(f"FHIRBOTS_TEST_BASE_URL is set, but not {' and '.join(missing)}", pytrace=False)
        yield ServerAddress(base_url.rstrip("/") + "/", *(os.environ[name] for name in names))
        return
    server = LocalServer(tmp_path_factory.mktemp("fhirbots"))
    try:
        yield server.start()
    finally:
        server.stop()


@pytest.fixture
def medplum(fhirbots_server: ServerAddress) -> Iterator[SyncMedplumClient]:
    """A client without ``await``, signed in as the admin of the test's project."""
    with fhirbots_server.client() as client:
        yield client


@pytest.fixture
def run_bot(fhirbots_server: ServerAddress) -> Callable[..., Any]:
    """Run a handler: ``run_bot(handler, input, content_type=…, secrets=…, requester=…, headers=…, streaming=…, previous=…)``.

    Returns what it returns; of an answer that it has streamed, the whole Response.
    """
    from fhirbots.testing import make_event  # slow to import where no test needs it

    def run(handler: Handler, input: Any = None, **event: Any) -> Any:
        return fhirbots_server.run(handler, make_event(input, **event))

    return run


@pytest.fixture
def deploy_bot(fhirbots_server: ServerAddress) -> Callable[..., DeployedBot]:
    """Deploy a file as a new Bot: ``deploy_bot("bots/hello.py", timeout=60).execute(input)``."""
    return fhirbots_server.deploy
