"""Residual branches under pruning: counted, priced, saved and restored as atoms."""

import io

import pytest
import torch

from lightning_prune import (
    BranchPattern,
    BytesBudget,
    GlobalAllocation,
    GrowingPenalty,
    LatencyBudget,
    MacsBudget,
    ParameterBudget,
    Recipe,
    TaylorCriterion,
    UniformAllocation,
    report,
    shrink,
)
from lightning_prune.engine.overview import pruning_table
from tests.engine.branches import STEPS, ResNet, Transformer, batch, prune, start, train


@pytest.mark.parametrize("kind", ["sgd", "adamw", "adagrad"])
@pytest.mark.parametrize("make", [ResNet, Transformer])
def test_a_pruned_branch_is_zero_at_every_step_and_adds_nothing(make, kind):
    model = make()
    optimizer, pruner = start(model, kind, sparsity=0.5)
    kept = []

    def check():
        for group in pruner.groups:
            for member in group.members:
                alive = bool(group.alive()[group.branch_of[member.name]])
                assert bool(member.parameter.count_nonzero()) <= alive
        kept.append(sum(group.kept for group in pruner.groups))

    train(model, optimizer, pruner, check=check)
    assert kept == sorted(kept, reverse=True)
    assert kept[-1] == sum(group.total for group in pruner.groups) / 2
    assert pruner.sparsity == pruner.sparsity_target == 0.5


def test_the_branches_with_the_lowest_mean_score_go():
    model = Transformer()
    with torch.no_grad():
        for parameter in model.blocks[1].attention.parameters():
            parameter.mul_(1e-3)
    pruner = prune(model, sparsity=0.25)
    attention, feed_forward = pruner.groups
    assert attention.alive().tolist() == [True, False]
    assert feed_forward.alive().tolist() == [True, True]


@pytest.mark.rare
@pytest.mark.parametrize("criterion", [None, TaylorCriterion()], ids=str)
@pytest.mark.parametrize("allocation", [None, UniformAllocation(), GlobalAllocation(per="macs")])
@pytest.mark.parametrize("budget", [MacsBudget(keep=0.6), ParameterBudget(keep=0.6)], ids=str)
@pytest.mark.parametrize("make", [ResNet, Transformer])
def test_a_budget_counts_what_remains_without_the_branches(make, budget, allocation, criterion):
    model = make()
    pruner = prune(model, budget=budget, allocation=allocation, criterion=criterion)
    (expense,) = pruner.spending
    assert expense.share <= 0.6
    smaller = shrink(model)
    assert smaller.zero_channels_left == {}
    if expense.unit == "parameters":
        assert expense.cost == sum(parameter.numel() for parameter in smaller.parameters())
    else:
        layers = report(smaller, example=batch(model)[:1], latency=False).layers
        assert expense.cost == 2 * sum(layer.effective_macs for layer in layers)


def test_a_resumed_training_goes_on_bit_for_bit():
    def run(stop):
        torch.manual_seed(0)
        model = Transformer()
        recipe = {"sparsity": 0.75, "penalty": GrowingPenalty(largest=3.0, ahead=0.5)}
        optimizer, pruner = start(model, **recipe)
        train(model, optimizer, pruner, steps=stop)
        if stop < STEPS:
            file = io.BytesIO()
            torch.save((model.state_dict(), optimizer.state_dict(), pruner.state_dict()), file)
            file.seek(0)
            weights, moments, state = torch.load(file, weights_only=True)
            pruner.detach(completed=False)
            model = Transformer()
            model.load_state_dict(weights)
            optimizer, pruner = start(model, state=state, **recipe)
            optimizer.load_state_dict(moments)
            train(model, optimizer, pruner, first=stop, steps=STEPS - stop)
        return model.state_dict()

    whole = run(STEPS)
    for stop in (3, 5, 7):
        resumed = run(stop)
        assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_training_can_lose_all_branches_and_resume():
    model = ResNet()
    optimizer, pruner = start(model, budget=ParameterBudget(keep=0.33))
    train(model, optimizer, pruner, steps=STEPS)
    pruner.detach()
    assert pruner.sparsity == 1.0
    state = pruner.state_dict()
    _, again = start(model, budget=ParameterBudget(keep=0.33), state=state)
    assert again.sparsity == 1.0
    _, kept = start(model, sparsity=0.5, keep_zeros=True)
    assert kept.sparsity == 1.0


def test_a_glob_leaves_branches_dense():
    _, pruner = start(Transformer(), sparsity={"*": 0.5, "blocks.0.*": None})
    assert [group.total for group in pruner.groups] == [1, 1]
    assert pruner.dense["blocks.0.up.weight"] == "sparsity null"
    assert pruner.dense["blocks.0.norm2.weight"] == "sparsity null"


def test_a_branch_with_a_frozen_weight_stays_dense():
    model = Transformer()
    model.blocks[0].up.requires_grad_(False)
    _, pruner = start(model, sparsity=0.5)
    assert [group.total for group in pruner.groups] == [2, 1]
    assert pruner.dense["blocks.0.down.weight"] == "goes with 'blocks.0.up.weight': frozen"
    assert pruner.may_grow


def test_different_sparsities_in_a_branch_are_refused():
    with pytest.raises(ValueError, match="need one sparsity for the weights of a branch"):
        start(Transformer(), sparsity={"*": 0.5, "blocks.0.up": 0.9})


@pytest.mark.parametrize("budget", [LatencyBudget(speedup=2.0), BytesBudget(keep=0.5)], ids=str)
def test_a_cost_that_is_not_known_for_branches_is_refused(budget):
    with pytest.raises(ValueError, match=r"got pattern=BranchPattern\(\); use MacsBudget or Param"):
        Recipe(pattern=BranchPattern(), budget=budget)


def test_latencies_of_branches_are_refused():
    with pytest.raises(ValueError, match=r"got allocation=.* with pattern=BranchPattern\(\)"):
        Recipe(pattern=BranchPattern(), allocation=GlobalAllocation(per="latency"))


def test_the_table_counts_branches():
    pruner = prune(Transformer(), sparsity=0.5)
    text = str(pruning_table(pruner))
    assert "branches like that of" in text
    assert "removing the pruned branches takes away" in text
