"""A project on the running server, for clients that come from outside."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest
from fhirbots import SyncMedplumClient
from fhirbots.testing import ServerAddress

from fhirstore.bootstrap import bootstrap
from tests.conftest import Server


@pytest.fixture(scope="module")
def address(server: Server) -> ServerAddress:
    """The server, and an admin client of a new project."""
    client_id, secret = str(uuid.uuid4()), uuid.uuid4().hex
    bootstrap(
        email=f"{client_id}@example.com",
        password=uuid.uuid4().hex,
        project_name="From outside",
        client_id=client_id,
        client_secret=secret,
    )
    return ServerAddress(server.base_url.rstrip("/") + "/", client_id, secret)


@pytest.fixture(scope="module")
def client(address: ServerAddress) -> Iterator[SyncMedplumClient]:
    """A client without `await`."""
    with address.client() as client:
        yield client
