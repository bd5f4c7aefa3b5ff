"""No event is lost, whichever process dies: `tests.faults.faults` with few events."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.faults import PARTS, Site, inflict

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def site(assets: None) -> Iterator[Site]:
    """A fhirbots of its own, with the supervisor that starts dead processes again."""
    folder = Path(tempfile.mkdtemp(prefix="fhirbots-faults-"))
    made = Site(folder)
    made.start()
    yield made
    made.stop()
    shutil.rmtree(folder)


@pytest.mark.parametrize("part", PARTS)
def test_every_event_has_its_run_when_a_process_is_killed(site: Site, part: str) -> None:
    fault = inflict(site, part, 60, 120)
    assert fault.problems() == []
    assert fault.accepted
