"""Replicas and shards: local parts of tensors, and sums over processes."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Literal, TypeGuard

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
        positions: For each axis, the positions of the local part, ascending.
        starts: For each axis, where the parts of all processes begin, ascending.
        groups: The process groups that hold the parts; sums over all groups in turn give the sum
            over the whole tensor.
    """

    shape: tuple[int, ...]
    positions: tuple[Tensor, ...]
    starts: tuple[tuple[int, ...], ...]
    groups: "tuple[ProcessGroup, ...]"

    @property
    def device(self) -> torch.device:
        """Device of the local part; messages start there."""
        return self.positions[0].device

    def transpose(self, axis: int, other: int) -> "Shard":
        """Return the shard of the tensor with two axes exchanged."""
        order = list(range(len(self.shape)))
        order[axis], order[other] = order[other], order[axis]
        return Shard(
            shape=tuple(self.shape[axis] for axis in order),
            positions=tuple(self.positions[axis] for axis in order),
            starts=tuple(self.starts[axis] for axis in order),
            groups=self.groups,
        )

    def is_cut(self, axis: int, length: int | None = None) -> bool:
        """Whether any process holds only a part of a run of indices along an axis.

        Args:
            axis: The axis.
            length: Length of the runs, which divides the axis; None for the whole axis.
        """
        size = self.shape[axis]
        return any(start % (length or size) for start in self.starts[axis] if start < size)

    def group(self, axis: int, length: int) -> "Shard":
        """Return the shard whose indices along an axis are runs that `is_cut` finds whole."""
        before, after = slice(axis), slice(axis + 1, None)
        places = self.positions[axis][::length] // length
        starts = tuple(start // length for start in self.starts[axis])
        return replace(
            self,
            shape=(*self.shape[before], self.shape[axis] // length, *self.shape[after]),
            positions=(*self.positions[before], places, *self.positions[after]),
            starts=(*self.starts[before], starts, *self.starts[after]),
        )

    def merge(self, axis: int) -> "Shard":
        """Return the shard with an axis and the next axis flattened into one."""
        after, (outer, inner) = axis + 2, self.positions[axis : axis + 2]
        of_outer, of_inner = self.starts[axis : axis + 2]
        rows, size = self.shape[axis : axis + 2]
        begins = range(rows) if len(of_inner) > 1 else of_outer
        starts = tuple(begin * size + start for begin in begins for start in of_inner)
        positions = (outer[:, None] * size + inner).flatten()
        return replace(
            self,
            shape=(*self.shape[:axis], rows * size, *self.shape[after:]),
            positions=(*self.positions[:axis], positions, *self.positions[after:]),
            starts=(*self.starts[:axis], starts, *self.starts[after:]),
        )

    def flatten(self) -> "Shard":
        """Return the shard of the matrix with the first axis, and all other axes flattened."""
        shard = self
        if len(self.shape) == 1:
            column = torch.zeros(1, dtype=torch.int64, device=self.device)
            return replace(
                self,
                shape=(*self.shape, 1),
                positions=(*self.positions, column),
                starts=(*self.starts, (0,)),
            )
        while len(shard.shape) > 2:
            shard = shard.merge(1)
        return shard

    def take_rows(self, rows: slice) -> "Shard":
        """Return the shard with only some of the local rows."""
        return replace(self, positions=(self.positions[0][rows], *self.positions[1:]))

    def find_indices(self) -> Tensor:
        """Return for each local weight the row-major index in the whole tensor."""
        index = torch.zeros((), dtype=torch.int64, device=self.positions[0].device)
        for size, positions in zip(self.shape, self.positions, strict=True):
            index = index[..., None] * size + positions
        return index

    def find_indices_at(self, places: Tensor) -> Tensor:
        """Return the same indices, for local weights at the given flat places in the local part."""
        index = torch.zeros_like(places)
        by_axis = torch.unravel_index(places, [len(positions) for positions in self.positions])
        for size, positions, place in zip(self.shape, self.positions, by_axis, strict=True):
            index = index * size + positions[place]
        return index

    def cut(self, whole: Tensor) -> Tensor:
        """Return the local part of a whole tensor."""
        for axis, positions in enumerate(self.positions):
            whole = whole.index_select(axis, positions.to(whole.device))
        return whole


def find_shard(parameter: Tensor) -> Shard | None:
    """Return the shard of a parameter in this process; None for a whole parameter.

    Raises:
        RuntimeError: If the layout does anything but cut axes into chunks.
    """
    if not is_sharded(parameter):
        return None
    from torch.distributed.tensor import Shard as Cut
    from torch.distributed.tensor.placement_types import _StridedShard

    mesh = parameter.device_mesh
    local = local_part(parameter)
    positions = [_number_positions(size, local.device) for size in parameter.shape]
    runs = [[range(size)] for size in parameter.shape]
    cuts = {
        axis: placement
        for axis, placement in enumerate(parameter.placements)
        if isinstance(placement, Cut | _StridedShard)
    }
    # FSDP2 cuts ("strided") the chunks of tensor parallelism, but stands before it in the mesh.
    for axis in sorted(cuts, key=lambda axis: isinstance(cuts[axis], _StridedShard)):
        dim = cuts[axis].dim
        runs[dim] = [part for run in runs[dim] for part in _chunk(run, mesh.size(axis))]
        chunks = positions[dim].chunk(mesh.size(axis))
        rank = mesh.get_local_rank(axis)
        positions[dim] = chunks[rank] if rank < len(chunks) else positions[dim][:0]
    if [len(of_axis) for of_axis in positions] != list(local.shape):
        raise RuntimeError(
            f"need shards that are chunks of axes, got placements={parameter.placements} of a "
            f"tensor {tuple(parameter.shape)} with a local part {tuple(local.shape)}"
        )
    return Shard(
        shape=tuple(parameter.shape),
        positions=tuple(positions),
        starts=tuple(tuple(run.start for run in of_axis) for of_axis in runs),
        groups=tuple(mesh.get_group(axis) for axis in cuts),
    )


def _chunk(run: range, parts: int) -> list[range]:
    """Return the parts of a run as `torch.chunk` cuts it, without empty parts."""
    step = -(-len(run) // parts)
    return [run[begin : begin + step] for begin in range(0, len(run), step)] if run else [run]


@cache
def _number_positions(size: int, device: torch.device) -> Tensor:
    """Return the positions of a whole axis; axes of the same length share the tensor."""
    return torch.arange(size, device=device)


def is_sharded(tensor: Tensor) -> "TypeGuard[DTensor]":
    """Whether the tensor is distributed: this process holds a part or a replica."""
    if type(tensor) in (Tensor, nn.Parameter) or not torch.distributed.is_available():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def refuse_shards(parameters: Mapping[str, Tensor], *, wanted: str, remedy: str) -> None:
    """Refuse parameters of which one is sharded.

    Args:
        parameters: The parameters by name.
        wanted: Words for the feature that needs whole parameters.
        remedy: Words for the features that work.

    Raises:
        ValueError: If a parameter is sharded.
    """
    for name, parameter in parameters.items():
        if is_sharded(parameter):
            raise ValueError(
                f"need whole parameters for {wanted}, got the sharded '{name}' (FSDP2 or tensor "
                f"parallelism); {remedy}"
            )


def local_part(tensor: Tensor) -> Tensor:
    """Return the local part of a tensor, detached; writing into it changes the tensor."""
    if type(tensor) is Tensor and not tensor.requires_grad:  # as gradients at each step
        return tensor
    tensor = tensor.detach()
    return tensor.to_local() if is_sharded(tensor) else tensor


def lay_out_like(parameter: Tensor, local: Tensor) -> Tensor:
    """Return the tensor with this local part and the layout of the parameter."""
    if not is_sharded(parameter):
        return local
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        local,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )


def sum_shards(counts: Tensor, shard: Shard | None) -> Tensor:
    """Sum the counts over all parts of a tensor."""
    for group in shard.groups if shard else ():
        assert shard is not None
        counts = counts.to(shard.device, copy=True)
        torch.distributed.all_reduce(counts, group=group)
    return counts


def sum_by_tensor(counts: Sequence[tuple[Tensor, Shard | None]]) -> Tensor:
    """Return a row for each tensor: the counts summed over all parts, with a message a layout."""
    by_layout: dict[tuple[ProcessGroup, ...], list[int]] = {}
    for row, (_, shard) in enumerate(counts):
        by_layout.setdefault(shard.groups if shard else (), []).append(row)
    first = counts[0][0].device
    table = torch.stack([count.to(first) for count, _ in counts]).cpu()  # waits once for all
    for groups, rows in by_layout.items():
        if groups:
            table[rows] = sum_shards(table[rows], counts[rows[0]][1]).cpu()
    return table


def combine_shards(
    values: Sequence[Tensor], shards: Sequence[Shard | None], by: Literal["sum", "max"]
) -> list[Tensor]:
    """Combine values entry by entry over all parts of each tensor, with a message a layout.

    Args:
        values: Flat tensors of one dtype, each as long on all processes.
        shards: For each of them, which processes hold a part; None for this process alone.
        by: Whether to add the values up, or to take the largest.
    """
    combined = list(values)
    by_layout: dict[tuple[ProcessGroup, ...], list[int]] = {}
    for index, shard in enumerate(shards):
        by_layout.setdefault(shard.groups if shard else (), []).append(index)
    for groups, indices in by_layout.items():
        if groups:
            operation = getattr(torch.distributed.ReduceOp, by.upper())
            first = shards[indices[0]]
            assert first is not None
            message = torch.cat([values[index].to(first.device) for index in indices])
            for group in groups:
                torch.distributed.all_reduce(message, op=operation, group=group)
            parts = torch.split(message, [len(values[index]) for index in indices])
            for index, part in zip(indices, parts, strict=True):
                combined[index] = part.to(values[index].device)
    return combined


def sum_replicas(tensors: Iterable[Tensor]) -> None:
    """Sum tensors in place over the processes, which have gathered them from different data.

    This sends a message for each device and dtype. Every process of the default group counts as a
    replica.
    """
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return
    by_kind: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for tensor in tensors:
        by_kind.setdefault((tensor.device, tensor.dtype), []).append(tensor)
    for same_kind in by_kind.values():
        message = torch.cat([tensor.flatten() for tensor in same_kind])
        torch.distributed.all_reduce(message)
        parts = torch.split(message, [tensor.numel() for tensor in same_kind])
        for tensor, summed in zip(same_kind, parts, strict=True):
            tensor.copy_(summed.view_as(tensor))


def gather_whole(local: Tensor, shard: Shard | None) -> Tensor:
    """Return the whole tensor on every process, of bool masks or numbers."""
    if shard is None:
        return local
    dtype = torch.uint8 if local.dtype == torch.bool else local.dtype
    whole = torch.zeros(math.prod(shard.shape), dtype=dtype, device=local.device)
    whole[shard.find_indices().flatten()] = local.flatten().to(dtype)
    return sum_shards(whole, shard).to(local.dtype).view(shard.shape)
