"""Trainings for quantization-aware training and pruning together."""

import torch
from torch import nn

from lightning_prune import (
    MagnitudeCriterion,
    PolynomialSchedule,
    Pruner,
    UniformAllocation,
    WandaCriterion,
)

STEPS = 6
RULES = [MagnitudeCriterion(), WandaCriterion()]


def start(model, criterion, keep_zeros=False):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    pruner = Pruner(
        sparsity=0.0 if keep_zeros else 0.75,
        schedule=PolynomialSchedule(begin=0, end=0.5),
        allocation=UniformAllocation(),
        criterion=criterion,
        keep_zeros=keep_zeros,
    )
    pruner.attach(model, optimizer, steps=STEPS)
    return optimizer, pruner


def train(model, optimizer, pruner, draw):
    """Train to the end, and return the masks of the weights."""
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(step)
        labels = torch.randint(32, (16,), generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(draw(generator)), labels).backward()
        pruner.before_step(optimizer)
        optimizer.step()
    pruner.detach()
    return pruner.masks
