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

Prints tables as Markdown, the last with the ratios of all workloads. Exits with 1 if a bar is
missed.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
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

RATIOS = ("workload", "over without", "isolated", "bar", "masks chosen anew over without", "bar")
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


@dataclass(frozen=True, kw_only=True)
class Ratios:
    """A step with pruning over a step without.

    Args:
        workload: What is trained.
        ours: Of the means of the fastest tenth of the blocks.
        isolated: The same, of the time in our hooks alone.
        renewed: Like ``ours``, with masks that are chosen anew at each step.
        peers: Like ``ours``, by the name of the peer.
    """

    workload: Workload
    ours: float
    isolated: float
    renewed: float
    peers: Mapping[str, float]

    def write_row(self) -> str:
        """Return a row of the last table; the ratio that the bar is for is bold."""
        ratios = {False: f"{self.ours:.3f}", True: f"{self.isolated:.4f}"}
        judged = self.workload.is_isolated
        cells = (f"**{each}**" if key is judged else each for key, each in ratios.items())
        bars = (self.workload.bar, f"{self.renewed:.2f}", self.workload.renewed_bar)
        return write_markdown_row(self.workload.name, *cells, *bars)

    def set_bars(self) -> Iterator[Bar]:
        """Yield the bars."""
        name = self.workload.name
        ratio = self.isolated if self.workload.is_isolated else self.ours
        yield Bar(name=f"{name}, a step over a step without", value=ratio, most=self.workload.bar)
        yield Bar(
            name=f"{name}, a step with masks chosen anew over a step without",
            value=self.renewed,
            most=self.workload.renewed_bar,
        )
        for peer, ratio in self.peers.items():
            yield Bar(name=f"{name}, ours beside {peer}", value=self.ours, most=ratio)


def compare(workload: Workload, seconds: float) -> Ratios:
    """Measure a workload, print the table, and return the ratios."""
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
    return Ratios(
        workload=workload,
        ours=times[OURS].fastest / base.fastest,
        isolated=isolated,
        renewed=times[RENEWED].fastest / base.fastest,
        peers={name: times[name].fastest / base.fastest for name in PEERS if name in times},
    )


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
    rows: list[str] = []
    for name in arguments.workloads:
        workload = WORKLOADS[name]
        ratios = compare(workload, workload.share * arguments.seconds)
        bars += ratios.set_bars()
        rows.append(ratios.write_row())
        if name == "resnet":
            bars.append(judge_monitor(workload, MONITOR_SHARE * arguments.seconds))
    print("", write_markdown_header(*RATIOS), *rows, "", sep="\n")
    finish(bars)


if __name__ == "__main__":
    main()
