"""The masks of a sharded model are those of one process, to the entry."""

import itertools

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_prune import (
    Criterion,
    ERKAllocation,
    GlobalAllocation,
    LAMPAllocation,
    MagnitudeCriterion,
    NMPattern,
    OneShotSchedule,
    Pruner,
    RandomCriterion,
    Sparsity,
    UniformAllocation,
    UnstructuredPattern,
)
from lightning_prune._state import unpacked
from tests.processes import processes

RECIPES = list(
    itertools.product(
        (UniformAllocation(), ERKAllocation(), GlobalAllocation()),
        (MagnitudeCriterion(), RandomCriterion()),
        (0.3, 0.97),
    )
)


def make_net():
    """Return a net whose weights are full of ties; 33 rows divide by nothing."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(12, 33), nn.ReLU(), nn.Linear(33, 8, bias=False), nn.Conv1d(8, 2, 1)
    )
    for parameter in net.parameters():
        parameter.data = (parameter.data * 8).round() / 8
    return net


def by_fsdp(net):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    fully_shard(net[0], mesh=mesh)
    return fully_shard(net, mesh=mesh)


def by_tensor(net, mesh=None):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = mesh or init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    for module, axis in ((net[0], 0), (net[2], 1)):
        cut = distribute_tensor(module.weight.data, mesh, [Shard(axis)])
        module.weight = nn.Parameter(cut)
    return net


def by_both(net):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    return fully_shard(by_tensor(net, mesh["tensor"]), mesh=mesh["data"])


def by_hybrid(net):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    return fully_shard(net, mesh=mesh)


def pruned_once(net, allocation, criterion, sparsity, state=None):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    pruner = Pruner(
        sparsity=sparsity,
        schedule=OneShotSchedule(end=0),
        allocation=allocation,
        criterion=criterion,
        keep_zeros=True,
    )
    if state is not None:
        pruner.load_state_dict(state)
    pruner.attach(net, optimizer, steps=1)
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    pruner.before_step(optimizer)
    return pruner


def masks_of(pruner):
    state = pruner.state_dict()
    return {name: unpacked(bits, state["shapes"][name]) for name, bits in state["masks"].items()}


def masks_by_recipe(shard=lambda net: net):
    return [masks_of(pruned_once(shard(make_net()), *recipe)) for recipe in RECIPES]


@pytest.fixture(scope="module")
def two():
    with processes(2) as run:
        yield run


@pytest.fixture(scope="module")
def four():
    with processes(4) as run:
        yield run


@pytest.mark.slow
@pytest.mark.parametrize("layout", [by_fsdp, by_tensor])
def test_two_processes_choose_the_masks_of_one(layout, two):
    whole = masks_by_recipe()
    for masks in two(masks_by_recipe, layout):
        for recipe, one, other in zip(RECIPES, whole, masks, strict=True):
            for name in one:
                assert torch.equal(one[name], other[name]), (recipe, name)


@pytest.mark.slow
@pytest.mark.parametrize("layout", [by_fsdp, by_tensor, by_both, by_hybrid])
def test_four_processes_choose_the_masks_of_one(layout, four):
    whole = masks_by_recipe()
    for masks in four(masks_by_recipe, layout):
        for recipe, one, other in zip(RECIPES, whole, masks, strict=True):
            for name in one:
                assert torch.equal(one[name], other[name]), (recipe, name)
