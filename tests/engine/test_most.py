"""The largest sparsity that any tensor may reach."""

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from lightning_prune import (
    ChannelPattern,
    ERKAllocation,
    GlobalAllocation,
    LAMPAllocation,
    Pruner,
    Recipe,
    UniformAllocation,
)
from tests.engine.channels import AT_ONCE, Net, start, train

SIZES = (400, 100, 50)


def prune(sparsity: object, allocation: object, most: float | None) -> dict[str, int]:
    """Prune three layers whose weights differ in size by far, and return the kept numbers."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 20), nn.Linear(20, 5), nn.Linear(5, 10))
    for layer, scale in zip(model, (1e-3, 1.0, 10.0), strict=True):
        nn.init.uniform_(layer.weight, scale, 2 * scale)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = Pruner(sparsity=sparsity, allocation=allocation, most=most, schedule=AT_ONCE)
    pruner.attach(model, optimizer, steps=1)
    model(torch.ones(1, 20)).sum().backward()
    pruner.before_step(optimizer)
    optimizer.step()
    pruner.detach()
    kept = {name: int(mask.sum()) for name, mask in pruner.masks.items()}
    assert [int((layer.weight != 0).sum()) for layer in model] == list(kept.values())
    return kept


@pytest.mark.parametrize("allocation", [ERKAllocation(), GlobalAllocation(), LAMPAllocation()])
@settings(max_examples=25)
@given(sparsity=st.floats(0, 0.95), above=st.floats(0, 0.05))
def test_a_pool_with_a_limit_for_each_tensor_still_spends_exactly(allocation, sparsity, above):
    kept = prune(sparsity, allocation, sparsity + above)
    least = [round(size * (1 - sparsity - above)) for size in SIZES]
    assert all(number >= floor for number, floor in zip(kept.values(), least, strict=True))
    assert sum(kept.values()) == max(round(sum(SIZES) * (1 - sparsity)), sum(least))


def test_global_ranking_no_longer_takes_a_whole_layer():
    kept = prune(0.8, GlobalAllocation(), None)
    assert list(kept.values()) == [1, 59, 50]
    kept = prune(0.8, GlobalAllocation(), 0.9)
    assert list(kept.values()) == [40, 20, 50]


def test_a_limit_leaves_weights_in_each_pool_of_a_mapping():
    kept = prune({"*": 0.5, "0": 0.9}, GlobalAllocation(), 0.9)
    assert list(kept.values()) == [40, 25, 50]


@pytest.mark.parametrize("allocation", [UniformAllocation(), GlobalAllocation()])
@pytest.mark.parametrize("round_to", [1, 4, 8])
def test_rounding_takes_no_channels_above_the_limit(allocation, round_to, traced_once):
    for most in (0.5, 0.55, 0.7):
        model = Net()
        pattern = ChannelPattern(round_to=round_to)
        optimizer, pruner = start(
            model, pattern=pattern, allocation=allocation, most=most, schedule=AT_ONCE
        )
        train(model, optimizer, pruner, 1)
        for group in pruner.groups:
            assert group.kept >= round(group.size * (1 - most))
            assert group.kept % round_to == 0 or group.kept == group.size


@pytest.mark.parametrize("most", [-0.1, 1.5, float("nan")])
def test_a_limit_out_of_range_is_refused(most):
    with pytest.raises(ValueError, match=f"need 0 <= most <= 1, got most={most}"):
        Recipe(most=most)


@pytest.mark.parametrize("sparsity", [None, 0.9, {"*": 0.5, "head": 0.9}])
def test_a_limit_below_a_sparsity_is_refused(sparsity):
    with pytest.raises(ValueError, match=r"need most >= sparsity, got most=0.8 and sparsity=0.9"):
        Recipe(sparsity=sparsity, most=0.8)
