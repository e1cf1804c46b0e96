"""The memory of steps in which no update is due, without pruning and with it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.kit.judging import Bar
from benchmarks.kit.memory import MIB, Recording, record
from benchmarks.kit.recording import write_markdown_row
from benchmarks.parts.memory.training import LAST, LOOPS, SETTLED, Training, name_dtype

HEADINGS = (
    "step in",
    "optimizer",
    "weights",
    "peak without, MiB",
    "with",
    "more",
    "masks",
    "more new tensors a step as large as a weight",
    "of any size",
)
SLACK = 4096  # bytes a step of counts, losses and logged values


@dataclass(frozen=True, kw_only=True)
class Steps:
    """The settled steps of a training, without pruning and with it.

    Args:
        training: The training.
        loop: Name of the loop that runs it.
        peaks: The most bytes in use.
        held: Bytes in use after the last step.
        large: New tensors a step, with as many bytes as the smallest weight has entries.
        all: New tensors a step.
    """

    training: Training
    loop: str
    peaks: tuple[int, int]
    held: tuple[int, int]
    large: tuple[float, float]
    all: tuple[float, float]

    @property
    def cells(self) -> tuple[str, str, str]:
        """The loop, the optimizer and the type of the weights."""
        return self.loop, self.training.optimizer, name_dtype(self.training.dtype)

    @property
    def higher(self) -> int:
        """The peak with pruning less the peak without."""
        return self.peaks[1] - self.peaks[0]

    @property
    def masks(self) -> int:
        """The bytes held with pruning less those held without."""
        return self.held[1] - self.held[0]

    @property
    def more_large(self) -> float:
        """The large tensors with pruning less those without."""
        return self.large[1] - self.large[0]

    def write_row(self) -> str:
        """Return a row of the table."""
        sizes = (*self.peaks, self.higher, self.masks)
        return write_markdown_row(
            *self.cells,
            *(f"{size / MIB:.3f}" for size in sizes),
            f"{self.more_large:g}",
            f"{self.all[1] - self.all[0]:g}",
        )

    def set_bars(self) -> Iterator[Bar]:
        """Yield the bars of the peak and of the new tensors."""
        name = f"step in {', '.join(self.cells)}"
        yield Bar(
            name=f"{name}, more MiB at the peak",
            value=self.higher / MIB,
            most=(self.masks + SLACK) / MIB,
        )
        yield Bar(name=f"{name}, more tensors as large as a weight", value=self.more_large, most=0)


def measure_steps(training: Training, loop: str, device: torch.device) -> Steps:
    """Return the memory of the settled steps of a training."""
    make_run = LOOPS[loop]
    both = [record(make_run(training, is_pruned=is_pruned), device) for is_pruned in (False, True)]
    spans = [f"step {index}" for index in range(SETTLED, LAST)]

    def find_both(find: Callable[[Recording], Any]) -> tuple[Any, Any]:
        return find(both[0]), find(both[1])

    def count_tensors(recording: Recording, at_least: int) -> float:
        return sum(recording.count_allocations(name, at_least) for name in spans) / len(spans)

    return Steps(
        training=training,
        loop=loop,
        peaks=find_both(lambda recording: max(map(recording.find_peak, spans))),
        held=find_both(lambda recording: recording.count_after(spans[-1])),
        large=find_both(lambda recording: count_tensors(recording, training.smallest)),
        all=find_both(lambda recording: count_tensors(recording, 1)),
    )


def measure_all_steps(width: int, device: torch.device) -> Iterator[Steps]:
    """Yield the rows of the table, each with another optimizer, loop or type of weights."""
    for optimizer in ("SGD, fused", "AdamW, fused", "AdamW"):
        training = Training(width=width, optimizer=optimizer)
        for loop in LOOPS:
            yield measure_steps(training, loop, device)
    low = Training(width=width, optimizer="AdamW, fused", dtype=torch.bfloat16)
    yield measure_steps(low, "plain loop", device)
