"""Running means and variances of normalizations, measured anew."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import is_lazy


def find_statistics(module: nn.Module) -> list[_NormBase]:
    """Return the normalizations that keep a running mean and variance, each once."""
    return [
        part
        for part in module.modules()
        if isinstance(part, _NormBase)
        and part.running_mean is not None
        and not is_lazy(part.running_mean)
    ]


@contextmanager
def gather_statistics(norms: Sequence[_NormBase]) -> Iterator[list[Tensor]]:
    """Sum up the statistics of each call in train mode inside the block.

    The running statistics are those of the last call meanwhile, and stay so afterwards. Calls in
    evaluation mode count for nothing.

    Args:
        norms: The normalizations. The block must put them into train mode.

    Yields:
        For each normalization the number of calls, the sum of the means and that of the variances,
        in a single tensor.
    """
    sums = [_make_zeros(norm) for norm in norms]
    momenta = [norm.momentum for norm in norms]
    hooks = [norm.register_forward_hook(partial(_add, sums, n)) for n, norm in enumerate(norms)]
    try:
        for norm in norms:
            norm.momentum = 1.0
        yield sums
    finally:
        for norm, momentum, hook in zip(norms, momenta, hooks, strict=True):
            norm.momentum = momentum
            hook.remove()


def write_statistics(norms: Sequence[_NormBase], sums: Sequence[Tensor]) -> int:
    r"""Give each normalization the mean statistics of the calls, each call of equal weight.

    .. math:: \mu = \frac1n \sum_{i=1}^n \mu_i, \quad \sigma^2 = \frac1n \sum_{i=1}^n \sigma_i^2

    A normalization without a call keeps the statistics that it has.

    Args:
        norms: The normalizations.
        sums: The sums of `gather_statistics`.

    Returns:
        The number of normalizations that were called.
    """
    called = [(norm, total) for norm, total in zip(norms, sums, strict=True) if total[0] > 0]
    for norm, total in called:
        mean, variance = (total[1:] / total[0]).chunk(2)
        for buffer, value in (
            (norm.running_mean, mean),
            (norm.running_var, variance),
            (norm.num_batches_tracked, total[0]),
        ):
            if buffer is not None:
                buffer.copy_(value)
    return len(called)


def _make_zeros(norm: _NormBase) -> Tensor:
    assert norm.running_mean is not None
    device = norm.running_mean.device
    dtype = torch.float32 if device.type == "mps" else torch.float64  # it has no double precision
    return torch.zeros(1 + 2 * norm.num_features, dtype=dtype, device=device)


@torch.no_grad()
def _add(sums: list[Tensor], place: int, norm: _NormBase, args: Any, output: Any) -> None:
    if norm.training and norm.running_mean is not None and norm.running_var is not None:
        one = torch.ones_like(norm.running_mean[:1])
        found = torch.cat([one, norm.running_mean, norm.running_var])
        sums[place] = sums[place].to(found.device) + found
