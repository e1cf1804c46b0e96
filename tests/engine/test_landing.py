"""A budget is landed on at the most that fits: the next atom of the allocation would not."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from lightning_prune import (
    ChannelPattern,
    ERKAllocation,
    GlobalAllocation,
    LAMPAllocation,
    MacsBudget,
    ParameterBudget,
    Pruner,
    UniformAllocation,
)
from lightning_prune.recipe.atoms import TensorAtoms
from tests.engine.channels import AT_ONCE, Net, Residual, start, train

WIDTHS = st.lists(st.integers(1, 12), min_size=3, max_size=5)


class Layers(nn.Sequential):
    """Layers without biases; a weight of a layer multiplies for each of a number of positions."""

    def __init__(self, widths: list[int], positions: list[int]) -> None:
        pairs = zip(widths[:-1], widths[1:], positions, strict=False)
        self.macs = {}
        layers: list[nn.Module] = []
        for index, (inputs, outputs, length) in enumerate(pairs):
            layers += [nn.AdaptiveAvgPool1d(length), nn.Conv1d(inputs, outputs, 1, bias=False)]
            self.macs[f"{2 * index + 1}.weight"] = length
        super().__init__(*layers)
        for layer in layers[1::2]:
            layer.weight.data = (layer.weight.data * 16).round() / 16 + 1 / 32  # ties, but no 0
        self.example_input_array = torch.zeros(1, widths[0], 5)

    def atoms(self) -> dict[str, TensorAtoms]:
        """Return the atoms as an allocation sees them; the best of a layer stays."""
        atoms = {}
        for name, weight in self.named_parameters():
            scores = weight.detach().abs()
            best = torch.zeros(scores.numel(), dtype=torch.bool)
            best[scores.flatten().argmax()] = True
            allowed = torch.ones_like(scores, dtype=torch.bool)
            atoms[name] = TensorAtoms(
                shape=tuple(scores.shape),
                scores=scores,
                protected=best.view(scores.shape),
                allowed=allowed,
            )
        return atoms


def land(model: Any, budget: Any, allocation: Any) -> tuple[dict[str, int], Pruner]:
    """Prune in one update, and return the kept numbers."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    pruner = Pruner(budget=budget, allocation=allocation, schedule=AT_ONCE)
    pruner.attach(model, optimizer, steps=1)
    model(torch.ones_like(model.example_input_array)).sum().backward()
    pruner.before_step(optimizer)
    optimizer.step()
    pruner.detach()
    return {name: int((p != 0).sum()) for name, p in model.named_parameters()}, pruner


def make(draw: Any) -> tuple[Layers, Any, Any]:
    """Draw a model, a budget that can be reached, and the cost of kept numbers."""
    widths = draw(WIDTHS)
    torch.manual_seed(draw(st.integers(0, 99)))
    model = Layers(widths, draw(st.lists(st.integers(1, 9), min_size=4, max_size=4)))
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    by_macs = draw(st.booleans())
    prices = {name: model.macs[name] if by_macs else 1 for name in sizes}
    dense, least = sum(prices[n] * sizes[n] for n in sizes), sum(prices.values())
    limit = draw(st.integers(min(least, dense - 1), dense - 1))
    budget = (MacsBudget if by_macs else ParameterBudget)(at_most=max(limit, 1))
    return model, budget, lambda kept: sum(prices[name] * kept[name] for name in sizes)


@pytest.mark.parametrize(
    "allocation",
    [ERKAllocation(), ERKAllocation(scale=0), GlobalAllocation(), LAMPAllocation()],
)
@settings(max_examples=40)
@given(data=st.data())
def test_a_pool_keeps_the_most_that_fits(allocation, data):
    model, budget, cost = make(data.draw)
    atoms, limit = model.atoms(), budget.at_most
    floors = sum(each.floor for each in atoms.values())
    if cost(allocation(atoms, floors)) > limit:
        with pytest.raises(ValueError, match="need a budget that can be reached"):
            land(model, budget, allocation)
        return
    kept, pruner = land(model, budget, allocation)
    due = sum(kept.values())
    assert kept == allocation(atoms, due)
    assert cost(kept) == pruner.spending[0].cost <= limit < cost(allocation(atoms, due + 1))


@settings(max_examples=60)
@given(data=st.data())
def test_tensors_of_the_same_sparsity_take_atoms_in_turn(data):
    model, budget, cost = make(data.draw)
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    kept = dict.fromkeys(sizes, 1)
    if cost(kept) > budget.at_most:
        return  # the test above shows the error
    shares = [
        ((number - 0.5) / size, place, name)
        for place, (name, size) in enumerate(sizes.items())
        for number in range(2, size + 1)
    ]
    for _, _, name in sorted(shares):  # the sparsity falls: which tensor takes the next atom
        if cost(kept | {name: kept[name] + 1}) > budget.at_most:
            break
        kept[name] += 1
    found, _ = land(model, budget, UniformAllocation())
    assert all(abs(found[name] - kept[name]) <= 1 for name in sizes)  # halves round to even
    assert cost(found) <= budget.at_most


@pytest.mark.parametrize("allocation", [UniformAllocation(), GlobalAllocation()])
@pytest.mark.parametrize("round_to", [1, 4, 8])
@pytest.mark.parametrize("make_model", [Net, Residual])
def test_one_more_step_of_channels_would_exceed_the_budget(
    make_model, round_to, allocation, traced_once
):
    for keep in (0.9, 0.7):
        model = make_model()
        optimizer, pruner = start(
            model,
            sparsity=None,
            budget=MacsBudget(keep=keep),
            pattern=ChannelPattern(round_to=round_to, scope="all"),
            allocation=allocation,
            schedule=AT_ONCE,
        )
        train(model, optimizer, pruner, 1)
        (expense,) = pruner.spending
        kept = {group.name: group.kept for group in pruner.groups}
        wider = {group.name: min(group.kept + round_to, group.size) for group in pruner.groups}
        assert expense.cost <= expense.limit.final < expense.limit.cost(wider)
        assert any(
            expense.limit.cost(kept | {name: number}) > expense.limit.final
            for name, number in wider.items()
        )
