"""All that pruning knows of optimizers."""

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_prune._distributed import local
from lightning_prune._masks import Mask

_ELEMENTWISE = {
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


def ownership(optimizer: Optimizer) -> tuple[int, int, int]:
    """Return what changes when the optimizer gains a parameter or one becomes trainable."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    ready = sum(not nn.parameter.is_lazy(p) for p in parameters)
    return len(parameters), sum(p.requires_grad for p in parameters), ready


def leaves_zeros(optimizer: Optimizer) -> bool:
    """Whether a weight of 0 stays 0 if its gradient and all that is known of it are 0, too.

    So do those that treat each entry alone; but 0 / (0 + eps) is NaN without an eps.
    """
    elementwise = type(optimizer) in _ELEMENTWISE
    return elementwise and all(group.get("eps", 1.0) > 0 for group in optimizer.param_groups)


def clear_pruned(optimizer: Optimizer, parameter: nn.Parameter, mask: Mask) -> None:
    """Zero an optimizer's statistics of pruned entries: whatever has the shape of the tensor."""
    for value in optimizer.state.get(parameter, {}).values():
        if isinstance(value, Tensor) and local(value).shape == mask.shape:
            mask.apply(local(value))


def forget_directions(optimizer: Optimizer) -> None:
    """Let LBFGS begin anew, without directions that pruned weights had; others have none."""
    if isinstance(optimizer, torch.optim.LBFGS):
        for state in optimizer.state.values():
            state["n_iter"] = 0
