"""Uniform random numbers that depend only on an index and a key."""

import hashlib

from torch import Tensor


def draw_uniform(index: Tensor, key: str) -> Tensor:
    """Return a number in [0, 1) for each index, the same on every device, process and resume.

    The numbers are the high 24 bits of SplitMix64: Steele et al., "Fast Splittable Pseudorandom
    Number Generators" (2014), https://doi.org/10.1145/2714064.2660195.

    Args:
        index: Whole numbers of any shape.
        key: The seed; another key gives other numbers.

    Examples:
        >>> import torch
        >>> draw_uniform(torch.arange(3), "key").dtype
        torch.float32
    """
    digest = hashlib.sha256(key.encode()).digest()
    start = int.from_bytes(digest[:8], "little", signed=True)
    return (_split_mix(index, start) >> 40 & 0xFFFFFF).float() * 2.0**-24


def _split_mix(index: Tensor, start: int) -> Tensor:
    """Return 64 random bits for each index; integer products wrap around."""
    bits = (index + 1) * _to_signed(0x9E3779B97F4A7C15) + start
    bits = (bits ^ _shift_right(bits, 30)) * _to_signed(0xBF58476D1CE4E5B9)
    bits = (bits ^ _shift_right(bits, 27)) * _to_signed(0x94D049BB133111EB)
    return bits ^ _shift_right(bits, 31)


def _shift_right(bits: Tensor, by: int) -> Tensor:
    """Shift right and fill with zeros; torch's ``>>`` repeats the sign bit."""
    return bits >> by & ((1 << (64 - by)) - 1)


def _to_signed(bits: int) -> int:
    return bits - (1 << 64)
