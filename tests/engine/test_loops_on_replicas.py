"""Plain loops and Lightning Fabric on two processes, without a Trainer."""

import pytest
import torch
from lightning.fabric import Fabric
from lightning.fabric.strategies import ModelParallelStrategy
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lightning_prune import Pruner, StraightThrough, TaylorCriterion
from tests.commands import run_python

STEPS = 12
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("processes")]
SHOWS = pytest.mark.works_with(
    "Replicas and shards", "plain loops with DDP, and Fabric with DDP and FSDP2, without a Trainer"
)


def make_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 34), nn.ReLU(), nn.Linear(34, 4))


def train(recipe, net, model, adamw, optimizer, backward):
    """Train on data that differ between the processes; return whole masks and weights."""
    pruner = Pruner(sparsity=0.75, **recipe)
    pruner.attach(net, adamw, steps=STEPS)
    generator = torch.Generator().manual_seed(torch.distributed.get_rank())
    for _ in range(STEPS):
        optimizer.zero_grad()
        backward(model(torch.randn(8, 16, generator=generator)).square().mean())
        pruner.before_step(adamw)
        optimizer.step()
    pruner.detach()
    assert pruner.sparsity == 0.75
    values = [each.detach() for each in net.parameters()]
    return [each.full_tensor() if hasattr(each, "full_tensor") else each for each in values]


def by_ddp(recipe):
    net = make_net()
    adamw = torch.optim.AdamW(net.parameters(), lr=1e-2)
    return train(recipe, net, DistributedDataParallel(net), adamw, adamw, torch.Tensor.backward)


def shard(net, mesh):
    from torch.distributed.fsdp import fully_shard

    fully_shard(net[0], mesh=mesh["data_parallel"])
    fully_shard(net, mesh=mesh["data_parallel"])
    return net


def by_fabric(recipe, strategy):
    fabric = Fabric(accelerator="cpu", devices=2, strategy=strategy)
    fabric.launch()
    net = make_net()
    if strategy == "ddp":
        adamw = torch.optim.AdamW(net.parameters(), lr=1e-2)
        model, optimizer = fabric.setup(net, adamw)
        return train(recipe, net, model, adamw, optimizer, fabric.backward)
    model = fabric.setup(net)
    adamw = torch.optim.AdamW(model.parameters(), lr=1e-2)
    optimizer = fabric.setup_optimizers(adamw)
    return train(recipe, model.module, model, adamw, optimizer, fabric.backward)


def by_fabric_shards(recipe):
    return by_fabric(
        recipe, ModelParallelStrategy(shard, data_parallel_size=2, tensor_parallel_size=1)
    )


def by_fabric_replicas(recipe):
    return by_fabric(recipe, "ddp")


@SHOWS
@pytest.mark.parametrize(
    ("fit", "recipe"),
    [
        (by_ddp, {"criterion": TaylorCriterion()}),
        (by_ddp, {"straight_through": StraightThrough()}),
        (by_fabric_replicas, {"criterion": TaylorCriterion()}),
        (by_fabric_shards, {}),
    ],
    ids=["ddp, taylor", "ddp, straight-through", "fabric, ddp", "fabric, fsdp2"],
)
def test_all_processes_have_the_same_zeros_and_weights(fit, recipe, two):
    one, other = two(fit, recipe)
    for mine, others in zip(one, other, strict=True):
        assert torch.equal(mine, others)


def test_the_example_trains_on_two_processes():
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    address = ["--local-addr", "127.0.0.1"]
    run = run_python(*start, *address, "-m", "examples.replicas", "--epochs", "2")
    same, landed = run.stdout.splitlines()[-2:]
    assert same == "2 processes have the same masks"
    assert landed.endswith("at sparsity 0.9000")
