"""Where the constants of an ONNX file come from, and so how removal changes their shapes."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np
from torch import nn

from lightning_prune.deploy.onnx_contents import Constant
from lightning_prune.engine.shapes import AxisLength, Shape, fix_shape
from lightning_prune.models.names import named_tensors

_FUSED_BIAS = "_bias"  # the suffix of a bias that comes from a normalization


@dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """The parameter or buffer that a constant is made of.

    Args:
        name: The name.
        order: The axes of the tensor in the order of the constant.
        factor: The constant over the tensor, for each index of the first axis; 1 if they are equal.
    """

    name: str
    order: tuple[int, ...]
    factor: "np.ndarray[Any, np.dtype[np.float32]] | float" = 1.0


def find_sources(module: nn.Module, constants: Iterable[Constant]) -> dict[str, Source]:
    """Return the sources of constants that keep the entries of a tensor, by name of the constant.

    A constant with the name and the shape of a tensor is made of that tensor, also if a
    normalization is merged into the values. Any other has equal values, up to the order of axes.

    Args:
        module: The module that was written, on the CPU.
        constants: The constants of the file of floats.
    """
    tensors = named_tensors(module)
    arrays = {
        name: tensor.detach().float().numpy()
        for name, tensor in tensors.items()
        if tensor.is_floating_point() and tensor.ndim > 0
    }
    sources = {}
    for constant in constants:
        shape = constant.values.shape
        if constant.name in arrays and arrays[constant.name].shape == shape:
            sources[constant.name] = Source(
                name=constant.name,
                order=tuple(range(len(shape))),
                factor=_find_factor(constant.values, arrays[constant.name]),
            )
        elif (source := _find_equal(constant, arrays)) is not None:
            sources[constant.name] = source
    return sources


def find_constant_shapes(
    constants: Iterable[Constant], sources: Mapping[str, Source], shapes: Mapping[str, Shape]
) -> dict[str, Shape]:
    """Return the shapes after removal of the constants that have a source, by name.

    A bias that comes from a normalization has the first axis of the weight.

    Args:
        constants: The constants of the file of floats.
        sources: Their sources.
        shapes: The shapes of the tensors after removal.
    """
    found = {}
    for constant in constants:
        weight = sources.get(constant.name.removesuffix(_FUSED_BIAS))
        if (source := sources.get(constant.name)) is not None:
            found[constant.name] = tuple(shapes[source.name][axis] for axis in source.order)
        elif weight is not None and constant.values.ndim == 1:
            found[constant.name] = (shapes[weight.name][weight.order[0]],)
    return found


def follow_lengths(
    dense: Sequence[int],
    smaller: Sequence[int],
    axes: Iterable[AxisLength],
    kept: Mapping[str, int],
    total: Mapping[str, int],
) -> Shape:
    """Return the shape after removal of a constant from the shapes in two files.

    An axis is followed by lengths: it has those, or a fraction or multiple of those, of an axis of
    a tensor. If no axis of a tensor fits, the length counts as fixed.

    Args:
        dense: The shape in the file of the dense model.
        smaller: The shape in the file without some channels.
        axes: The axes of all tensors that removal changes.
        kept: Number of channels that are left in the second file, by group.
        total: Number of channels in the first file.
    """
    if len(dense) != len(smaller):
        return fix_shape(dense)
    known = [(axis, axis(total), axis(kept)) for axis in axes]
    return tuple(_follow(*lengths, known) for lengths in zip(dense, smaller, strict=True))


def _follow(before: int, after: int, known: Iterable[tuple[AxisLength, int, int]]) -> AxisLength:
    """Return an axis of a tensor that changes as lengths do; of the same length if possible."""
    if before != after:
        for axis, full, left in sorted(known, key=lambda each: each[1] != before):
            scaled = axis.scale(before, full) if left * before == after * full else None
            if scaled is not None:
                return scaled
    return AxisLength(fixed=before)


def _find_factor(
    values: "np.ndarray[Any, Any]", array: "np.ndarray[Any, Any]"
) -> "np.ndarray[Any, np.dtype[np.float32]] | float":
    """Return by which factor a normalization has changed the weights of each output channel."""
    first = (slice(None), *(slice(1) for _ in values.shape[1:]))
    if np.array_equal(values, array) or not array[first].all():
        return 1.0
    factor: np.ndarray[Any, np.dtype[np.float32]] = (values[first] / array[first]).astype("float32")
    return factor


def _find_equal(
    constant: Constant, arrays: Mapping[str, "np.ndarray[tuple[int, ...], np.dtype[np.float32]]"]
) -> Source | None:
    """Return the first tensor that holds the values of a constant; None if no tensor does."""
    values = constant.values
    if values.ndim == 0 or values.dtype.kind != "f":
        return None
    for name, array in arrays.items():
        if array.size != values.size or array.ndim != values.ndim:
            continue
        for order in permutations(range(array.ndim)):
            moved = array.transpose(order)
            if moved.shape == values.shape and np.array_equal(moved, values):
                return Source(name=name, order=order)
    return None
