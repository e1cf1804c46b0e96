"""A step of fused AdamW where nine of ten gradients, or their statistics, are zero."""

import statistics
from collections.abc import Mapping

import torch
from torch import nn

from benchmarks.parts.gpu.updates import time_once

SIDE, TENSORS, STEPS, SHARE = 2048, 24, 40, 0.9
ZEROS: Mapping[str, Mapping[str, float]] = {
    "nothing": {},
    "gradients, means and squares": {"gradient": 0.0, "exp_avg": 0.0, "exp_avg_sq": 0.0},
    "gradients and means": {"gradient": 0.0, "exp_avg": 0.0, "exp_avg_sq": 1.0},
    "gradients": {"gradient": 0.0, "exp_avg": 1.0, "exp_avg_sq": 1.0},
    "squares": {"gradient": 1e-20, "exp_avg": 1.0, "exp_avg_sq": 0.0},
}
"""What is zero, and the values of gradients and statistics that make it so."""


def time_adamw(values: Mapping[str, float], dtype: torch.dtype, device: torch.device) -> float:
    """Return the median seconds of a step.

    Args:
        values: Values of nine of ten gradients and statistics, by name.
        dtype: Precision of the weights.
        device: Where the weights are.
    """
    torch.manual_seed(0)
    shape = (SIDE, SIDE) if device.type == "cuda" else (16, 16)
    parameters = [
        nn.Parameter(torch.randn(shape, device=device, dtype=dtype)) for _ in range(TENSORS)
    ]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    for parameter in parameters:
        state = {**optimizer.state[parameter], "gradient": parameter.grad}
        pruned = torch.rand(shape, device=device) < SHARE
        for name, value in values.items():
            state[name].masked_fill_(pruned, value)
    return statistics.median(time_once(optimizer.step, device) for _ in range(STEPS))
