"""Measure the cost of an update of all masks: `python benchmarks/update_cost.py`.

Times `Pruner.update`: scores, allocation, masks, and zeros in weights and statistics. The models
have 25 and 100 million weights in 60 tensors; everything runs on a single thread of the CPU. An
AdamW step over the same tensors and `torch.kthvalue` over all magnitudes take turns with the
updates. The fastest turn counts, because a busy machine can only add time.

The first update prunes dense weights to 0.8, the second continues from there to 0.9. An update may
take as long as 3 steps of `torch.optim.AdamW` with default arguments, and half as long as
`kthvalue`. The fused AdamW step is shown too, but has no bar. Exits with 1 if a bar is missed.
"""

import argparse
import sys
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.kit.judging import Bar, finish
from benchmarks.kit.recording import describe_machine, write_markdown_header, write_markdown_row
from benchmarks.kit.turns import time_call
from lightning_prune import (
    Allocation,
    GlobalAllocation,
    PolynomialSchedule,
    Pruner,
    UniformAllocation,
)

TENSORS = 60
ALLOCATIONS = {"uniform": UniformAllocation(), "global": GlobalAllocation()}
ADAMW, FUSED, KTHVALUE = "AdamW", "fused AdamW", "kthvalue"
REFERENCES = (ADAMW, FUSED, KTHVALUE)
LIMITS = {ADAMW: 3.0, KTHVALUE: 0.5}


def build_network(weights: int) -> nn.Module:
    """Return matrices; every fourth matrix is as large as the other three together."""
    side = round((weights / (TENSORS / 4 * 6)) ** 0.5)
    shapes = [(3 * side, side)] + [(side, side)] * 3
    return nn.ParameterDict(
        {f"weight{i}": nn.Parameter(torch.randn(shapes[i % 4])) for i in range(TENSORS)}
    )


def time_updates(
    model: nn.Module, optimizer: torch.optim.Optimizer, allocation: Allocation
) -> list[float]:
    """Return the seconds of two updates, and restore the weights."""
    before = [parameter.detach().clone() for parameter in model.parameters()]
    schedule = PolynomialSchedule(begin=0, end=1, unit="step", initial=8 / 9)
    pruner = Pruner(sparsity=0.9, allocation=allocation, schedule=schedule)
    pruner.attach(model, optimizer, steps=2)
    times = []
    for _ in range(2):
        times.append(time_call(lambda: pruner.update(optimizer)))
        pruner.before_step(optimizer)
        optimizer.step()
    pruner.detach()
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), before, strict=True):
            parameter.copy_(value)
    return times


def find_threshold(model: nn.Module) -> None:
    """Find the global threshold by `torch.kthvalue`, without this package."""
    scores = torch.cat([parameter.detach().abs().flatten() for parameter in model.parameters()])
    scores.kthvalue(int(0.9 * len(scores)))


def time_all(weights: int, turns: int) -> dict[str, float]:
    """Return the seconds of the fastest turn of each step, threshold and update."""
    torch.manual_seed(0)
    model = build_network(weights)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    adamw = torch.optim.AdamW(model.parameters())
    fused = torch.optim.AdamW(model.parameters(), fused=True)
    times: dict[str, list[float]] = {}
    for turn in range(turns):
        times.setdefault(ADAMW, []).append(time_call(adamw.step))
        times.setdefault(FUSED, []).append(time_call(fused.step))
        if turn % 3 == 0:  # the slowest call takes fewer turns
            times.setdefault(KTHVALUE, []).append(time_call(lambda: find_threshold(model)))
        for name, allocation in ALLOCATIONS.items():
            first, second = time_updates(model, adamw, allocation)
            times.setdefault(f"{name}, dense to 0.8", []).append(first)
            times.setdefault(f"{name}, 0.8 to 0.9", []).append(second)
    return {name: min(seconds) for name, seconds in times.items()}


def compare(weights: int, times: dict[str, float]) -> list[Bar]:
    """Print the times and ratios of a model, and return the bars."""
    size = f"{weights / 1e6:g} M"
    print(f"\n{size} weights in {TENSORS} tensors:\n")
    print(write_markdown_header("", "ms", *(f"over {other}" for other in REFERENCES)))
    bars = []
    for name, seconds in times.items():
        ratios = {other: seconds / times[other] for other in REFERENCES}
        shown = (f"{ratio:.2f}" for ratio in ratios.values())
        print(write_markdown_row(name, f"{1000 * seconds:.0f}", *shown), flush=True)
        if name not in REFERENCES:
            bars += [
                Bar(name=f"{size}, {name}, over {other}", value=ratios[other], most=limit)
                for other, limit in LIMITS.items()
            ]
    return bars


def main() -> None:
    """Measure all sizes, print, and judge."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--millions", type=float, nargs="+", default=[25.0, 100.0], help="weights of each model"
    )
    parser.add_argument("--turns", type=int, default=9, help="number of turns")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(describe_machine())
    bars = []
    for millions in arguments.millions:
        weights = round(1e6 * millions)
        bars += compare(weights, time_all(weights, arguments.turns))
    print()
    finish(bars)


if __name__ == "__main__":
    main()
