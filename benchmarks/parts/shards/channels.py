"""Channels of shards, compared with a single process; the traffic does not grow with the width."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from benchmarks.kit.judging import Bar
from benchmarks.kit.processes import Run
from benchmarks.parts.shards.cases import (
    HEADINGS,
    Case,
    Masks,
    compare,
    prune_twice,
    set_common_bars,
)
from benchmarks.parts.shards.traffic import Updates
from lightning_prune import Allocation, ChannelPattern, GlobalAllocation, UniformAllocation

CHANNEL_HEADINGS = (*HEADINGS[:2], "network", *HEADINGS[3:6], "bytes a channel", *HEADINGS[6:])
BLOCKS, CHANNELS = 2, 1024
ALLOCATIONS = (UniformAllocation(), GlobalAllocation())


def write_channels(case: Case) -> str:
    """Return a row of the table."""
    return case.write_row(f"{case.updates.handed / (BLOCKS * CHANNELS):.1f}")


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


def measure_all_channels(widths: Sequence[int], worlds: Mapping[int, Run]) -> Iterator[Case]:
    """Yield uniform and global ranking at all widths.

    Args:
        widths: Numbers of inputs.
        worlds: By the number of processes, the function that runs a function in them.
    """
    plan = [(width, allocation) for allocation in ALLOCATIONS for width in widths]
    return compare(prune_channels, plan, "inputs", worlds)


def set_channel_bars(cases: Sequence[Case]) -> Iterator[Bar]:
    """Yield the bars: the masks of one process, and the same traffic at all widths."""
    return set_common_bars(cases, cases, growth=1.0)
