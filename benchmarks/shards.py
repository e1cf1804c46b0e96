"""Prune models that do not fit in a process: `python benchmarks/shards.py`.

Prunes the shards of FSDP2 in two updates, on a few processes of this machine that talk by gloo.
Counts the bytes that a process hands to collectives in the costlier update, and the bytes that a
ring would send. Global ranking may take 2 MB at every size of the model. Where equal scores run
out, a tensor may be searched for their indices, which may double the traffic. The masks must equal
those of a process that has the whole model, entry by entry. Many weights are tied. Uniform and ERK
rank each tensor alone, and are shown beside global ranking.

The same processes prune channels of a network of two feed-forward layers, at two widths. A message
holds sums over channels, so the traffic must be the same at both widths.

Then a rank of 64 prunes the shards that it would hold of a transformer of 70 B parameters, in
bfloat16: DTensors on a mesh whose other 63 ranks are not there. Each missing rank is assumed to
hold the same, so a sum over ranks is 64 times the value here. The numbers are real for a rank,
except that messages take no time. It ranks globally by magnitude, then prunes 2:4 by Wanda. This
needs about 5 GB of memory; `--simulated-billions` takes fewer layers.

Prints tables, as Markdown. Exits with 1 if masks differ, or if a bar of traffic or memory is
missed. Memory is the "high water mark" of the process that Linux counts. The allocator gives large
pieces back at once.
"""

import argparse
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.kit.judging import Bar, finish
from benchmarks.kit.processes import Run, start_processes
from benchmarks.kit.recording import describe_machine, write_markdown_header
from benchmarks.parts.shards.cases import HEADINGS, measure_all_cases, set_bars
from benchmarks.parts.shards.channels import (
    CHANNEL_HEADINGS,
    measure_all_channels,
    set_channel_bars,
    write_channels,
)
from benchmarks.parts.shards.simulation import BILLIONS, LAYERS, simulate


def read_arguments() -> argparse.Namespace:
    """Return the arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--processes", type=int, nargs="+", default=[2, 4], help="numbers of processes"
    )
    parser.add_argument("--millions", type=float, nargs="+", default=[1, 4, 16], help="of weights")
    parser.add_argument(
        "--inputs", type=int, nargs="+", default=[64, 1024], help="of the network with channels"
    )
    parser.add_argument(
        "--simulated-billions", type=float, default=BILLIONS, help="of parameters on 64 ranks"
    )
    return parser.parse_args()


def measure_processes(arguments: argparse.Namespace, worlds: Mapping[int, Run]) -> list[Bar]:
    """Print the tables of the processes of this machine, and return the bars."""
    print(write_markdown_header(*HEADINGS))
    cases = []
    for case in measure_all_cases(arguments.millions, worlds):
        cases.append(case)
        print(case.write_row(), flush=True)
    print("", write_markdown_header(*CHANNEL_HEADINGS), sep="\n")
    of_channels = []
    for channels in measure_all_channels(arguments.inputs, worlds):
        of_channels.append(channels)
        print(write_channels(channels), flush=True)
    return [*set_bars(cases), *set_channel_bars(of_channels)]


def main() -> None:
    """Measure all, print, and judge."""
    arguments = read_arguments()
    torch.set_num_threads(1)
    print(describe_machine(), "", sep="\n")
    with ExitStack() as stack:
        worlds = {
            ranks: stack.enter_context(start_processes(ranks)) for ranks in arguments.processes
        }
        bars = measure_processes(arguments, worlds)
    layers = max(1, round(LAYERS * arguments.simulated_billions / BILLIONS))
    for is_wanda in (False, True):
        simulation = simulate(layers, is_wanda=is_wanda)
        print("", simulation.write_table(), "", sep="\n", flush=True)
        bars += simulation.set_bars()
    finish(bars)


if __name__ == "__main__":
    main()
