"""Requests nobody would send get answers like all others: no failure of ours, no byte of another project.

``python -m tests.bench.fuzz 20000`` sends many more.
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.rest.conftest import Caller
from tests.rest.fuzzing import World, fire, limit, make_world, shots


@pytest.fixture(scope="module", params=["admin", "limited"])
def world(home: Caller, foreign: Caller, request: pytest.FixtureRequest) -> World:
    """Both projects, filled; and who asks."""
    made = make_world(home, foreign)
    if request.param == "limited":
        limit(made)
    return made


@settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(data=st.data())
def test_whatever_is_sent_is_answered(world: World, data: st.DataObject) -> None:
    for shot in data.draw(st.lists(shots(world), min_size=1, max_size=3)):
        _, wrong = fire(world, shot)
        assert wrong is None, shot
