import pytest
import torch
from hypothesis import given, strategies as st

from lightning_prune import ERKAllocation, GlobalAllocation, MovementCriterion, Recipe
from lightning_prune.recipe.atoms import TensorAtoms
from lightning_prune.tensors import ranking
from tests.recipe.atoms import assert_finds_the_most, make_pools
from tests.recipe.lamp import rescale_lamp


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
    assert rescale_lamp(weights.abs()) == pytest.approx(vectors["lamp"]["scores"])


def test_lamp_counts_all_squares_at_least_as_large_when_scores_tie():
    assert rescale_lamp(torch.tensor([2.0, 2.0, 1.0])) == [0.5, 0.5, 1 / 9]
    assert rescale_lamp(torch.zeros(3)) == [0, 0, 0]


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


# -- scores over savings --------------------------------------------------------------------------

PER_MACS = GlobalAllocation(per="macs")


def scored(*scores, saving=1.0, protected=0):
    values = torch.tensor(scores)
    atoms = TensorAtoms(
        shape=(1, len(scores)),
        scores=values,
        protected=ranking.choose_best(values, protected),
        allowed=torch.ones_like(values, dtype=torch.bool),
    )
    atoms.saving = saving
    return atoms


def test_atoms_that_save_more_go_sooner():
    pool = {"costly": scored(4.0, 5.0, 6.0, saving=10.0), "cheap": scored(0.45, 0.55, 0.1)}
    costly = [PER_MACS(pool, due)["costly"] for due in range(7)]
    assert costly == [0, 1, 1, 2, 2, 3, 3]  # 0.6, 0.55, 0.5, 0.45, 0.4, 0.1
    assert [GlobalAllocation()(pool, due)["costly"] for due in range(4)] == [0, 1, 2, 3]


def test_equal_savings_change_nothing():
    pool = {"a": scored(4.0, 2.0, 2.0, saving=3.0), "b": scored(2.0, 5.0, 0.0, saving=3.0)}
    for due in range(7):
        assert PER_MACS(pool, due) == GlobalAllocation()(pool, due)


def test_atoms_that_save_nothing_go_last_and_by_their_scores():
    pool = {
        "a": scored(0.1, 0.3, saving=0.0),
        "b": scored(9.0, 8.0, saving=1.0, protected=1),
        "c": scored(0.2, 0.0, saving=0.0),
    }
    counts = [tuple(PER_MACS(pool, due).values()) for due in range(1, 7)]
    assert counts == [(0, 1, 0), (1, 1, 0), (1, 1, 1), (2, 1, 1), (2, 1, 2), (2, 2, 2)]


def test_no_saving_at_all_ranks_by_scores():
    pool = {"a": scored(0.1, 0.3, saving=0.0), "b": scored(0.2, 0.4, saving=0.0)}
    for due in range(5):
        assert PER_MACS(pool, due) == GlobalAllocation()(pool, due)


def test_savings_far_apart_keep_protected_atoms():
    pool = {
        "a": scored(1e30, 2e30, saving=1e-9, protected=1),
        "b": scored(1e-30, 2e-30, saving=1e12, protected=1),
    }
    assert [PER_MACS(pool, due) for due in (2, 3, 4)] == [
        {"a": 1, "b": 1},
        {"a": 2, "b": 1},
        {"a": 2, "b": 2},
    ]


@given(make_pools(), st.data())
def test_a_budget_per_cost_is_what_bisection_by_numbers_to_keep_finds(pool, data):
    for atoms in pool.values():
        atoms.saving = data.draw(st.sampled_from([0.0, 1.0, 3.0, 1e9]))
    assert_finds_the_most(PER_MACS, pool, data)


def test_other_scores_keep_the_saving():
    assert scored(1.0, saving=7.0).rescore(torch.tensor([2.0])).saving == 7.0


def test_signed_scores_are_refused_where_savings_divide_them():
    message = (
        r"need scores >= 0 for GlobalAllocation\(per='macs'\), got criterion=MovementCriterion"
    )
    with pytest.raises(ValueError, match=message):
        Recipe(allocation=PER_MACS, criterion=MovementCriterion())
    Recipe(allocation=GlobalAllocation(isomorphic=True), criterion=MovementCriterion())


def test_an_unknown_cost_is_refused():
    with pytest.raises(TypeError, match="per"):
        GlobalAllocation(per="bytes")
