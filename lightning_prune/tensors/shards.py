"""All that pruning knows of replicas and shards."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.tensor import DTensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Shard:
    """The part of a tensor that this process holds (FSDP2, tensor parallelism).

    Args:
        shape: Shape of the whole tensor.
        positions: For each axis, which of its positions are here, ascending.
        groups: The process groups over which, one after the other, the parts add up to the whole.
    """

    shape: tuple[int, ...]
    positions: tuple[Tensor, ...]
    groups: "tuple[ProcessGroup, ...]"

    @property
    def device(self) -> torch.device:
        """Where the part is, and messages about it travel from."""
        return self.positions[0].device

    def transpose(self, axis: int, other: int) -> "Shard":
        """Return the shard of the tensor with two axes exchanged."""
        order = list(range(len(self.shape)))
        order[axis], order[other] = order[other], order[axis]
        return Shard(
            shape=tuple(self.shape[axis] for axis in order),
            positions=tuple(self.positions[axis] for axis in order),
            groups=self.groups,
        )

    def find_indices(self) -> Tensor:
        """Return the row-major index in the whole tensor of each entry that is here."""
        index = torch.zeros((), dtype=torch.int64, device=self.positions[0].device)
        for size, positions in zip(self.shape, self.positions, strict=True):
            index = index[..., None] * size + positions
        return index

    def find_indices_at(self, places: Tensor) -> Tensor:
        """Return these indices for some of the entries that are here, by their place among them."""
        index = torch.zeros_like(places)
        here = torch.unravel_index(places, [len(positions) for positions in self.positions])
        for size, positions, place in zip(self.shape, self.positions, here, strict=True):
            index = index * size + positions[place]
        return index

    def cut(self, whole: Tensor) -> Tensor:
        """Return what is here of a whole tensor."""
        for axis, positions in enumerate(self.positions):
            whole = whole.index_select(axis, positions.to(whole.device))
        return whole


def find_shard(parameter: Tensor) -> Shard | None:
    """Return which part of a parameter is here; None if all of it is.

    Raises:
        RuntimeError: If the layout is not one of axes that are cut into chunks.
    """
    if not is_sharded(parameter):
        return None
    from torch.distributed.tensor import Shard as Cut
    from torch.distributed.tensor.placement_types import _StridedShard

    mesh = parameter.device_mesh
    here = local_part(parameter)
    positions = [_number_positions(size, here.device) for size in parameter.shape]
    cuts = {
        axis: placement
        for axis, placement in enumerate(parameter.placements)
        if isinstance(placement, Cut | _StridedShard)
    }
    # FSDP2 cuts, "strided", what tensor parallelism has cut already, but is named before it.
    for axis in sorted(cuts, key=lambda axis: isinstance(cuts[axis], _StridedShard)):
        dim = cuts[axis].dim
        chunks = positions[dim].chunk(mesh.size(axis))
        rank = mesh.get_local_rank(axis)
        positions[dim] = chunks[rank] if rank < len(chunks) else positions[dim][:0]
    if [len(of_axis) for of_axis in positions] != list(here.shape):
        raise RuntimeError(
            f"need shards that are chunks of axes, got placements={parameter.placements} of a "
            f"tensor {tuple(parameter.shape)} with {tuple(here.shape)} here"
        )
    return Shard(
        shape=tuple(parameter.shape),
        positions=tuple(positions),
        groups=tuple(mesh.get_group(axis) for axis in cuts),
    )


@cache
def _number_positions(size: int, device: torch.device) -> Tensor:
    """Return the positions of a whole axis, the same tensor for all that are as long."""
    return torch.arange(size, device=device)


def is_sharded(tensor: Tensor) -> "TypeGuard[DTensor]":
    """Whether the tensor is distributed: this process holds a part of it, or a replica."""
    if type(tensor) in (Tensor, nn.Parameter) or not torch.distributed.is_available():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def local_part(tensor: Tensor) -> Tensor:
    """Return what this process holds of a tensor, detached; writing into it writes there."""
    tensor = tensor.detach()
    return tensor.to_local() if is_sharded(tensor) else tensor


def lay_out_like(parameter: Tensor, here: Tensor) -> Tensor:
    """Return what is here as a part of a tensor that is distributed as the parameter is."""
    if not is_sharded(parameter):
        return here
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        here,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )


def sum_shards(counts: Tensor, shard: Shard | None) -> Tensor:
    """Return the counts added up over the parts of a tensor."""
    for group in shard.groups if shard else ():
        assert shard is not None
        counts = counts.to(shard.device, copy=True)
        torch.distributed.all_reduce(counts, group=group)
    return counts


def sum_by_tensor(counts: Sequence[tuple[Tensor, Shard | None]]) -> Tensor:
    """Return a row for each tensor: its counts added up over its parts, one message a layout."""
    by_layout: dict[tuple[ProcessGroup, ...], list[int]] = {}
    for row, (_, shard) in enumerate(counts):
        by_layout.setdefault(shard.groups if shard else (), []).append(row)
    table = torch.stack([count for count, _ in counts])
    for rows in by_layout.values():
        table[rows] = sum_shards(table[rows], counts[rows[0]][1]).cpu()
    return table


def sum_pool(counts: Iterable[tuple[Tensor, Shard | None]]) -> Tensor:
    """Return the counts added up over tensors and their parts, in one message a layout."""
    by_layout: dict[tuple[ProcessGroup, ...], tuple[Tensor, Shard | None]] = {}
    for count, shard in counts:
        layout = shard.groups if shard else ()
        before = by_layout.get(layout)
        by_layout[layout] = (count if before is None else before[0] + count, shard)
    sums = [sum_shards(count, shard).cpu() for count, shard in by_layout.values()]
    return torch.stack(sums).sum(0)


def sum_replicas(tensors: Iterable[Tensor]) -> None:
    """Add up, in place, what the processes have gathered from different data.

    One message for each device and type. Every process of the default group is taken for a replica.
    """
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return
    alike: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for tensor in tensors:
        alike.setdefault((tensor.device, tensor.dtype), []).append(tensor)
    for some in alike.values():
        together = torch.cat([tensor.flatten() for tensor in some])
        torch.distributed.all_reduce(together)
        parts = torch.split(together, [tensor.numel() for tensor in some])
        for tensor, summed in zip(some, parts, strict=True):
            tensor.copy_(summed.view_as(tensor))


def gather_mask(mask: Tensor, shard: Shard | None) -> Tensor:
    """Return the whole of a mask on every process."""
    if shard is None:
        return mask
    whole = torch.zeros(math.prod(shard.shape), dtype=torch.uint8, device=mask.device)
    whole[shard.find_indices().flatten()] = mask.flatten().to(torch.uint8)
    return sum_shards(whole, shard).bool().view(shard.shape)
