"""The precision for sums and comparisons of many numbers."""

import torch
from torch import Tensor


def widen_to_single(values: Tensor) -> Tensor:
    """Return values in single precision, or in double precision if they have it already.

    Examples:
        >>> widen_to_single(torch.ones(1, dtype=torch.bfloat16)).dtype
        torch.float32
        >>> widen_to_single(torch.ones(1, dtype=torch.float64)).dtype
        torch.float64
    """
    return values if values.dtype == torch.float64 else values.float()
