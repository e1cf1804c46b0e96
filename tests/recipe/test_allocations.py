import pytest
import torch
from hypothesis import given, strategies as st

from lightning_prune import ERKAllocation, GlobalAllocation
from lightning_prune.recipe.allocations import rescale_lamp
from lightning_prune.recipe.atoms import TensorAtoms
from lightning_prune.tensors import ranking
from tests.recipe.atoms import make_pools


def blank(shape):
    scores = torch.zeros(shape)
    return TensorAtoms(
        shape=tuple(shape),
        scores=scores,
        protected=ranking.choose_best(scores, 1),
        allowed=torch.ones_like(scores, dtype=torch.bool),
    )


def test_erk_meets_the_reference(vectors):
    for case in vectors["erk"]["cases"]:
        pool = {name: blank(shape) for name, shape in case["shapes"].items()}
        total = sum(atoms.total for atoms in pool.values())
        due = ranking.compute_keep(total, case["sparsity"])
        assert ERKAllocation(scale=case["scale"])(pool, due) == case["keep"]


def test_lamp_meets_the_reference(vectors):
    weights = torch.tensor(vectors["lamp"]["weights"])
    assert rescale_lamp(weights.abs()).tolist() == pytest.approx(vectors["lamp"]["scores"])


def test_lamp_counts_all_squares_at_least_as_large_when_scores_tie():
    assert rescale_lamp(torch.tensor([2.0, 2.0, 1.0])).tolist() == pytest.approx([0.5, 0.5, 1 / 9])
    assert rescale_lamp(torch.zeros(3)).tolist() == [0, 0, 0]


@given(make_pools(), st.data())
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


def test_a_negative_scale_is_refused():
    with pytest.raises(ValueError, match="need a finite scale >= 0, got scale=-1"):
        ERKAllocation(scale=-1)
