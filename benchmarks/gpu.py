"""Measure updates and steps on a GPU: `python benchmarks/gpu.py`.

Needs CUDA, and takes under six minutes; without CUDA the script says so and ends. Everything is
compared with bars. The script exits with 1 if a bar is missed.

An update is timed from the call to the end of the work of the GPU. The models have 100 million
weights in 60 tensors, and a billion in 120. The first update prunes dense weights to 0.8, the
second continues to 0.9. The slower update counts, by the fastest of some turns. Beside it stand a
sort of each tensor and a step of fused AdamW. The memory of an update is the peak, less the memory
that was held before.

A step is that of a transformer as large as GPT-2 small, in bfloat16. The masks are at 0.9, and no
update is due. With long texts the GPU is the slower side: then events on the GPU time the work
inside of our calls and hooks. With short texts the host is the slower side: then the clock of the
host does. The isolated ratio divides a step by the same step less the time inside. In LeNet-300-100
everything waits for the host.

Steps of fused AdamW with nine of ten gradients and statistics at zero stand beside steps without
zeros; they have no bar.

Pruning in one shot is that of `one_shot_cost.py`, with 1.1 billion weights. 2:4 kernels take turns
with dense ones, and the model that `use_sparse_kernels` leaves must not be slower than the dense.
"""

import argparse
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.kit.judging import Bar, finish
from benchmarks.kit.recording import (
    describe_machine,
    silence_libraries,
    write_markdown_header,
    write_markdown_row,
)
from benchmarks.one_shot_cost import HEADER, PATTERNS, compare, find_width, warm_up
from benchmarks.parts.gpu.adamw import ZEROS, time_adamw
from benchmarks.parts.gpu.kernels import try_kernels
from benchmarks.parts.gpu.steps import STEPS, time_steps
from benchmarks.parts.gpu.updates import MODELS, RECIPES, time_references, time_update


def judge_updates(device: torch.device, scale: float, turns: int) -> Iterator[Bar]:
    """Time the updates of all models, print a table, and yield the bars.

    Args:
        device: Where the weights are.
        scale: The number of weights as a multiple of that of the models.
        turns: Number of times that each update is made.
    """
    print(write_markdown_header("update", "weights", "ms", "bytes a weight", "bar, ms"))
    for name, model in MODELS.items():
        built = model.build(scale, device)
        weights = sum(parameter.numel() for parameter in built.parameters())
        for reference, seconds in time_references(built, turns).items():
            print(write_markdown_row(reference, f"{weights:,}", f"{1e3 * seconds:.2f}", "", ""))
        for recipe, limit in model.limits.items():
            update = time_update(built, RECIPES[recipe], turns)
            milliseconds, bytes_a_weight = 1e3 * update.seconds, update.peak / weights
            bar = "" if math.isinf(limit) else f"{limit:g}"
            row = (f"{milliseconds:.2f}", f"{bytes_a_weight:.2f}", bar)
            print(write_markdown_row(recipe, f"{weights:,}", *row), flush=True)
            yield Bar(name=f"{name}, {recipe}, ms", value=milliseconds, most=limit)
            if recipe in model.most_bytes:
                bar_name = f"{name}, {recipe}, bytes a weight"
                yield Bar(name=bar_name, value=bytes_a_weight, most=model.most_bytes[recipe])


def judge_steps(device: torch.device, steps: int) -> Iterator[Bar]:
    """Time the steps of all workloads, print a table, and yield the bars."""
    print(write_markdown_header("step", "ms", "ms inside", "isolated", "bar"))
    for name, workload in STEPS.items():
        times = time_steps(workload, device, steps)
        isolated = times.step / (times.step - times.inside)
        numbers = (f"{1e3 * times.step:.3f}", f"{1e3 * times.inside:.3f}", f"{isolated:.4f}")
        print(write_markdown_row(name, *numbers, f"{workload.bar:g}"), flush=True)
        yield Bar(name=f"{name}, isolated", value=isolated, most=workload.bar)


def compare_adamw(device: torch.device) -> None:
    """Time steps of fused AdamW with and without zeros, and print a table."""
    print(write_markdown_header("zero in AdamW", "float32, ms", "bfloat16, ms"))
    for name, values in ZEROS.items():
        seconds = [time_adamw(values, dtype, device) for dtype in (torch.float32, torch.bfloat16)]
        print(write_markdown_row(name, *(f"{1e3 * each:.3f}" for each in seconds)), flush=True)


def judge_one_shot(device: torch.device, millions: float, turns: int) -> Iterator[Bar]:
    """Prune in one shot beside a plain loop, print a table, and yield the bars."""
    print(write_markdown_header(*HEADER))
    without = warm_up(device)
    for name in PATTERNS:
        yield from compare(name, find_width(millions), device, turns, without)


def judge_kernels(device: torch.device, scale: float) -> Iterator[Bar]:
    """Try 2:4 kernels, print a table, and yield the bars."""
    print(write_markdown_header("2:4", "layer", "kernel", "dense / sparse", "difference"))
    for compiled in (False, True):
        name = "compiled" if compiled else "eager"
        used = try_kernels(device, scale, compiled=compiled)
        for row in used.table().rows:
            print(write_markdown_row(name, *map(str, row)))
        whole = "" if used.speedup is None else f"{used.speedup:.2f}"
        print(
            write_markdown_row(name, "the model", "", whole, f"{used.difference:.2g}"), flush=True
        )
        if any(layer.kernel for layer in used.layers):
            yield Bar(name=f"2:4, {name}, over dense", value=used.speedup or 0.0, least=1.0)


def main() -> None:
    """Measure all, print, and judge."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=7, help="of each update")
    parser.add_argument("--steps", type=int, default=100, help="of each workload")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("skipped: gpu.py needs CUDA")
        return
    silence_libraries()
    device = torch.device("cuda")
    print(f"{torch.cuda.get_device_name(device)}; {describe_machine()}\n")
    bars = [*judge_updates(device, 1.0, arguments.turns)]
    print()
    bars += judge_steps(device, arguments.steps)
    print()
    compare_adamw(device)
    print()
    bars += judge_one_shot(device, 1100.0, 2)
    print()
    bars += judge_kernels(device, 1.0)
    print()
    finish(bars)


if __name__ == "__main__":
    main()
