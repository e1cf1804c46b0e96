"""The contract of every allocation."""

import dataclasses

import pytest
from hypothesis import given, strategies as st

from lightning_prune import Allocation
from lightning_prune.recipe.atoms import TensorAtoms
from lightning_prune.tensors import ranking
from tests.conftest import answers_under_contract
from tests.recipe.atoms import assert_finds_the_most, make_pools


@pytest.mark.parametrize("kind", answers_under_contract(Allocation))
@given(pool=make_pools(), data=st.data())
def test_an_allocation_spends_exactly_its_budget_between_floors_and_caps(kind, pool, data):
    floor, cap = (sum(getattr(a, side) for a in pool.values()) for side in ("floor", "cap"))
    due = data.draw(st.integers(floor, cap))
    keep = kind()(pool, due)
    assert list(keep) == list(pool)
    assert sum(keep.values()) == due
    for name, atoms in pool.items():
        assert atoms.floor <= keep[name] <= atoms.cap


@pytest.mark.parametrize("kind", answers_under_contract(Allocation))
def test_an_allocation_is_a_value(kind):
    assert kind() == kind()
    assert dataclasses.is_dataclass(kind)
    assert hash(kind()) == hash(kind())


@pytest.mark.parametrize("kind", answers_under_contract(Allocation))
@given(pool=make_pools(), data=st.data())
def test_an_allocation_is_monotone_once_caps_are_what_is_kept(kind, pool, data):
    floor, cap = (sum(getattr(a, side) for a in pool.values()) for side in ("floor", "cap"))
    first = kind()(pool, data.draw(st.integers(floor, cap)))
    shrunk = {
        name: TensorAtoms(
            shape=atoms.shape,
            scores=atoms.scores,
            protected=atoms.protected,
            allowed=ranking.choose_best(atoms.rank(), first[name]) & atoms.allowed,
        )
        for name, atoms in pool.items()
    }
    second = kind()(shrunk, data.draw(st.integers(floor, sum(first.values()))))
    assert all(second[name] <= first[name] for name in pool)


@pytest.mark.parametrize("kind", answers_under_contract(Allocation))
@given(pool=make_pools(), data=st.data())
def test_the_most_that_fits_is_what_bisection_by_numbers_to_keep_finds(kind, pool, data):
    assert_finds_the_most(kind(), pool, data)
