"""Free sizes: dimensions of the inputs that a traced module takes in any size."""

from collections.abc import Collection, Mapping, Sequence
from itertools import chain, repeat
from typing import TypeAlias

from torch import Tensor, nn

from lightning_prune.arguments.words import suggest
from lightning_prune.models.calls import Call, bind_arguments
from lightning_prune.models.trees import map_tensors, name_leaves

DynamicShapes: TypeAlias = Mapping[str, Sequence[int]]
FreeSizes: TypeAlias = Sequence[Collection[int]]
"""The free dimensions of each tensor of a call, without the samples of a batch."""


def find_free_sizes(module: nn.Module, call: Call, dynamic_shapes: DynamicShapes) -> FreeSizes:
    """Return the free dimensions of each tensor of a call.

    Args:
        module: The module.
        call: The arguments of ``forward``.
        dynamic_shapes: Dimensions by the names of tensors.

    Raises:
        ValueError: If a tensor or a dimension does not exist, or the example has a size of less
            than 2 there, which `torch.export` takes for a constant.

    Examples:
        >>> import torch
        >>> call = Call((torch.ones(4, 6),), {})
        >>> find_free_sizes(nn.Linear(6, 2), call, {"input": [1]})
        [(1,)]
    """
    tensors = name_tensors(module, call)
    for name, dimensions in dynamic_shapes.items():
        if name not in tensors:
            raise ValueError(
                f"need names of inputs in dynamic_shapes, got '{name}'; the inputs are "
                f"{', '.join(tensors)}{suggest(name, tensors)}"
            )
        for dimension in dimensions:
            shape = list(tensors[name].shape)
            if not 0 <= dimension < len(shape):
                raise ValueError(
                    f"need dimensions from 0 to {len(shape) - 1} for '{name}' in dynamic_shapes, "
                    f"got {dimension}"
                )
            if shape[dimension] < 2:
                raise ValueError(
                    f"need an example with a size of 2 or more in dimension {dimension} of "
                    f"'{name}', got the shape {shape}: a size of 1 is taken for a constant"
                )
    return [tuple(dynamic_shapes.get(name, ())) for name in tensors]


def name_tensors(module: nn.Module, call: Call) -> dict[str, Tensor]:
    """Return the tensors of a call by the names of an ONNX file's inputs."""
    leaves = name_leaves(bind_arguments(module, call))
    return {name: leaf for name, leaf in leaves if isinstance(leaf, Tensor)}


def change_free_sizes(call: Call, free: FreeSizes) -> Call:
    """Return the call with another size in each free dimension: smaller by 1, or 3 instead of 2.

    Args:
        call: The arguments of ``forward``.
        free: The free dimensions of each tensor.

    Examples:
        >>> import torch
        >>> call = Call((torch.ones(4, 6), torch.ones(5, 2)), {})
        >>> [list(tensor.shape) for tensor in change_free_sizes(call, [(1,), (0, 1)]).tensors]
        [[4, 5], [4, 3]]
    """
    dimensions = iter(free)

    def change(tensor: Tensor) -> Tensor:
        for dimension in next(dimensions):
            size = tensor.shape[dimension]
            longer = tensor.repeat_interleave(2, dimension)
            tensor = longer.narrow(dimension, 0, size - 1 if size > 2 else size + 1)
        return tensor

    return map_tensors(change, call)


def fixed_sizes(call: Call, start: int, free: FreeSizes) -> list[dict[int, int]]:
    """Return the sizes of each tensor, by dimension, without the free dimensions.

    Args:
        call: The arguments of ``forward``.
        start: The first dimension: 1 if batches may have any size, else 0.
        free: The free dimensions of each tensor; empty for none.
    """
    dimensions = chain(free, repeat(()))  # the call may have more tensors than the example
    return [
        {at: size for at, size in enumerate(tensor.shape) if at >= start and at not in without}
        for tensor, without in zip(call.tensors, dimensions, strict=False)
    ]
