"""Every combination of answers lands exactly, or is refused by the names of the two that clash."""

import itertools

import pytest
import torch

from lightning_prune import (
    Allocation,
    ChannelPattern,
    Criterion,
    NMPattern,
    Pattern,
    Pruner,
    Schedule,
    UniformAllocation,
)
from tests.conftest import answers, answers_under_contract
from tests.engine.training import EXAMPLE, OPTIMIZERS, STEPS, TOTAL, Net, pruned_weights, train

QUESTIONS = {
    "schedule": Schedule,
    "allocation": Allocation,
    "pattern": Pattern,
    "criterion": Criterion,
}
UNDER_CONTRACT = {kind for base in QUESTIONS.values() for kind in answers_under_contract(base)}


def combine():
    """Return the combinations in which an answer under contract has a part."""
    known = (
        dict.fromkeys(
            kind
            for kind in [*answers(question), *answers_under_contract(question)]
            if not getattr(kind, "spans_branches", False)  # the network has no branches
        )
        for question in QUESTIONS.values()
    )
    everything = itertools.product(*known, OPTIMIZERS)
    return [combination for combination in everything if UNDER_CONTRACT & set(combination)]


@pytest.mark.parametrize(
    ("schedule", "allocation", "pattern", "criterion", "optimizer"),
    combine(),
    ids=lambda part: part if isinstance(part, str) else part.__name__,
)
def test_every_combination_lands_exactly_and_holds_its_zeros(
    schedule, allocation, pattern, criterion, optimizer, traced_once
):
    model = Net()
    optimizer = OPTIMIZERS[optimizer](model.parameters())
    recipe = {
        "sparsity": 0.75,
        "schedule": schedule(),
        "allocation": allocation(),
        "pattern": pattern(),
        "criterion": criterion(),
    }
    if allocation.needs_unsigned_scores and criterion.has_signed_scores:
        names = f"{allocation.__name__}, got criterion={criterion.__name__}"
        with pytest.raises(ValueError, match=names):
            Pruner(**recipe)
        return
    if allocation.needs_single_tensors and pattern.couples_tensors:
        names = f"{allocation.__name__}, got pattern={pattern.__name__}"
        with pytest.raises(ValueError, match=names):
            Pruner(**recipe)
        return
    pruner = Pruner(**recipe)
    masks = []

    def check():
        assert not pruned_weights(model, pruner).any()
        now = torch.cat([mask.flatten() for mask in pruner.masks.values()])
        assert not masks or not (now & ~masks[-1]).any()  # what is pruned stays pruned
        masks.append(now.clone())
        for tensor in pruner.tensors:
            for value in optimizer.state[tensor.parameter].values():
                if value.shape == tensor.mask.shape:
                    assert not value[~tensor.mask.kept].any()

    pruner.attach(model, optimizer, steps=STEPS, example=EXAMPLE)
    train(model, optimizer, pruner, check=check)
    pruner.detach()
    zeros = sum(int((t.parameter == 0).sum()) for t in pruner.tensors)
    if pattern is ChannelPattern:  # five of twenty are due, and 8 stay
        assert zeros == 12 * 40 + 4 * 12
        assert (pruner.sparsity, pruner.sparsity_target) == (1 - 8 / 20, 0.75)
        return
    assert zeros == TOTAL - round(TOTAL * 0.25)
    assert pruner.sparsity == pruner.sparsity_target == 0.75
    if pattern is NMPattern and allocation is UniformAllocation:
        groups = pruner.masks["0.weight"].movedim(1, -1).reshape(-1, 4)
        assert (groups.sum(1) <= 2).all()
