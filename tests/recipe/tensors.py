"""A tensor under pruning without a training."""

import torch
from torch import nn

from lightning_prune import PrunedTensor
from lightning_prune.tensors.masks import Mask


def make_tensor(name="weight", step=0, shape=(6, 5), dtype=torch.float32):
    parameter = nn.Parameter(torch.randn(shape).to(dtype))
    parameter.grad = torch.randn(shape).to(dtype)
    owner = nn.Linear(shape[1], shape[0], dtype=dtype)
    owner.weight = parameter
    return PrunedTensor(
        name=name,
        parameter=parameter,
        owner=owner,
        sparsity=0.5,
        glob="*",
        optimizer=0,
        output_axis=0,
        mask=Mask(torch.tensor(True), parameter),
        step=step,
    )


def observe(criterion, pruned):
    """Return the state of a criterion after one forward pass of ones."""
    pruned.hooks = criterion.watch(pruned)
    pruned.owner(torch.ones_like(pruned.parameter[:2]))
    state = criterion.observe(pruned, {})
    pruned.remove_hooks()
    return state
