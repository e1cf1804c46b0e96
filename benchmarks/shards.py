"""Prune models that do not fit in a process: `python benchmarks/shards.py`.

Prunes the shards of FSDP2 in two updates, on a few processes of this machine that talk by gloo.
Counts the bytes that a process hands to collectives in the costlier update, and the bytes that a
ring would send. Global ranking may take 2 MB at every size of the model. Where equal scores run
out, a tensor may be searched for their indices, which may double the traffic. The masks must equal
those of a process that has the whole model, entry by entry. Many weights are tied. Uniform and ERK
rank each tensor alone, and are shown beside global ranking.

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
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.kit.judging import finish
from benchmarks.kit.recording import describe_machine, write_markdown_header
from benchmarks.parts.shards.cases import HEADINGS, measure_all_cases, set_bars
from benchmarks.parts.shards.simulation import BILLIONS, LAYERS, simulate


def read_arguments() -> argparse.Namespace:
    """Return the arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--processes", type=int, nargs="+", default=[2, 4], help="numbers of processes"
    )
    parser.add_argument("--millions", type=float, nargs="+", default=[1, 4, 16], help="of weights")
    parser.add_argument(
        "--simulated-billions", type=float, default=BILLIONS, help="of parameters on 64 ranks"
    )
    return parser.parse_args()


def main() -> None:
    """Measure all, print, and judge."""
    arguments = read_arguments()
    torch.set_num_threads(1)
    print(describe_machine(), "", write_markdown_header(*HEADINGS), sep="\n")
    cases = []
    for case in measure_all_cases(arguments.millions, arguments.processes):
        cases.append(case)
        print(case.write_row(), flush=True)
    layers = max(1, round(LAYERS * arguments.simulated_billions / BILLIONS))
    bars = [*set_bars(cases)]
    for is_wanda in (False, True):
        simulation = simulate(layers, is_wanda=is_wanda)
        print("", simulation.write_table(), "", sep="\n", flush=True)
        bars += simulation.set_bars()
    finish(bars)


if __name__ == "__main__":
    main()
