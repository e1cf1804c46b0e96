"""A whole copy answers questions that shards cannot; the first process asks for all."""

import gc
import threading
from functools import partial
from weakref import ref

import pytest
import torch
from torch import nn

from lightning_prune import (
    BytesBudget,
    ChannelPattern,
    GlobalAllocation,
    LatencyBudget,
    OneShotSchedule,
    Pruner,
    shrink,
)
from lightning_prune.engine.whole_copies import find_from_whole
from tests.engine.channels import Net

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("processes")]


def by_rows(net):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    return fully_shard(net, mesh=mesh)


class Tied(nn.Sequential):
    """Two layers with the same weight, a hook of the user, and a buffer."""

    def __init__(self):
        super().__init__(nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 5))
        self[2].weight = self[0].weight
        self[0].bias.requires_grad_(False)
        self.register_buffer("factor", torch.tensor(2.0))
        self[1].register_forward_hook(lambda module, arguments, output: output * self.factor)


def describe(whole):
    """Return what a copy is, as numbers and words."""
    hooks = sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in whole.modules())
    return {
        "classes": [type(part).__name__ for part in whole.modules()],
        "types": {type(parameter) for parameter in whole.parameters()},
        "trains": [parameter.requires_grad for parameter in whole.parameters()],
        "is tied": whole[0].weight is whole[2].weight,
        "hooks": hooks,
        "outputs": whole(torch.ones(2, 5)).tolist(),
        "rank": torch.distributed.get_rank() if torch.distributed.is_initialized() else 0,
    }


def describe_shards():
    """Return the description of a copy, and whether the module is as before and still trains."""
    torch.manual_seed(0)
    net = by_rows(Tied())
    copies = []
    described = find_from_whole(net, lambda whole: copies.append(ref(whole)) or describe(whole))
    gc.collect()
    assert not any(copy() for copy in copies)  # the copy is free
    before = [type(part).__name__ for part in net.modules()], len(net._forward_pre_hooks)
    net(torch.ones(2, 5)).sum().backward()
    assert net[0].weight.grad is not None
    assert before == ([type(part).__name__ for part in net.modules()], 1)
    return described


def test_a_copy_is_the_module_without_the_shards(two):
    torch.manual_seed(0)
    net = Tied()
    expected = describe(net)
    for described in two(describe_shards):
        assert described == expected


def fail(error, whole):
    raise error


def error_of(error, **attributes):
    net = by_rows(Tied())
    vars(net).update(attributes)
    with pytest.raises(Exception, match="t") as caught:
        find_from_whole(net, partial(fail, error))
    return caught.type, str(caught.value)


def errors():
    this, that = ValueError("need this"), KeyError("that")
    return [error_of(this), error_of(that), error_of(that, lock=threading.Lock())]


def test_all_processes_raise_the_error_of_the_first(two):
    first, second = two(errors)
    assert first[:2] == [(ValueError, "need this"), (KeyError, "'that'")]
    assert second[:2] == [(ValueError, "need this"), (RuntimeError, "'that'")]
    copied, told = first[2], second[2]
    assert copied == (TypeError, "cannot pickle '_thread.lock' object")
    assert told == (RuntimeError, copied[1])


class Branching(Net):
    """Branches on values, which no trace can follow."""

    def forward(self, images):
        return super().forward(images) if images.sum() > 0 else images


def refusals():
    """Return the errors of what needs a whole module, and of a module that cannot be traced."""
    cases = [
        (Net, {"budget": LatencyBudget(speedup=2.0)}),
        (Net, {"allocation": GlobalAllocation(per="latency")}),
        (Net, {"budget": BytesBudget(keep=0.5, file="onnx")}),
        (Branching, {}),
    ]
    found = []
    for kind, recipe in cases:
        net = by_rows(kind())
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        pruner = Pruner(pattern=ChannelPattern(), schedule=OneShotSchedule(end=0), **recipe)
        with pytest.raises(ValueError, match="need") as caught:
            pruner.attach(net, optimizer, steps=1)
        found.append(str(caught.value))
    with pytest.raises(ValueError, match="need whole parameters for shrink") as caught:
        shrink(by_rows(Net()))
    return [*found, str(caught.value)]


@pytest.mark.works_with(
    "Replicas and shards",
    "on shards: latencies, bytes of ONNX files, `shrink` of the sharded module",
    refused=True,
)
def test_what_needs_a_whole_module_is_refused_by_name(two):
    for budget, allocation, file, branching, shrunk in two(refusals):
        assert (
            "need whole parameters for LatencyBudget(speedup=2, runtime='onnx'), got the sharded"
            in budget
        )
        assert "need whole parameters for LatencyBudget" in allocation
        assert "BytesBudget(keep=0.5, file='onnx'), got the sharded '0.weight'" in file
        assert "use MacsBudget, ParameterBudget or BytesBudget(file='sparse')" in file
        assert "need a forward that torch.export can trace" in branching
        assert "load a checkpoint of it" in shrunk
