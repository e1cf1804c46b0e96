"""Scores of each kind that a ranking must get right."""

import math

import torch

KINDS = ("normal", "few values", "zeros", "not finite", "denormal")


def draw(kind, dtype, lengths):
    """Return a tensor of each length."""
    generator = torch.Generator().manual_seed(0)
    tensors = []
    for length in lengths:
        values = torch.randn(length, generator=generator, dtype=torch.float64)
        if kind == "few values":
            values.mul_(2).round_()
        elif kind == "zeros":
            values = torch.where(values < 0, -0.0, 0.0).double()
        elif kind == "not finite":
            values[torch.rand(length, generator=generator) < 0.3] = math.inf
            values[torch.rand(length, generator=generator) < 0.3] = -math.inf
        elif kind == "denormal":
            values *= torch.finfo(dtype).smallest_normal
        tensors.append(values.to(dtype))
    return tensors
