"""Optimizers: ownership, statistics, and whether a step keeps zeros at zero."""

import inspect
import math
from collections.abc import Hashable
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_prune.tensors.masks import Mask
from lightning_prune.tensors.shards import local_part

_ELEMENTWISE: set[type[Any]] = {
    torch.optim.SGD,
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.Adamax,
    torch.optim.Adadelta,
    torch.optim.Adagrad,
    torch.optim.RMSprop,
    torch.optim.Rprop,
    torch.optim.ASGD,
}


def describe_ownership(optimizer: Optimizer) -> tuple[int, int, int]:
    """Count all, trainable and initialized parameters, so that a change is cheap to notice."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    trainable = [p for p in parameters if p.requires_grad]
    lazy = [p for p in parameters if type(p) is not nn.Parameter and nn.parameter.is_lazy(p)]
    return len(parameters), len(trainable), len(parameters) - len(lazy)


def leaves_zeros(optimizer: Optimizer, least_eps: float) -> bool:
    """Whether a step keeps a weight at 0 if the gradient and the statistics of the weight are 0.

    Element-wise optimizers keep zeros if no other hook runs after the step. But 0 / (0 + eps) is
    NaN if eps vanishes in the precision of the statistics.

    Args:
        optimizer: The optimizer.
        least_eps: The least eps that does not vanish in the precision of the statistics.
    """
    if (
        not _is_elementwise(cast(Hashable, type(optimizer)))
        or len(optimizer._optimizer_step_post_hooks) > 1
    ):
        return False
    return all(group.get("eps", math.inf) >= least_eps for group in optimizer.param_groups)


@cache
def _is_elementwise(kind: Any) -> bool:
    """Whether an optimizer class has the ``step`` of an element-wise class of torch, unwrapped."""
    known = next((base for base in kind.__mro__ if base in _ELEMENTWISE), None)
    return known is not None and inspect.unwrap(kind.step) is inspect.unwrap(known.step)


def clear_pruned(optimizer: Optimizer, parameter: nn.Parameter, mask: Mask) -> None:
    """Zero the statistics of pruned weights: in each state tensor with the shape of the mask."""
    for value in optimizer.state.get(parameter, {}).values():
        if isinstance(value, Tensor) and local_part(value).shape == mask.shape:
            mask.apply(local_part(value))


def forget_directions(optimizer: Optimizer) -> None:
    """Restart LBFGS, which holds directions of pruned weights; do nothing to other optimizers."""
    if isinstance(optimizer, torch.optim.LBFGS):
        for state in optimizer.state.values():
            state["n_iter"] = 0
