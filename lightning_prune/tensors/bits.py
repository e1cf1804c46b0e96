"""Masks in one bit an entry, as they are saved."""

import math

import numpy as np
import torch
from torch import Tensor


def packed(mask: Tensor) -> Tensor:
    """Return a mask in one bit an entry, as uint8."""
    return torch.from_numpy(np.packbits(mask.cpu().numpy().ravel()))


def unpacked(bits: Tensor, shape: torch.Size) -> Tensor:
    """Return the mask of this shape from its bits."""
    entries = np.unpackbits(bits.cpu().numpy(), count=math.prod(shape))
    return torch.from_numpy(entries.astype(bool)).view(shape)
