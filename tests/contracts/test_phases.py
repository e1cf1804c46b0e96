"""Every combination of answers works with dense phases in between, or is refused by name."""

import pytest

from lightning_prune import OneShotSchedule, Phases, Pruner
from tests.contracts.test_straight_through import combine
from tests.engine.training import OPTIMIZERS, STEPS, TOTAL, Net, pruned_weights, train


@pytest.mark.parametrize(
    ("allocation", "pattern", "criterion"), combine(), ids=lambda kind: kind.__name__
)
def test_every_combination_lands_exactly_in_each_sparse_phase(allocation, pattern, criterion):
    model = Net()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    recipe = {
        "sparsity": 0.75,
        "schedule": OneShotSchedule(end=0, unit="step"),
        "allocation": allocation(),
        "pattern": pattern(),
        "criterion": criterion(),
        "phases": Phases(begin=2, end=10, rounds=2, unit="step"),
    }
    if allocation.needs_unsigned_scores and criterion.has_signed_scores:
        with pytest.raises(ValueError, match=f"{allocation.__name__}, got criterion="):
            Pruner(**recipe)
        return
    if pattern.couples_tensors:
        with pytest.raises(ValueError, match=f"need .* got pattern={pattern.__name__}"):
            Pruner(**recipe)
        return
    pruner, counts = Pruner(**recipe), []

    def check():
        assert not pruned_weights(model, pruner).any()
        counts.append(sum(int(mask.sum()) for mask in pruner.masks.values()))

    pruner.attach(model, optimizer, steps=STEPS)
    train(model, optimizer, pruner, check=check)
    pruner.detach()
    sparse, dense = round(TOTAL * 0.25), TOTAL
    assert counts == [dense] * 2 + ([sparse] * 2 + [dense] * 2) * 2 + [sparse] * 2
