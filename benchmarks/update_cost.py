"""What does an update of all masks cost? `python benchmarks/update_cost.py`.

Scores, allocation, masks, and zeros in weights and statistics: `Pruner.update` where one is due, of
25 and of 100 million weights in 60 tensors, on one thread of the CPU. Beside it, in turns,
an AdamW step over the same tensors and `torch.kthvalue` over their concatenated magnitudes. The
fastest of all turns counts: a busy machine adds time and takes none away.

The first update prunes dense weights to 0.8, the second goes from there to 0.9. An update must take
no longer than 3 steps of `torch.optim.AdamW` as it comes, and half of `kthvalue`; the fused step
stands beside them without a bar. Exits with 1 if a bar is missed.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from lightning_prune import (
    Allocation,
    GlobalAllocation,
    PolynomialSchedule,
    Pruner,
    UniformAllocation,
)

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.machine import machine

TENSORS = 60
ALLOCATIONS = {"uniform": UniformAllocation(), "global": GlobalAllocation()}
ADAMW, FUSED, KTHVALUE = "AdamW", "fused AdamW", "kthvalue"
BARS = {ADAMW: 3.0, KTHVALUE: 0.5}


def network(weights: int) -> nn.Module:
    """Return matrices of which one in four is as large as the other three together."""
    side = round((weights / (TENSORS / 4 * 6)) ** 0.5)
    shapes = [(3 * side, side)] + [(side, side)] * 3
    return nn.ParameterDict(
        {f"weight{i}": nn.Parameter(torch.randn(shapes[i % 4])) for i in range(TENSORS)}
    )


def seconds(call: Callable[[], object]) -> float:
    """Return how long a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def updates(
    model: nn.Module, optimizer: torch.optim.Optimizer, allocation: Allocation
) -> list[float]:
    """Return how long two updates take; the weights are as before in the end."""
    before = [parameter.detach().clone() for parameter in model.parameters()]
    schedule = PolynomialSchedule(begin=0, end=1, unit="step", initial=8 / 9)
    pruner = Pruner(sparsity=0.9, allocation=allocation, schedule=schedule)
    pruner.attach(model, optimizer, steps=2)
    times = []
    for _ in range(2):
        times.append(seconds(lambda: pruner.update(optimizer)))
        pruner.before_step(optimizer)
        optimizer.step()
    pruner.detach()
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), before, strict=True):
            parameter.copy_(value)
    return times


def kthvalue(model: nn.Module) -> None:
    """Find the global threshold as one would without this package."""
    scores = torch.cat([parameter.detach().abs().flatten() for parameter in model.parameters()])
    scores.kthvalue(int(0.9 * len(scores)))


def fastest(weights: int, turns: int) -> dict[str, float]:
    """Return the seconds of the fastest turn of each."""
    torch.manual_seed(0)
    model = network(weights)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    adamw = torch.optim.AdamW(model.parameters())
    fused = torch.optim.AdamW(model.parameters(), fused=True)
    times: dict[str, list[float]] = {}
    for turn in range(turns):
        times.setdefault(ADAMW, []).append(seconds(adamw.step))
        times.setdefault(FUSED, []).append(seconds(fused.step))
        if turn % 3 == 0:  # it takes longest
            times.setdefault(KTHVALUE, []).append(seconds(lambda: kthvalue(model)))
        for name, allocation in ALLOCATIONS.items():
            first, second = updates(model, adamw, allocation)
            times.setdefault(f"{name}, dense to 0.8", []).append(first)
            times.setdefault(f"{name}, 0.8 to 0.9", []).append(second)
    return {name: min(some) for name, some in times.items()}


def table(weights: int, times: dict[str, float]) -> list[str]:
    """Print times and ratios of one size, and return what missed its bar."""
    print(f"\n{weights / 1e6:g} M weights in {TENSORS} tensors:\n")
    print(f"| | ms | over {ADAMW} | over {FUSED} | over {KTHVALUE} |\n|---|---|---|---|---|")
    missed = []
    for name, its in times.items():
        ratios = {other: its / times[other] for other in (ADAMW, FUSED, KTHVALUE)}
        shown = " | ".join(f"{ratio:.2f}" for ratio in ratios.values())
        print(f"| {name} | {1000 * its:.0f} | {shown} |", flush=True)
        for other, bar in BARS.items():
            if name not in ratios and ratios[other] > bar:
                missed.append(
                    f"{weights / 1e6:g} M, {name}: {ratios[other]:.2f} of {other}, at most {bar:g} "
                    "is wanted"
                )
    return missed


def main() -> None:
    """Measure all sizes, print, and judge."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--millions", type=float, nargs="+", default=[25.0, 100.0])
    parser.add_argument("--turns", type=int, default=9)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(machine())
    missed = []
    for millions in arguments.millions:
        weights = round(1e6 * millions)
        missed += table(weights, fastest(weights, arguments.turns))
    print("", *(f"missed: {miss}" for miss in missed), sep="\n")
    if not missed:
        print("every target is met")
    sys.exit(int(bool(missed)))


if __name__ == "__main__":
    main()
