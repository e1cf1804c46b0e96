"""Measure the memory that pruning takes: `python benchmarks/memory.py`.

Reads every allocation and release of torch from the profiler, so that the numbers are exact and
without noise. Prints three tables, as Markdown:

- The masks, in bytes an entry and in bits an entry of a state. In memory, an entry may take as much
  as a weight on a CPU, and a byte elsewhere. In a state, it may take a bit, beside a few bytes a
  tensor.
- Training steps in which no update is due, in a plain loop and in a Trainer. With pruning, the peak
  may be higher by the masks alone. A step may make no more new tensors as large as a weight, which
  means as many bytes as the smallest weight has entries.
- A full update of the masks of 25 M weights in 60 tensors, the costlier of two. The peak may exceed
  the bytes before or after the update by a copy of the largest tensor in single precision, and 2
  MiB of counts. The bytes of numpy are added to those of torch, as if both peaks came at once. The
  last column shows the whole process, as Linux counts it.

Exits with 1 if a bar is missed.
"""

import argparse
import gc
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.kit.judging import Bar, finish
from benchmarks.kit.recording import describe_machine, silence_libraries, write_markdown_header
from benchmarks.parts.memory import masks, steps, updates


class Row(Protocol):
    """A row of a table, with bars."""

    def write_row(self) -> str:
        """Return the row as Markdown."""

    def set_bars(self) -> Iterator[Bar]:
        """Yield the bars."""


def print_rows(headings: Sequence[str], rows: Iterable[Row]) -> list[Bar]:
    """Print a table row by row, and return the bars of all rows."""
    print("", write_markdown_header(*headings), sep="\n")
    bars = []
    for row in rows:
        print(row.write_row(), flush=True)
        bars += row.set_bars()
    return bars


def main() -> None:
    """Measure all, print, and judge."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="of the weights"
    )
    parser.add_argument("--width", type=int, default=512, help="of the network that is trained")
    parser.add_argument("--scale", type=float, default=1.0, help="scales the 25 M weights")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    torch.set_num_threads(1)
    silence_libraries()
    gc.freeze()  # keeps the collector from visiting the imported modules each time
    print(describe_machine())
    bars = [
        *print_rows(masks.HEADINGS, masks.measure_all_masks(arguments.width, device)),
        *print_rows(steps.HEADINGS, steps.measure_all_steps(arguments.width, device)),
        *print_rows(updates.HEADINGS, updates.measure_all_updates(arguments.scale, device)),
    ]
    print()
    finish(bars)


if __name__ == "__main__":
    main()
