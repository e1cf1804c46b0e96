"""FSDP2 on several processes of this machine, compared with a single process."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn

from benchmarks.kit.judging import Bar
from benchmarks.kit.processes import Run
from benchmarks.kit.recording import write_markdown_row
from benchmarks.parts.shards.traffic import HALF_THEN_ALL, MB, Traffic, Updates, make_two_updates
from lightning_prune import (
    Allocation,
    ERKAllocation,
    GlobalAllocation,
    Pruner,
    UniformAllocation,
)

HEADINGS = (
    "allocation",
    "processes",
    "weights",
    "messages",
    "MB handed over",
    "MB sent by a ring",
    "entries that differ",
    "s",
    "s of one process",
)
LARGEST_GROWTH = 2.0  # of the traffic, where a tensor is searched in which equal scores run out
TENSORS, COLUMNS = 20, 64

Masks = Mapping[str, Tensor]  # packed to bits


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model on several processes, compared with a single process.

    Args:
        ranks: Number of processes.
        size: Of the model, for a reader.
        allocation: The allocation.
        updates: The cost to the process with the most traffic.
        alone: The cost to a process that holds the whole model.
        differing: Number of mask entries that differ from those of the single process.
    """

    ranks: int
    size: str
    allocation: Allocation
    updates: Updates
    alone: Updates
    differing: int

    @property
    def name(self) -> str:
        """The name of the case in a bar."""
        return f"{type(self.allocation).__name__}, {self.size}, {self.ranks} processes"

    def write_row(self, *more: str) -> str:
        """Return a row of the table, with more cells after the traffic."""
        updates = self.updates
        return write_markdown_row(
            type(self.allocation).__name__,
            self.ranks,
            self.size,
            updates.messages,
            f"{updates.handed / MB:.3f}",
            f"{updates.sent / MB:.3f}",
            *more,
            self.differing,
            f"{updates.seconds:.2f}",
            f"{self.alone.seconds:.2f}",
        )


def build_tied_network(millions: float) -> nn.Sequential:
    """Return matrices of a few dozen magnitudes, with numbers of rows that nothing divides."""
    generator = torch.Generator().manual_seed(0)
    rows = round(millions * 1e6 / TENSORS / COLUMNS)
    network = nn.Sequential()
    for index in range(TENSORS):
        layer = nn.Linear(COLUMNS, rows + index - TENSORS // 2, bias=False)
        spread = 8 * (1 + index % 5)
        values = torch.randn(layer.weight.shape, generator=generator)
        layer.weight.data = (values * spread).round() / 64
        network.append(layer)
    return network


def shard(network: nn.Sequential) -> nn.Module:
    """Return the network with all matrices cut into rows by FSDP2; each part is a unit."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    for part in network:
        fully_shard(part, mesh=mesh)
    return fully_shard(network, mesh=mesh)


def prune(ranks: int, millions: float, allocation: Allocation) -> tuple[Updates, Masks]:
    """Return the cost to this process, and the masks of the whole model.

    Args:
        ranks: Number of processes; 1 leaves the model whole.
        millions: Weights of the model.
        allocation: The allocation.
    """
    return prune_twice(ranks, build_tied_network(millions), sparsity=0.9, allocation=allocation)


def prune_twice(ranks: int, network: nn.Sequential, **recipe: Any) -> tuple[Updates, Masks]:
    """Return the cost to this process, and the masks of the whole network.

    Args:
        ranks: Number of processes; 1 leaves the network whole.
        network: The network.
        **recipe: All answers but the schedule.
    """
    model = shard(network) if ranks > 1 else network
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    pruner = Pruner(schedule=HALF_THEN_ALL, **recipe)
    pruner.attach(model, optimizer, steps=2)
    updates = make_two_updates(pruner, optimizer, partial(Traffic, ranks))
    masks = pruner.state_dict()["masks"]
    pruner.detach()
    return updates, masks


def count_differing(masks: Masks, others: Masks) -> int:
    """Return the number of bits in which masks differ.

    Raises:
        ValueError: If the masks belong to different tensors.
    """
    if masks.keys() != others.keys():
        raise ValueError(f"need the masks of {list(masks)}, got those of {list(others)}")
    counts = torch.tensor([int(byte).bit_count() for byte in range(256)])
    return sum(int(counts[(bits ^ others[name]).long()].sum()) for name, bits in masks.items())


def measure_all_cases(sizes: Sequence[float], worlds: Mapping[int, Run]) -> Iterator[Case]:
    """Yield global ranking at all sizes, and uniform and ERK at the middle size.

    Args:
        sizes: Millions of weights.
        worlds: By the number of processes, the function that runs a function in them.
    """
    middle = sorted(sizes)[len(sizes) // 2]
    plan: list[tuple[float, Allocation]] = [(size, GlobalAllocation()) for size in sorted(sizes)]
    plan += [(middle, UniformAllocation()), (middle, ERKAllocation())]
    return compare(prune, plan, "M", worlds)


def compare(
    prune: Callable[[int, Any, Allocation], tuple[Updates, Masks]],
    plan: Sequence[tuple[float, Allocation]],
    unit: str,
    worlds: Mapping[int, Run],
) -> Iterator[Case]:
    """Yield models on several processes, compared with a single process.

    Args:
        prune: Returns the cost and the masks, for a number of processes, a size and an allocation.
        plan: Sizes and allocations.
        unit: Of the sizes.
        worlds: By the number of processes, the function that runs a function in them.
    """
    all_alone = [prune(1, *row) for row in plan]
    for ranks, run in worlds.items():
        for (size, allocation), (alone, masks) in zip(plan, all_alone, strict=True):
            results: Sequence[tuple[Updates, Masks]] = run(prune, ranks, size, allocation)
            yield Case(
                ranks=ranks,
                size=f"{size:g} {unit}",
                allocation=allocation,
                updates=max((updates for updates, _ in results), key=lambda each: each.sent),
                alone=alone,
                differing=max(count_differing(masks, others) for _, others in results),
            )


def set_bars(cases: Sequence[Case]) -> Iterator[Bar]:
    """Yield the bars of the masks and, for global ranking, of the traffic and its growth."""
    together = [case for case in cases if isinstance(case.allocation, GlobalAllocation)]
    for case in together:
        yield case.updates.set_bar(case.name)
    yield from set_common_bars(cases, together, growth=LARGEST_GROWTH)


def set_common_bars(
    cases: Sequence[Case], compared: Sequence[Case], *, growth: float
) -> Iterator[Bar]:
    """Yield the bars of the masks, and of the growth of the traffic.

    Args:
        cases: All cases.
        compared: Those whose traffic is compared at all sizes.
        growth: The largest traffic over the least of all sizes.
    """
    least: dict[tuple[int, str], float] = defaultdict(lambda: float("inf"))
    kinds = [(case.ranks, type(case.allocation).__name__) for case in compared]
    for case, kind in zip(compared, kinds, strict=True):
        least[kind] = min(least[kind], case.updates.sent)
    for case in cases:
        yield Bar(name=f"{case.name}, entries that differ", value=case.differing, most=0)
    for case, kind in zip(compared, kinds, strict=True):
        yield Bar(
            name=f"{case.name}, traffic over the least of all sizes",
            value=case.updates.sent / least[kind],
            most=growth,
        )
