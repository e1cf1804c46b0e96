"""Trainings in which pruned weights go on learning."""

import torch

from lightning_prune import (
    OneShotSchedule,
    Pruner,
    StraightThrough,
)
from tests.engine.training import EXAMPLE, OPTIMIZERS, STEPS, Net

AT_ONCE = OneShotSchedule(end=0, unit="step")


def start(optimizer="adamw", *, model=None, every=1, gradient_scale=0.25, **recipe):
    model = model or Net()
    optimizer = OPTIMIZERS[optimizer](model.parameters())
    straight_through = StraightThrough(every=every, gradient_scale=gradient_scale)
    pruner = Pruner(**{"sparsity": 0.75, "straight_through": straight_through, **recipe})
    return model, optimizer, pruner


def attached(optimizer="adamw", **recipe):
    model, optimizer, pruner = start(optimizer, **recipe)
    pruner.attach(model, optimizer, steps=STEPS, example=EXAMPLE)
    return model, optimizer, pruner


def flat_masks(pruner):
    return torch.cat([mask.flatten() for mask in pruner.masks.values()])


def backward(model, step=0):
    x = torch.randn(8, 4, 8, generator=torch.Generator().manual_seed(step))
    model(x).square().mean().backward()
