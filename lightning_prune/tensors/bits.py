"""Packed masks, one bit a weight: the form in files and checkpoints."""

import math
import zlib

import numpy as np
import torch
from torch import Tensor


def pack_mask(mask: Tensor) -> Tensor:
    """Pack a bool mask into uint8, one bit a weight."""
    return torch.from_numpy(np.packbits(mask.cpu().numpy().ravel()))


def compute_checksum(bits: Tensor) -> int:
    """Return the CRC-32 of a packed mask, by which a flipped bit is noticed."""
    return zlib.crc32(bits.cpu().numpy().tobytes())


def unpack_mask(bits: Tensor, shape: torch.Size) -> Tensor:
    """Return the bool mask in a shape from packed bits."""
    mask = np.unpackbits(bits.cpu().numpy(), count=math.prod(shape))
    return torch.from_numpy(mask.view(bool)).view(shape)
