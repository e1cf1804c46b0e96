"""A pruner that watches the inputs of layers."""

import torch

from lightning_prune import (
    OneShotSchedule,
    Pruner,
    WandaCriterion,
)


def attached(model, steps=4, end=1, unit="fraction", **recipe):
    """Return an optimizer that changes nothing and a pruner that updates before the last step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    default = {"sparsity": 0.5, "schedule": OneShotSchedule(end=end, unit=unit)}
    pruner = Pruner(**{**default, "criterion": WandaCriterion(), **recipe})
    pruner.attach(model, optimizer, steps=steps)
    return optimizer, pruner


def step(model, optimizer, pruner, *batches, run=None):
    optimizer.zero_grad()
    for x in batches:
        (run or model)(x).square().sum().backward()
    pruner.before_step(optimizer)
    optimizer.step()


def squares(pruner, index=0):
    return pruner.tensors[index].state["squares"]


def scores(pruner, index=0):
    tensor = pruner.tensors[index]
    return pruner.recipe.chosen_criterion.score(tensor, tensor.state)
