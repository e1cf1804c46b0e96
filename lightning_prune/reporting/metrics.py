"""The sparsity of weights as a torchmetrics metric, which audits any pruning."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from lightning_prune.arguments.checks import check_arguments
from lightning_prune.models.prunable import prunable_weights
from lightning_prune.tensors.shards import find_shard, local_part, sum_shards


@check_arguments
def sparsity(weights: nn.Module | Tensor | Iterable[Tensor]) -> Tensor:
    """Return the fraction of zeros.

    Args:
        weights: A module, a tensor or tensors. Of a module, the weights that a `Pruner` takes by
            default are counted, frozen weights included. Of a weight under `torch.nn.utils.prune`,
            the zeros that the layer computes with are counted.

    Returns:
        Zeros over entries, a float64 scalar in [0, 1]; NaN without entries.

    Examples:
        >>> sparsity([torch.tensor([0.0, 1.0]), torch.tensor([0.0, -0.0])]).item()
        0.75
    """
    zeros, entries = _count_zeros(weights)
    return zeros.double() / entries


class Sparsity(Metric):
    r"""Fraction of zeros in all weights that `update` was given.

    .. math:: \frac{\#\{w = 0\}}{\#\{w\}}

    Examples:
        >>> metric = Sparsity()
        >>> metric.update(nn.Linear(2, 2))
        >>> metric.update([torch.zeros(4)])
        >>> metric.compute().item()
        0.5
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False

    zeros: Tensor
    entries: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("zeros", torch.tensor(0, device=self.device), dist_reduce_fx="sum")
        self.add_state("entries", torch.tensor(0, device=self.device), dist_reduce_fx="sum")

    @check_arguments
    def update(self, weights: nn.Module | Tensor | Iterable[Tensor]) -> None:
        """Count the zeros of a module's prunable weights, of a tensor or of tensors."""
        zeros, entries = _count_zeros(weights)
        self.zeros += zeros.to(self.zeros.device)
        self.entries += entries

    def compute(self) -> Tensor:
        """Return zeros over entries, a float64 scalar; NaN before any update."""
        return self.zeros.double() / self.entries


def _count_zeros(weights: nn.Module | Tensor | Iterable[Tensor]) -> tuple[Tensor, int]:
    """Return the number of zeros and the number of entries, over all shards."""
    if isinstance(weights, nn.Module):
        weights = prunable_weights(weights).values()
    tensors = [weights] if isinstance(weights, Tensor) else list(weights)
    zeros = [
        sum_shards((local_part(tensor) == 0).count_nonzero(), find_shard(tensor)).cpu()
        for tensor in tensors
    ]
    entries = sum(tensor.numel() for tensor in tensors)
    return (torch.stack(zeros).sum() if zeros else torch.tensor(0, device="cpu")), entries
