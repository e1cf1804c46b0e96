"""All that pruning knows of optimizers."""

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
    """Return what changes when the optimizer gains a parameter or one becomes trainable."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    trainable = [p for p in parameters if p.requires_grad]
    lazy = [p for p in parameters if type(p) is not nn.Parameter and nn.parameter.is_lazy(p)]
    return len(parameters), len(trainable), len(parameters) - len(lazy)


def leaves_zeros(optimizer: Optimizer, least_eps: float) -> bool:
    """Whether a weight of 0 stays 0 if its gradient and all that is known of it are 0, too.

    So do those that treat each entry alone, if no other hook has a hand in it; but 0 / (0 + eps) is
    NaN where the eps vanishes.

    Args:
        optimizer: The optimizer.
        least_eps: What does not vanish in the precision of its statistics.
    """
    if (
        not _is_elementwise(cast(Hashable, type(optimizer)))
        or len(optimizer._optimizer_step_post_hooks) > 1
    ):
        return False
    return all(group.get("eps", math.inf) >= least_eps for group in optimizer.param_groups)


@cache
def _is_elementwise(kind: Any) -> bool:
    """Whether an optimizer steps as one of torch's own, whose ``step`` torch itself has wrapped."""
    known = next((one for one in kind.__mro__ if one in _ELEMENTWISE), None)
    return known is not None and inspect.unwrap(kind.step) is inspect.unwrap(known.step)


def clear_pruned(optimizer: Optimizer, parameter: nn.Parameter, mask: Mask) -> None:
    """Zero an optimizer's statistics of pruned entries: whatever has the shape of the tensor."""
    for value in optimizer.state.get(parameter, {}).values():
        if isinstance(value, Tensor) and local_part(value).shape == mask.shape:
            mask.apply(local_part(value))


def forget_directions(optimizer: Optimizer) -> None:
    """Let LBFGS begin anew, without directions that pruned weights had; others have none."""
    if isinstance(optimizer, torch.optim.LBFGS):
        for state in optimizer.state.values():
            state["n_iter"] = 0
