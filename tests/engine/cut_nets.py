"""A net, layouts that cut the net into shards, and the masks of an update."""

import pytest
import torch
from torch import nn

from lightning_prune import GlobalAllocation, MagnitudeCriterion, OneShotSchedule, Pruner
from lightning_prune.models.torch_floors import TorchFloor
from lightning_prune.tensors.bits import unpack_mask
from tests.versions import refused_before

SECTION = "Replicas and shards"
FURTHER = (GlobalAllocation(), MagnitudeCriterion(), 0.9)


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
        parameter.grad = torch.cos(3 * parameter.detach())
    pruner.before_step(optimizer)
    return pruner


def masks_of(pruner):
    state = pruner.state_dict()
    return {name: unpack_mask(bits, state["shapes"][name]) for name, bits in state["masks"].items()}


def assert_same(recipes, ones, others):
    for recipe, one, other in zip(recipes, ones, others, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            assert torch.equal(one[name], other[name]), (recipe, name)


REFUSED = refused_before(TorchFloor.UNEVEN_SHARDS)
BY_BOTH = pytest.param(by_both, marks=REFUSED)
FOUR_BY_BOTH = pytest.param("four", by_both, marks=REFUSED)
