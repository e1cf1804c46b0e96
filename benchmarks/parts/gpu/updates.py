"""The time and the memory of an update of all masks on a device."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from lightning_prune import (
    ERKAllocation,
    GlobalAllocation,
    LAMPAllocation,
    NMPattern,
    PolynomialSchedule,
    Pruner,
    UniformAllocation,
)

RECIPES: Mapping[str, Mapping[str, Any]] = {
    "uniform": {"sparsity": 0.9, "allocation": UniformAllocation()},
    "ERK": {"sparsity": 0.9, "allocation": ERKAllocation()},
    "global": {"sparsity": 0.9, "allocation": GlobalAllocation()},
    "LAMP": {"sparsity": 0.9, "allocation": LAMPAllocation()},
    "2:4": {"sparsity": 0.5, "pattern": NMPattern(n=2, m=4)},
}
TWO_UPDATES = PolynomialSchedule(begin=0, end=1, every=1, unit="step", initial=8 / 9)


@dataclass(frozen=True, kw_only=True)
class Model:
    """Matrices in fours: the fourth is as large as the other three together.

    Args:
        weights: Number of weights.
        tensors: Number of matrices.
        limits: The most milliseconds of an update, by the name of the recipe; infinity for no bar.
        most_bytes: The most bytes for each weight that an update takes, by the name of the recipe.
    """

    weights: float
    tensors: int
    limits: Mapping[str, float]
    most_bytes: Mapping[str, float] = field(default_factory=dict)

    def build(self, scale: float, device: torch.device) -> nn.Module:
        """Return the matrices on a device, with a multiple of the weights."""
        side = round((scale * self.weights / (self.tensors / 4 * 6)) ** 0.5 / 16) * 16
        shapes = [(3 * side, side)] + [(side, side)] * 3
        with device:
            matrices = [torch.randn(shapes[i % 4]) for i in range(self.tensors)]
        return nn.ParameterDict({f"weight{i}": each for i, each in enumerate(matrices)})


WITHOUT_BAR = math.inf
MODELS = {
    "100 M": Model(
        weights=1e8,
        tensors=60,
        limits={"uniform": 10.0, "ERK": 10.0, "global": 10.0, "LAMP": WITHOUT_BAR},
    ),
    "1 B": Model(
        weights=1e9,
        tensors=120,
        limits={"uniform": 40.0, "ERK": 40.0, "global": 40.0, "LAMP": WITHOUT_BAR, "2:4": 60.0},
        # One for the masks, and chunks of a fixed size.
        most_bytes={"uniform": 1.25, "ERK": 1.25, "global": 1.25, "LAMP": 2.0},
    ),
}


@dataclass(frozen=True, kw_only=True)
class Update:
    """The cost of the slower of two updates.

    Args:
        seconds: The time, until the device has nothing to do.
        peak: Bytes beyond those that were held before.
    """

    seconds: float
    peak: int


def wait(device: torch.device) -> None:
    """Wait until the device has nothing to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def time_once(call: Callable[[], Any], device: torch.device) -> float:
    """Return the seconds of a call, until the device has nothing to do."""
    wait(device)
    start = time.perf_counter()
    call()
    wait(device)
    return time.perf_counter() - start


def time_references(model: nn.Module, turns: int) -> dict[str, float]:
    """Return the fastest seconds of a sort of each tensor, and of a step of fused AdamW."""
    parameters = list(model.parameters())
    device = parameters[0].device
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer = torch.optim.AdamW(parameters, lr=0.0, weight_decay=0.0, fused=True)

    def sort_each() -> None:
        for parameter in parameters:
            parameter.detach().abs().flatten().sort()

    calls = {"fused AdamW": optimizer.step, "a sort of each tensor": sort_each}
    found = {
        name: min(time_once(call, device) for _ in range(turns)) for name, call in calls.items()
    }
    for parameter in parameters:
        parameter.grad = None
    return found


def time_update(model: nn.Module, recipe: Mapping[str, Any], turns: int) -> Update:
    """Return the cost of an update; the weights are the same afterwards."""
    device = next(model.parameters()).device
    dense = [parameter.detach().clone() for parameter in model.parameters()]
    found = []
    for _ in range(turns):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        pruner = Pruner(schedule=TWO_UPDATES, **recipe)
        pruner.attach(model, optimizer, steps=2)
        costs = []
        for _ in range(2):
            costs.append(_cost_one(pruner, optimizer, device))
            pruner.before_step(optimizer)
            optimizer.step()
        pruner.detach()
        found.append(costs)
        with torch.no_grad():
            for parameter, values in zip(model.parameters(), dense, strict=True):
                parameter.copy_(values)
    fastest = [min(update.seconds for update in of_turns) for of_turns in zip(*found, strict=True)]
    return Update(
        seconds=max(fastest), peak=max(update.peak for costs in found for update in costs)
    )


def _cost_one(pruner: Pruner, optimizer: torch.optim.Optimizer, device: torch.device) -> Update:
    """Return the cost of the update that is due."""
    before = 0
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
    seconds = time_once(lambda: pruner.update(optimizer), device)
    peak = torch.cuda.max_memory_allocated(device) - before if device.type == "cuda" else 0
    return Update(seconds=seconds, peak=peak)
