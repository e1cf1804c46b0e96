"""Multiply-adds and parameters that a model really has, to compare with a budget."""

from typing import Any

import torch
from torch import nn

from lightning_prune.models.calls import make_call
from lightning_prune.models.compiled import copy_module
from lightning_prune.models.counting import count
from lightning_prune.models.undisturbed import keep_generators
from lightning_prune.tensors.shards import find_shard, local_part, sum_by_tensor


def measure_macs(model: nn.Module, example: Any = None, *, removed: bool) -> int:
    """Return the multiply-adds of a forward pass, in evaluation mode.

    Args:
        model: The model, with zeros in place or with removed channels; it stays as it is.
        example: The arguments of ``forward``; by default ``model.example_input_array``.
        removed: Whether multiplications by zero count too, as they do where a layer without the
            pruned channels is dense again.

    Raises:
        ValueError: If there is no example, or ``forward`` does not take it.

    Examples:
        >>> layer = nn.Linear(4, 2)
        >>> _ = nn.init.zeros_(layer.weight[0])
        >>> [measure_macs(layer, torch.ones(3, 4), removed=each) for each in (False, True)]
        [12, 24]
    """
    call = make_call(model, example)
    with keep_generators(), torch.no_grad():
        work = count(copy_module(model).eval().requires_grad_(False), call).work
    return sum(each.macs if removed else each.effective for each in work.values())


def measure_parameters(model: nn.Module, *, removed: bool) -> int:
    """Return the number of parameters, of all processes; a tied parameter counts once.

    Args:
        model: The model, with zeros in place or with removed channels.
        removed: Whether parameters that are zero count too.

    Examples:
        >>> layer = nn.Linear(4, 2, bias=False)
        >>> _ = nn.init.zeros_(layer.weight[0])
        >>> [measure_parameters(layer, removed=each) for each in (False, True)]
        [4, 8]
    """
    parameters = list(model.parameters())
    if removed or not parameters:
        return sum(parameter.numel() for parameter in parameters)
    counts = [(local_part(each).count_nonzero().cpu(), find_shard(each)) for each in parameters]
    return int(sum_by_tensor(counts).sum())
