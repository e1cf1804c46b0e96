"""A model some of whose weights are zero at once, and what operations a step makes."""

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_prune import OneShotSchedule, Pruner

STEPS = 10
AT_ONCE = OneShotSchedule(end=0, unit="step")


class Operations(TorchDispatchMode):
    """Lists the operations that are made, and of these the ones that make a new storage."""

    def __init__(self):
        super().__init__()
        self.all, self.allocating = [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {a.untyped_storage().data_ptr() for a in args if isinstance(a, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        self.all.append(name)
        if isinstance(result, torch.Tensor):
            made = {result.untyped_storage().data_ptr()} - given
            self.allocating += [name] * len(made)
        return result


def make_model(dtype=torch.float32):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 4, bias=False))
        return net.to(dtype)


def backward(model, optimizer, step=0):
    dtype = next(model.parameters()).dtype
    x = torch.randn(6, 8, generator=torch.Generator().manual_seed(step)).to(dtype)
    optimizer.zero_grad()
    model(x).square().mean().backward()


def train(model, optimizer, pruner, *, first=0, steps=1):
    for step in range(first, first + steps):
        backward(model, optimizer, step)
        pruner.before_step(optimizer)
        optimizer.step()


def assert_zeros(pruner):
    assert pruner.sparsity > 0
    for tensor in pruner.tensors:
        pruned = tensor.parameter.detach()[~tensor.mask.kept]
        assert torch.equal(pruned, torch.zeros_like(pruned))
        assert not pruned.signbit().any()


def pruned_at_once(kind=torch.optim.SGD, *, dtype=torch.float32, **options):
    """Return a model with its optimizer and its pruner, three steps after pruning."""
    model = make_model(dtype)
    options = options or {"lr": 0.1, "momentum": 0.9}
    optimizer = kind(model.parameters(), **options)
    pruner = Pruner(sparsity=0.5, schedule=AT_ONCE)
    pruner.attach(model, optimizer, steps=STEPS)
    train(model, optimizer, pruner, steps=3)
    assert_zeros(pruner)
    return model, optimizer, pruner
