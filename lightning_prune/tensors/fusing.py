"""Whether kernels of Triton do the work of many tensors in one launch."""

import warnings
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

FUSES_ON = ("cuda",) if find_spec("triton") is not None else ()
"""Types of devices on which a kernel of Triton does the work of many tensors in one launch."""


def fuses(device: torch.device) -> bool:
    """Whether kernels run on a device; the first call on a GPU tries one, and warns if it fails."""
    return device.type in FUSES_ON and _works(device.type)


@cache
def _works(kind: str) -> bool:
    """Whether Triton can make kernels: it needs a compiler of C, and a card that is not too old."""
    flags = [torch.zeros(1, dtype=torch.bool, device=kind)]
    try:
        from lightning_prune.tensors import fused_counts  # it imports Triton, which takes long

        fused_counts.count_zeros(flags, flags)
    except Exception as error:  # of any kind: it comes from a compiler or a driver
        warnings.warn(
            f"Triton cannot make kernels for {kind} ({type(error).__name__}: {error}); masks are "
            "applied and chosen without them, which is slower; uninstall triton, or give it what "
            "it needs",
            stacklevel=2,
        )
        return False
    return True


def can_fuse(tensor: Tensor) -> bool:
    """Whether kernels read a tensor as it lies: it has no gaps, and kernels run on the device."""
    return fuses(tensor.device) and tensor.is_contiguous()
