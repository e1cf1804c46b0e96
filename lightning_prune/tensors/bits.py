"""Packed masks, one bit a weight: the form in files and checkpoints."""

import math

import numpy as np
import torch
from torch import Tensor


def pack_mask(mask: Tensor) -> Tensor:
    """Pack a bool mask into uint8, one bit a weight."""
    return torch.from_numpy(np.packbits(mask.cpu().numpy().ravel()))


def unpack_mask(bits: Tensor, shape: torch.Size) -> Tensor:
    """Return the bool mask in a shape from packed bits."""
    mask = np.unpackbits(bits.cpu().numpy(), count=math.prod(shape))
    return torch.from_numpy(mask.astype(bool)).view(shape)
