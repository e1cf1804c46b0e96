"""Every combination of answers works with straight-through training, or is refused by name."""

import itertools

import pytest
import torch

from lightning_prune import (
    Allocation,
    Criterion,
    NMPattern,
    Pattern,
    Pruner,
    StraightThrough,
    UniformAllocation,
)
from tests.conftest import answers, answers_under_contract
from tests.engine.training import OPTIMIZERS, STEPS, TOTAL, Net, pruned_weights, train

QUESTIONS = Allocation, Pattern, Criterion
UNDER_CONTRACT = {kind for base in QUESTIONS for kind in answers_under_contract(base)}


def combine():
    """Return the combinations in which an answer under contract has a part."""
    known = (dict.fromkeys([*answers(q), *answers_under_contract(q)]) for q in QUESTIONS)
    return [each for each in itertools.product(*known) if UNDER_CONTRACT & set(each)]


@pytest.mark.parametrize(
    ("allocation", "pattern", "criterion"), combine(), ids=lambda kind: kind.__name__
)
def test_every_combination_lands_exactly_while_weights_return(allocation, pattern, criterion):
    model = Net()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    recipe = {
        "sparsity": 0.75,
        "allocation": allocation(),
        "pattern": pattern(),
        "criterion": criterion(),
        "straight_through": StraightThrough(),
    }
    if allocation.needs_unsigned_scores and criterion.has_signed_scores:
        with pytest.raises(ValueError, match=f"{allocation.__name__}, got criterion="):
            Pruner(**recipe)
        return
    if pattern.couples_tensors:
        with pytest.raises(ValueError, match=f"need .* got pattern={pattern.__name__}"):
            Pruner(**recipe)
        return
    pruner, masks, counts = Pruner(**recipe), [], []

    def check():
        assert not pruned_weights(model, pruner).any()
        masks.append(torch.cat([mask.flatten() for mask in pruner.masks.values()]))
        counts.append(int(masks[-1].sum()))
        due = TOTAL * (1 - pruner.sparsity_target)  # single tensors and blocks are rounded
        assert counts[-1] == pytest.approx(due, abs=4)

    pruner.attach(model, optimizer, steps=STEPS)
    train(model, optimizer, pruner, check=check)
    pruner.detach()
    check()
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] == round(TOTAL * 0.25)
    assert any((after & ~before).any() for before, after in itertools.pairwise(masks))
    if pattern is NMPattern and allocation is UniformAllocation:
        groups = pruner.masks["0.weight"].movedim(1, -1).reshape(-1, 4)
        assert (groups.sum(1) <= 2).all()
