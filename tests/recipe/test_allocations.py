import dataclasses

import pytest
import torch
from hypothesis import given, strategies as st

from lightning_prune import Allocation, ERKAllocation, GlobalAllocation
from lightning_prune.recipe.allocations import rescale_lamp
from lightning_prune.recipe.atoms import TensorAtoms
from lightning_prune.tensors import ranking
from tests.conftest import answers


def blank(shape):
    scores = torch.zeros(shape)
    return TensorAtoms(
        shape=tuple(shape),
        scores=scores,
        protected=ranking.choose_best(scores, 1),
        allowed=torch.ones_like(scores, dtype=torch.bool),
    )


@st.composite
def pools(draw):
    pool = {}
    for index in range(draw(st.integers(1, 4))):
        shape = (draw(st.integers(1, 6)), draw(st.integers(1, 8)))
        generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
        scores = torch.rand(shape, generator=generator).mul(5).round().div(5)
        allowed = torch.rand(shape, generator=generator) < draw(st.sampled_from([0.3, 0.9, 1.1]))
        count = draw(st.integers(0, int(allowed.sum())))
        protected = ranking.choose_best(scores.masked_fill(~allowed, -1), count) & allowed
        pool[f"t{index}"] = TensorAtoms(
            shape=shape, scores=scores, protected=protected, allowed=allowed
        )
    return pool


@pytest.mark.parametrize("kind", answers(Allocation))
@given(pool=pools(), data=st.data())
def test_an_allocation_spends_exactly_its_budget_between_floors_and_caps(kind, pool, data):
    floor, cap = (sum(getattr(a, side) for a in pool.values()) for side in ("floor", "cap"))
    due = data.draw(st.integers(floor, cap))
    keep = kind()(pool, due)
    assert list(keep) == list(pool)
    assert sum(keep.values()) == due
    for name, atoms in pool.items():
        assert atoms.floor <= keep[name] <= atoms.cap


@pytest.mark.parametrize("kind", answers(Allocation))
def test_an_allocation_is_a_value(kind):
    assert kind() == kind()
    assert dataclasses.is_dataclass(kind)
    assert hash(kind()) == hash(kind())


def test_erk_meets_the_reference(vectors):
    for case in vectors["erk"]["cases"]:
        pool = {name: blank(shape) for name, shape in case["shapes"].items()}
        total = sum(atoms.total for atoms in pool.values())
        due = ranking.number_kept(total, case["sparsity"])
        assert ERKAllocation(scale=case["scale"])(pool, due) == case["keep"]


def test_lamp_meets_the_reference(vectors):
    weights = torch.tensor(vectors["lamp"]["weights"])
    assert rescale_lamp(weights.abs()).tolist() == pytest.approx(vectors["lamp"]["scores"])


def test_lamp_counts_all_squares_at_least_as_large_when_scores_tie():
    assert rescale_lamp(torch.tensor([2.0, 2.0, 1.0])).tolist() == pytest.approx([0.5, 0.5, 1 / 9])
    assert rescale_lamp(torch.zeros(3)).tolist() == [0, 0, 0]


@given(pools(), st.data())
def test_global_keeps_the_best_of_all_scores_together(pool, data):
    free = {
        name: TensorAtoms(
            shape=atoms.shape,
            scores=atoms.scores,
            protected=torch.zeros_like(atoms.protected),
            allowed=torch.ones_like(atoms.allowed),
        )
        for name, atoms in pool.items()
    }
    everything = torch.cat([atoms.scores.flatten() for atoms in free.values()])
    due = data.draw(st.integers(0, len(everything)))
    mask = ranking.choose_best(everything, due)
    parts = mask.split([atoms.total for atoms in free.values()])
    assert list(GlobalAllocation()(free, due).values()) == [int(part.sum()) for part in parts]


@pytest.mark.parametrize("kind", answers(Allocation))
@given(pool=pools(), data=st.data())
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


def test_a_negative_scale_is_refused():
    with pytest.raises(ValueError, match="need a finite scale >= 0, got scale=-1"):
        ERKAllocation(scale=-1)
