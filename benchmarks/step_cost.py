"""Measure the cost of a training step between updates: `python benchmarks/step_cost.py`.

Trains a module in a Lightning Trainer, with `PruningCallback` and without it. The masks are at
sparsity 0.9 and no update is due. The batches are random and were made once in memory. Everything
runs on a single thread with fused AdamW, without a logger, a progress bar or checkpoints, and the
module logs nothing. There are three workloads:

- ResNet-18 of half the width at 32 x 32, batch 32. At full width, a step takes two seconds, which
  leaves too few blocks.
- A transformer encoder of 4 layers, width 256, 64 words, batch 16.
- LeNet-300-100, batch 128, the worst case.

Each training has a thread of its own. One thread at a time continues for a block of steps, in
random order. A block lasts from one `on_train_batch_start` to another, so it holds the whole loop
of Lightning. The clock is the CPU time of the process, which leaves out other programs. Trainings
are built anew in each of 2 rounds, or 6 for LeNet, because the place of a tensor in memory matters.
A second training without the callback shows the difference of two equal trainings. The others are
compared with both together. Another training with the callback is timed inside: the hooks of the
callback, those of the optimizer, and the calls in which Lightning collects logged values. Of these
calls counts what they take more than in the second training without the callback.

The script prints two ratios:

- The isolated ratio divides a step by the same step less the time inside. It is that of the fastest
  tenth of the blocks. It decides for ResNet-18 and the transformer, where two equal trainings
  differ by more than the bar of 1.01. It leaves out the slowdown of other code, as by a full cache.
- The ratio of the means of the fastest tenth of the blocks decides for LeNet.

Straight-through training, which chooses the masks anew after each step, has bars of its own: the
ratio of the means of the fastest tenth of the blocks.

Peers are measured on LeNet only, for lack of time. Each is used as documented, at sparsity 0.9,
which is checked before the timing. `ModelPruning` of Lightning and `torch.nn.utils.prune`
reparametrize with a hook; `WeightNormSparsifier` of torch.ao reparametrizes by
`torch.nn.utils.parametrize`. Two more peers are measured where they are installed, by
`pip install torchao coremltools`: PAT of torchao, in the phase that freezes the zeros, and
`MagnitudePruner` of coremltools. No peer may be cheaper by the fastest tenth.

After ResNet-18 follows the cost of the hooks of `SparsityMonitor`, in an epoch of 50 steps with
TensorBoard. In 21 of these steps, the masks are updated along the default ramp. By default,
histograms are drawn in every fifth epoch, so a fifth of a drawing counts.

`--callgrind` counts the instructions of a step of LeNet with and without the callback instead,
under valgrind. It needs a few minutes and judges nothing. Valgrind knows no AVX-512: on a processor
with AVX-512, products take fewer instructions than it counts, and the ratio is larger.

Prints tables as Markdown. Exits with 1 if a bar is missed.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.kit.judging import Bar, finish
from benchmarks.kit.recording import (
    describe_machine,
    hide_output,
    silence_libraries,
    write_markdown_header,
    write_markdown_row,
)
from benchmarks.parts.step_cost.instructions import print_instructions, train_counted
from benchmarks.parts.step_cost.lanes import Times, measure
from benchmarks.parts.step_cost.monitor import judge_monitor
from benchmarks.parts.step_cost.training import MONITOR_SHARE, WORKLOADS, Workload
from benchmarks.parts.step_cost.ways import AGAIN, BASE, DENSE, INSIDE, OURS, PEERS, RENEWED

HEADINGS = ("training", "ms a step, fastest", "fastest tenth", "over without", "tenth", "zeros")


def print_times(times: Mapping[str, Times], base: Times, absent: list[str]) -> None:
    """Print a row for each training.

    Args:
        times: The times by name.
        base: The times of both trainings without the callback.
        absent: Names of the peers that are not installed.
    """
    print(write_markdown_header(*HEADINGS))
    for name in [name for name in (*BASE, *PEERS) if name in times]:
        row = times[name]
        numbers = (
            1e3 * row.minimum,
            1e3 * row.fastest,
            row.minimum / base.minimum,
            row.fastest / base.fastest,
            row.zeros,
        )
        print(write_markdown_row(name, *(f"{number:.3f}" for number in numbers)))
    for name in absent:
        print(write_markdown_row(name, "not installed", "", "", "", ""))


def judge(workload: Workload, seconds: float) -> Iterator[Bar]:
    """Measure a workload, print the table, and yield the bars."""
    with hide_output():
        times, absent = measure(workload, seconds)
    base = Times(blocks=times[DENSE].blocks + times[AGAIN].blocks)
    inside = times[INSIDE]
    anyway = times[AGAIN].isolated
    spent = {name: s - anyway.get(name, 0.0) for name, s in inside.isolated.items()}
    isolated = inside.fastest / (inside.fastest - sum(spent.values()))
    print(f"\n{workload.name}: {len(inside.blocks)} blocks of each, bar {workload.bar}\n")
    print_times(times, base, absent)
    parts = ", ".join(f"{name} {1e6 * s:.0f}" for name, s in spent.items())
    print(f"\nisolated: {isolated:.4f}; µs a step in {parts}", flush=True)
    ours = times[OURS].fastest / base.fastest
    ratio = isolated if workload.is_isolated else ours
    yield Bar(name=f"{workload.name}, a step over a step without", value=ratio, most=workload.bar)
    renewed = times[RENEWED].fastest / base.fastest
    bar_name = f"{workload.name}, a step with masks chosen anew over a step without"
    yield Bar(name=bar_name, value=renewed, most=workload.renewed_bar)
    for name in PEERS:
        if name in times:
            peer = times[name].fastest / base.fastest
            yield Bar(name=f"{workload.name}, ours beside {name}", value=ours, most=peer)


def read_arguments() -> argparse.Namespace:
    """Return the arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [*WORKLOADS]
    parser.add_argument(
        "--workloads", nargs="+", choices=names, default=names, metavar="NAME", help="networks"
    )
    parser.add_argument("--seconds", type=float, default=230, help="for all workloads together")
    parser.add_argument("--callgrind", action="store_true", help="count instructions instead")
    parser.add_argument("--counted", choices=[*BASE], help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Measure all workloads, print, and judge; or count instructions."""
    arguments = read_arguments()
    silence_libraries()
    torch.set_num_threads(1)
    if arguments.counted:
        train_counted(arguments.counted)
        return
    print(describe_machine(*(package for package, _ in PEERS.values())))
    if arguments.callgrind:
        print_instructions()
        return
    bars: list[Bar] = []
    for name in arguments.workloads:
        workload = WORKLOADS[name]
        bars += judge(workload, workload.share * arguments.seconds)
        if name == "resnet":
            bars.append(judge_monitor(workload, MONITOR_SHARE * arguments.seconds))
    print()
    finish(bars)


if __name__ == "__main__":
    main()
