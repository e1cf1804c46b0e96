"""Each expert of a fused parameter is a matrix: masks, plans and tables follow that."""

import pytest
import torch
from torch import nn

from lightning_prune import (
    BlockPattern,
    ERKAllocation,
    NMPattern,
    OneShotSchedule,
    Pruner,
    RandomCriterion,
    Regrow,
    UniformAllocation,
    UnstructuredPattern,
    WandaCriterion,
)
from tests.models.mixtures import Experts, Feedforward, Mixture


def pruned(model, sparsity=0.5, steps=2, **recipe):
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    pruner = Pruner(sparsity=sparsity, schedule=OneShotSchedule(end=0), **recipe)
    pruner.attach(model, optimizer, steps=steps)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(16, 8)).square().mean().backward()
        pruner.before_step(optimizer)
        optimizer.step()
    pruner.detach()
    return pruner


def matrices(mask, transposed):
    """Return the mask of each expert as (outputs, inputs)."""
    return mask.mT if transposed else mask


@pytest.mark.parametrize("transposed", [False, True])
def test_two_of_four_runs_along_the_inputs_of_each_expert(transposed):
    model = Mixture(lambda: Experts(transposed=transposed))
    masks = pruned(model, pattern=NMPattern()).masks
    for name in ("experts.gate_up_proj", "experts.down_proj"):
        rows = matrices(masks[name], transposed)
        assert (rows.unflatten(2, (-1, 4)).sum(3) == 2).all()
        assert int((model.get_parameter(name) == 0).sum()) * 2 == masks[name].numel()


@pytest.mark.parametrize("transposed", [False, True])
def test_each_output_of_each_expert_is_a_row(transposed):
    model = Mixture(lambda: Experts(transposed=transposed))
    pattern = UnstructuredPattern(per_row=True)
    masks = pruned(model, pattern=pattern, allocation=UniformAllocation()).masks
    for name, kept in (("experts.gate_up_proj", 4), ("experts.down_proj", 6)):
        assert (matrices(masks[name], transposed).sum(2) == kept).all()


@pytest.mark.parametrize("transposed", [False, True])
def test_blocks_lie_inside_an_expert(transposed):
    model = Mixture(lambda: Experts(transposed=transposed))
    masks = pruned(model, pattern=BlockPattern(shape=(4, 2))).masks
    for name in ("experts.gate_up_proj", "experts.down_proj"):
        blocks = matrices(masks[name], transposed).unflatten(2, (-1, 2)).unflatten(1, (-1, 4))
        assert (blocks.sum((2, 4)) % 8 == 0).all()
    with pytest.raises(ValueError, match=r"blocks of \(16, 1\), got \(8, 12\) in .*down_proj"):
        pruned(Mixture(), pattern=BlockPattern(shape=(16, 1)))


@pytest.mark.parametrize("pattern", [NMPattern(), UnstructuredPattern(per_row=True)])
def test_experts_of_an_unknown_layout_are_refused_by_name(pattern):
    message = r"need experts with a known input axis.*got a Feedforward without.*in 'w1'"
    model = Feedforward()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = Pruner(sparsity=0.5, pattern=pattern)
    with pytest.raises(ValueError, match=message):
        pruner.attach(model, optimizer, steps=1)
    model.is_transposed = True
    pruner.attach(model, optimizer, steps=1)
    assert [tensor.name for tensor in pruner.tensors] == ["w1", "w2"]


def test_wanda_refuses_experts_by_name():
    with pytest.raises(ValueError, match=r"inputs a hook can see, got a Experts.*gate_up_proj"):
        pruned(Mixture(), criterion=WandaCriterion())


def test_experts_are_as_sparse_as_separate_matrices_of_their_shape():
    class Separate(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(8, 24, bias=False) for _ in range(4)])
            self.layers += [nn.Linear(12, 8, bias=False) for _ in range(4)]

    plans = []
    for model in (Separate(), Experts()):
        pruner = Pruner(sparsity=0.8, allocation=ERKAllocation())
        pruner.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), steps=1)
        plans.append(pruner.plan)
    apart, fused = plans
    assert fused["gate_up_proj"] == pytest.approx(apart["layers.0.weight"], abs=0.01)
    assert fused["down_proj"] == pytest.approx(apart["layers.7.weight"], abs=0.01)


@pytest.mark.parametrize("transposed", [False, True])
def test_experts_regrow_inside_the_pattern(transposed):
    model = Mixture(lambda: Experts(transposed=transposed))
    regrow = Regrow(criterion=RandomCriterion())
    pruner = pruned(model, 0.75, steps=4, regrow=regrow, pattern=NMPattern())
    for name in ("experts.gate_up_proj", "experts.down_proj"):
        groups = matrices(pruner.masks[name], transposed).unflatten(2, (-1, 4)).sum(3)
        assert int(groups.max()) == 2
        assert int(groups.sum()) * 4 == pruner.masks[name].numel()


def test_the_sizes_of_all_parameters_are_known():
    model = Mixture()
    pruner = pruned(model)
    assert sum(pruner.sizes.values()) == sum(p.numel() for p in model.parameters())
    assert pruner.sizes["gate.weight"] == 32
    assert pruner.dense["gate.weight"] == "router"
