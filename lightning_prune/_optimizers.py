"""All that pruning knows of optimizers."""

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_prune._distributed import local


def ownership(optimizer: Optimizer) -> tuple[int, int, int]:
    """Return what changes when the optimizer gains a parameter or one becomes trainable."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    ready = sum(not nn.parameter.is_lazy(p) for p in parameters)
    return len(parameters), sum(p.requires_grad for p in parameters), ready


def clear_pruned(optimizer: Optimizer, parameter: nn.Parameter, mask: Tensor) -> None:
    """Zero an optimizer's statistics of pruned entries: whatever has the shape of the tensor."""
    for value in optimizer.state.get(parameter, {}).values():
        if isinstance(value, Tensor) and local(value).shape == mask.shape:
            local(value).masked_fill_(~mask, 0)


def forget_directions(optimizer: Optimizer) -> None:
    """Let LBFGS begin anew, without directions that pruned weights had; others have none."""
    if isinstance(optimizer, torch.optim.LBFGS):
        for state in optimizer.state.values():
            state["n_iter"] = 0
