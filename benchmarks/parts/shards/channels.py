"""Channels of shards, compared with a single process; the traffic does not grow with the width."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.kit.judging import Bar
from benchmarks.kit.processes import Run
from benchmarks.kit.recording import write_markdown_row
from benchmarks.parts.shards.cases import Masks, compare, prune_twice
from benchmarks.parts.shards.traffic import MB, Updates
from lightning_prune import Allocation, ChannelPattern, GlobalAllocation, UniformAllocation

CHANNEL_HEADINGS = (
    "allocation",
    "processes",
    "inputs",
    "messages",
    "MB handed over",
    "MB sent by a ring",
    "bytes a channel",
    "entries that differ",
    "s",
    "s of one process",
)
BLOCKS, CHANNELS = 2, 1024
ALLOCATIONS = (UniformAllocation(), GlobalAllocation())


@dataclass(frozen=True, kw_only=True)
class ChannelCase:
    """Channels on several processes, compared with a single process.

    Args:
        ranks: Number of processes.
        width: Number of inputs of the network.
        allocation: The allocation.
        updates: The cost to the process with the most traffic.
        alone: The cost to a process that holds the whole model.
        differing: Number of mask entries that differ from those of the single process.
    """

    ranks: int
    width: int
    allocation: Allocation
    updates: Updates
    alone: Updates
    differing: int

    @property
    def kind(self) -> tuple[int, str]:
        """Equal for cases that differ in the width alone."""
        return self.ranks, type(self.allocation).__name__

    @property
    def name(self) -> str:
        """The name of the case in a bar."""
        ranks, allocation = self.kind
        return f"channels, {allocation}, {self.width} inputs, {ranks} processes"

    def write_row(self) -> str:
        """Return a row of the table."""
        updates = self.updates
        return write_markdown_row(
            type(self.allocation).__name__,
            self.ranks,
            self.width,
            updates.messages,
            f"{updates.handed / MB:.3f}",
            f"{updates.sent / MB:.3f}",
            f"{updates.handed / (BLOCKS * CHANNELS):.1f}",
            self.differing,
            f"{updates.seconds:.2f}",
            f"{self.alone.seconds:.2f}",
        )


class Block(nn.Module):
    """A feed-forward layer that is added to its input; the hidden channels are pruned.

    Args:
        width: Number of inputs and outputs.
        generator: Draws the weights, which are a few dozen magnitudes.
    """

    def __init__(self, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.up = nn.Linear(width, CHANNELS)
        self.down = nn.Linear(CHANNELS, width)
        for layer in (self.up, self.down):
            values = torch.randn(layer.weight.shape, generator=generator)
            layer.weight.data = (values * 8).round() / 64

    def forward(self, values: Tensor) -> Tensor:
        """Add the outputs to the inputs."""
        outputs: Tensor = self.down(self.up(values).relu())
        return values + outputs


def prune_channels(ranks: int, width: int, allocation: Allocation) -> tuple[Updates, Masks]:
    """Return the cost to this process, and the masks of the whole model.

    Args:
        ranks: Number of processes; 1 leaves the model whole.
        width: Number of inputs of the network.
        allocation: The allocation.
    """
    generator = torch.Generator().manual_seed(0)
    network = nn.Sequential(*(Block(width, generator) for _ in range(BLOCKS)))
    network.example_input_array = torch.zeros(1, width)
    pattern = ChannelPattern(round_to=1)
    return prune_twice(ranks, network, sparsity=0.5, pattern=pattern, allocation=allocation)


def measure_all_channels(widths: Sequence[int], worlds: Mapping[int, Run]) -> Iterator[ChannelCase]:
    """Yield uniform and global ranking at all widths.

    Args:
        widths: Numbers of inputs.
        worlds: By the number of processes, the function that runs a function in them.
    """
    plan = [(width, allocation) for allocation in ALLOCATIONS for width in widths]
    all_alone = [prune_channels(1, *row) for row in plan]
    for ranks, run in worlds.items():
        for (width, allocation), (alone, masks) in zip(plan, all_alone, strict=True):
            updates, differing = compare(masks, run(prune_channels, ranks, width, allocation))
            yield ChannelCase(
                ranks=ranks,
                width=width,
                allocation=allocation,
                updates=updates,
                alone=alone,
                differing=differing,
            )


def set_channel_bars(cases: Sequence[ChannelCase]) -> Iterator[Bar]:
    """Yield the bars: the masks of one process, and the same traffic at all widths."""
    least: dict[tuple[int, str], float] = defaultdict(lambda: float("inf"))
    for case in cases:
        least[case.kind] = min(least[case.kind], case.updates.sent)
    for case in cases:
        yield Bar(name=f"{case.name}, entries that differ", value=case.differing, most=0)
        yield Bar(
            name=f"{case.name}, traffic over the least of all widths",
            value=case.updates.sent / least[case.kind],
            most=1,
        )
