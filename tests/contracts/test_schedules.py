"""The contract of every schedule."""

import dataclasses

import pytest
from hypothesis import given, strategies as st

from lightning_prune import Schedule
from tests.conftest import answers_under_contract

moments = st.floats(0, 1)


@pytest.mark.parametrize("kind", answers_under_contract(Schedule))
@given(earlier=moments, later=moments)
def test_a_schedule_stays_in_bounds_and_never_falls(kind, earlier, later):
    schedule = kind()
    earlier, later = sorted((earlier, later))
    assert 0 <= schedule(earlier) <= schedule(later) <= 1
    assert schedule(schedule.end) == schedule(1.0) == 1


@pytest.mark.parametrize("kind", answers_under_contract(Schedule))
@given(earlier=moments, later=moments)
def test_due_points_are_passed_points_and_never_go_back(kind, earlier, later):
    schedule = kind()
    earlier, later = sorted((earlier, later))
    first, second = schedule.last_due(earlier), schedule.last_due(later)
    assert schedule.last_due(1.0) == schedule.end
    if first is None:
        assert schedule(earlier) == 0
    else:
        assert first <= earlier + 1e-9
        assert second >= first


@pytest.mark.parametrize("kind", answers_under_contract(Schedule))
def test_a_schedule_is_a_value(kind):
    assert kind() == kind()
    with pytest.raises(dataclasses.FrozenInstanceError):
        kind().unit = "step"
