"""Masks in one bit an entry, as they are saved."""

import math

import numpy as np
import torch
from torch import Tensor


def pack_mask(mask: Tensor) -> Tensor:
    """Return a bool mask in one bit an entry, as uint8."""
    return torch.from_numpy(np.packbits(mask.cpu().numpy().ravel()))


def unpack_mask(bits: Tensor, shape: torch.Size) -> Tensor:
    """Return the bool mask of a shape from its bits."""
    mask = np.unpackbits(bits.cpu().numpy(), count=math.prod(shape))
    return torch.from_numpy(mask.astype(bool)).view(shape)
