"""Optimizers and models that other libraries have wrapped."""

import warnings

import pytest
import torch
from lightning.fabric import Fabric
from torch import nn

from lightning_prune import Pruner, StraightThrough
from tests.engine.training import OPTIMIZERS, STEPS, TOTAL, Net, pruned_weights
from tests.hooks import hooks


class AcceleratedOptimizer(torch.optim.Optimizer):
    """As Accelerate writes it: without the constructor of the base class."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    @property
    def param_groups(self):
        return self.optimizer.param_groups

    @property
    def state(self):
        return self.optimizer.state

    def step(self, closure=None):
        self.optimizer.step(closure)


class Lookahead(torch.optim.Optimizer):
    """As timm writes it: the slow weights are a statistic of the optimizer inside."""

    def __init__(self, optimizer):
        self._base_optimizer, self.param_groups = optimizer, optimizer.param_groups
        self.state, self.steps = {}, 0  # the state stays empty

    @torch.no_grad()
    def step(self, closure=None):
        self._base_optimizer.step(closure)
        self.steps += 1
        if self.steps % 2 == 0:
            for fast in self.param_groups[0]["params"]:
                state = self._base_optimizer.state[fast]
                slow = state.setdefault("lookahead_slow_buff", fast.clone())
                slow.add_(fast - slow, alpha=0.5)
                fast.copy_(slow)


def set_up_fabric(model, optimizer):
    return Fabric(accelerator="cpu", devices=1).setup(model, optimizer)


WRAPPED = {
    "plain": lambda model, optimizer: (model, optimizer),
    "Accelerate": lambda model, optimizer: (model, AcceleratedOptimizer(optimizer)),
    "Fabric": set_up_fabric,
    "timm": lambda model, optimizer: (model, Lookahead(optimizer)),
    "timm in Accelerate": lambda model, optimizer: (
        nn.DataParallel(model),
        AcceleratedOptimizer(Lookahead(optimizer)),
    ),
}


@pytest.mark.parametrize("by_hook", [True, False], ids=["hook", "line"])
@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_a_wrapped_optimizer_trains_a_sparse_model(wrap, by_hook):
    net = Net()
    inside = OPTIMIZERS["adamw"](net.parameters())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, optimizer = wrap(net, inside)
    pruner = Pruner(sparsity=0.75)
    pruner.attach(model, optimizer, steps=STEPS, hook=by_hook)
    assert all(not name.startswith(("module.", "_")) for name in pruner.masks)
    for _ in range(STEPS):
        inside.zero_grad()
        model(torch.randn(8, 4, 8)).square().mean().backward()
        if not by_hook:
            pruner.before_step(optimizer)
        optimizer.step()
        assert not pruned_weights(net, pruner).any()
    assert len(pruned_weights(net, pruner)) == 0.75 * TOTAL
    pruner.mask_copy(model)
    pruner.follow([optimizer])
    pruner.detach()
    assert not hooks(inside)
    assert pruner.steps == [STEPS]


def test_an_average_of_the_weights_is_pruned_in_its_wrapper():
    model = Net()
    average = torch.optim.swa_utils.AveragedModel(model)
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    pruner = Pruner(sparsity=0.75)
    pruner.attach(model, optimizer, steps=1, hook=True)
    model(torch.randn(8, 4, 8)).square().mean().backward()
    optimizer.step()
    average.update_parameters(model)
    pruner.mask_copy(average)
    assert len(pruned_weights(average.module, pruner)) == 0.75 * TOTAL
    assert not pruned_weights(average.module, pruner).any()


@pytest.mark.parametrize(
    "wrap", [Lookahead, lambda inside: AcceleratedOptimizer(Lookahead(inside))]
)
def test_a_wrapper_that_writes_after_the_step_is_refused_for_straight_through(wrap):
    model = Net()
    pruner = Pruner(straight_through=StraightThrough())
    optimizer = wrap(OPTIMIZERS["sgd"](model.parameters()))
    with pytest.raises(ValueError, match="for straight_through, got Lookahead"):
        pruner.attach(model, optimizer, steps=STEPS)
    assert not hooks(optimizer)
