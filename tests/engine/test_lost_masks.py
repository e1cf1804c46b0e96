"""Zeros at the start that no mask explains: a resume without the state."""

import pytest
import torch
from torch import nn

from lightning_prune import ChannelPattern, OneShotSchedule, Pruner
from tests.engine.training import EXAMPLE, OPTIMIZERS, STEPS, Net, train

AT_ONCE = OneShotSchedule(end=0)
ALARM = "weights are 0 and no mask says why"


def prune(model, **answers):
    pruner = Pruner(**{"sparsity": 0.5, "schedule": AT_ONCE, **answers})
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    pruner.attach(model, optimizer, steps=STEPS, example=EXAMPLE)
    train(model, optimizer, pruner, steps=2)
    pruner.detach()
    return pruner


@pytest.mark.parametrize("sparsity", [0.2, 0.9])
def test_a_resume_without_the_state_warns_with_names_shares_and_the_remedy(sparsity):
    model = Net()
    kept = {t.name: 1 - t.kept / t.total for t in prune(model, sparsity=sparsity).tensors}
    most = max(kept, key=kept.get)
    with pytest.warns(UserWarning, match=rf"{ALARM}.*{kept[most]:.4f} of '{most}'.*keep_zeros=T"):
        prune(model, sparsity=0.0)
    zeros = (model.get_parameter(most) == 0).float().mean()
    assert zeros < kept[most] / 2  # they have grown back, as the warning said


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_so_does_a_resume_in_another_precision(dtype):
    model = Net()
    prune(model)
    pruner = Pruner(sparsity=0.5, schedule=AT_ONCE)
    with pytest.warns(UserWarning, match=ALARM):
        pruner.attach(model.to(dtype), OPTIMIZERS["sgd"](model.parameters()), steps=STEPS)
    pruner.detach(completed=False)


def test_so_does_a_resume_of_pruned_channels(traced_once):
    model = Net()
    prune(model, pattern=ChannelPattern(round_to=1))
    with pytest.warns(UserWarning, match=rf"{ALARM}.* of '2\.weight'"):
        prune(model, pattern=ChannelPattern(round_to=1))


def test_a_resume_with_the_state_or_with_kept_zeros_says_nothing():
    model = Net()
    state = prune(model).state_dict()
    prune(model, keep_zeros=True)
    pruner = Pruner(sparsity=0.5, schedule=AT_ONCE)
    pruner.load_state_dict(state)
    pruner.attach(model, OPTIMIZERS["sgd"](model.parameters()), steps=STEPS)
    pruner.detach(completed=False)


INITIALIZATIONS = {
    "zeros": nn.init.zeros_,
    "identity": nn.init.eye_,
    "rectified": lambda weight: weight.clamp_(min=0),
    "quantized": lambda weight: weight.copy_((weight * 20).round() / 20),
    "ternary": lambda weight: weight.copy_(weight.sign() * (weight.abs() > 0.05) * 0.3),
    "a padded row": lambda weight: weight[0].zero_(),
    "a row of dead inputs": lambda weight: weight[:, ::20].zero_(),
}


@pytest.mark.parametrize("initialize", INITIALIZATIONS.values(), ids=INITIALIZATIONS)
def test_an_initialization_with_zeros_is_no_alarm(initialize):
    model = Net()
    with torch.no_grad():
        initialize(model[2].weight)
    pruner = Pruner(sparsity=0.5, schedule=AT_ONCE)
    pruner.attach(model, OPTIMIZERS["sgd"](model.parameters()), steps=STEPS)
    pruner.detach(completed=False)
