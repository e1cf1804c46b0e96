"""The bytes of the sparse file, by the atoms that each group keeps."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_prune.deploy.files import need_libraries
from lightning_prune.deploy.sparse_layout import (
    DTYPES,
    TensorSize,
    count_sparse_bytes,
    dtype_name,
    identify,
)
from lightning_prune.engine.costs import Cost
from lightning_prune.engine.groups import Group
from lightning_prune.engine.shapes import Shape, count_entries, find_shapes, fix_shape, is_fixed
from lightning_prune.models.names import named_tensors, plain_name
from lightning_prune.recipe.budgets import Unit


@dataclass(frozen=True, kw_only=True)
class _Tensor:
    """A tensor of the ``state_dict``.

    Args:
        name: The name.
        dtype: The type.
        shape: The shape after removal.
        nonzero: Number of nonzero entries, if it is known and neither zeros nor removal change it.
        group: The name of the group whose atoms are zeroed in place; None without a group.
        width: Number of weights of an atom.
        same_as: The name of the tensor that this is tied to.
    """

    name: str
    dtype: torch.dtype
    shape: Shape
    nonzero: int | None
    group: str | None
    width: int
    same_as: str | None

    @property
    def is_dense(self) -> bool:
        """Whether no group lowers the bytes."""
        return self.group is None and is_fixed(self.shape)

    def measure(self, kept: Mapping[str, int]) -> TensorSize:
        """Return the size for numbers of kept atoms."""
        shape = tuple(axis(kept) for axis in self.shape)
        nonzero = self.nonzero
        if self.group is not None:
            nonzero = kept[self.group] * self.width
        elif nonzero is None:
            nonzero = count_entries(self.shape, kept)
        return TensorSize(self.name, self.dtype, shape, nonzero, self.same_as)


class SparseFileCost(Cost):
    """The bytes of the file that `save_sparse` writes of the whole ``state_dict``, exactly.

    Kept weights count as nonzero, and so do dense parameters and buffers of numbers, whose values
    can change until the end. Boolean buffers count as they are. So the real file is never larger.

    Args:
        model: The dense model.
        groups: The groups that are pruned.

    Raises:
        ValueError: If a file cannot hold a tensor.
        ModuleNotFoundError: If safetensors is not installed.
    """

    unit: Unit = "bytes"

    def __init__(self, model: nn.Module, groups: Iterable[Group]) -> None:
        need_libraries("safetensors")
        self._tensors = _list_tensors(model, tuple(groups))

    def __call__(self, kept: Mapping[str, int]) -> float:
        """Return the bytes of the file."""
        return float(count_sparse_bytes(tensor.measure(kept) for tensor in self._tensors))

    def dense_parts(self) -> Mapping[str, float]:
        """Return the bytes of each tensor that no group makes smaller, by name."""
        sizes = {
            plain_name(tensor.name): tensor.measure({})
            for tensor in self._tensors
            if tensor.is_dense and tensor.same_as is None
        }
        return {
            name: float(size.dtype.itemsize * torch.Size(size.shape).numel())
            for name, size in sizes.items()
        }


def _list_tensors(model: nn.Module, groups: tuple[Group, ...]) -> tuple[_Tensor, ...]:
    named, shapes = named_tensors(model), find_shapes(model, groups)
    in_place = {
        id(group.members[0].parameter): group for group in groups if not group.removable_places
    }
    first_names: dict[object, str] = {}
    tensors = []
    for name, value in model.state_dict().items():
        _refuse_unwritable(name, value)
        original = named.get(plain_name(name), value)
        first = first_names.setdefault(_identify(name, value, original), name)
        group = in_place.get(id(original))
        shape = shapes.get(plain_name(name), fix_shape(value.shape))
        tensors.append(
            _Tensor(
                name=name,
                dtype=value.dtype,
                shape=shape,
                nonzero=_count_boolean(value) if is_fixed(shape) else None,
                group=group.name if group else None,
                width=group.members[0].total // group.total if group else 0,
                same_as=None if first == name else first,
            )
        )
    return tuple(tensors)


def _identify(name: str, value: Tensor, original: Tensor) -> object:
    """Return a key that tied tensors share; a shard has no address of its own."""
    is_plain = type(value) in (Tensor, nn.Parameter) and value.device.type != "meta"
    return identify(name, value) if is_plain else id(original)


def _count_boolean(value: Tensor) -> int | None:
    return int(value.count_nonzero()) if value.dtype == torch.bool else None


def _refuse_unwritable(name: str, value: object) -> None:
    """Raise ValueError if a file cannot hold a value of the ``state_dict``."""
    kind = dtype_name(value.dtype) if isinstance(value, Tensor) else type(value).__name__
    if kind not in DTYPES:
        raise ValueError(
            f"need tensors of a type among {', '.join(DTYPES)} for a budget of bytes, got "
            f"'{name}' of type {kind}"
        )
