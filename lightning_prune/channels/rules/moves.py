"""Rules for operations that only move entries, or join and split tensors.

The operation is run on the labels of the entries. This is exact if the operation moves the
remaining entries in the same way after a removal. It would not if it counted channels.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import pad as pad_with_zeros

from lightning_prune.channels.flow import Flow, Rule
from lightning_prune.channels.labels import collapse_axis, collect_rows, mark_nonzero
from lightning_prune.channels.operations import Operation, StoredTensor, Value, reorder_axes
from lightning_prune.channels.rules.pointwise import (
    Outcome,
    combine_entries,
    join_along_unlabeled,
)


def copy(flow: Flow, operation: Operation) -> Value:
    """Exact: all entries stay where they are, with the same zeros."""
    return flow.label_entries(operation[0])


def zeros_like(flow: Flow, operation: Operation) -> Value:
    """Exact: the result has the shape of the argument, and is zero everywhere."""
    return flow.label_entries(operation[0]).abs()


def new_constant(flow: Flow, operation: Operation) -> Value:
    """Exact: the result takes only the dtype of the argument, so it has no channels."""
    return torch.zeros(operation.result_shape, dtype=torch.long, device="cpu")


def fill(flow: Flow, operation: Operation) -> Value:
    """Exact: all entries are the same number, so they repeat along each axis."""
    return torch.zeros((), dtype=torch.long, device="cpu").expand(operation.result_shape)


def read_size(flow: Flow, operation: Operation) -> Value:
    """Exact: the graph reads sizes that depend on values; those of channels are constants."""
    return torch.zeros((), dtype=torch.long, device="cpu")


def reorder(flow: Flow, operation: Operation) -> Value:
    """Exact: the entries keep their labels; a stored tensor keeps its labels for each axis."""
    source = operation[0]
    if isinstance(source, StoredTensor):
        return reorder_axes(source, operation)
    return move(flow, operation)


def move(flow: Flow, operation: Operation) -> Value:
    """Exact: entries are moved or repeated in a way that does not count channels."""
    labels = flow.label_entries(operation[0])
    others = []
    if operation.name.endswith("_as"):
        others = [torch.empty_like(flow.label_entries(value)) for value in operation.inputs[1:]]
    elif len(operation.inputs) > 1:
        return None
    return _note_lengths(flow, operation, labels, operation.run([labels, *others]))


def reshape(flow: Flow, operation: Operation) -> Value:
    """Exact: entries keep their order, and a channel fills whole slices of the new axes."""
    labels = flow.label_entries(operation[0])
    if labels.numel() != math.prod(operation.result_shape):
        return None
    shaped = labels.reshape(operation.result_shape)
    flow.require_single_axis(shaped)
    return _note_lengths(flow, operation, labels, shaped)


def unfold(flow: Flow, operation: Operation) -> Value:
    """Exact: windows are cut from an axis, and channels that share a window go together."""
    labels = flow.label_entries(operation[0])
    moved: Tensor = operation.run([labels])
    flow.require_single_axis(moved)
    return _note_lengths(flow, operation, labels, moved)


def roll(flow: Flow, operation: Operation) -> Value:
    """Exact along axes of one channel; channels themselves would be shifted by a number."""
    labels = flow.label_entries(operation[0])
    axes = [axis % labels.ndim for axis in operation.option("dims", [])]
    varying = flow.labels.varying_axes(labels)
    if varying and (not axes or set(axes) & set(varying)):
        return None
    return move(flow, operation)


def pixel_shuffle(flow: Flow, operation: Operation) -> Value:
    """Exact: channels whose entries become one channel go together."""
    labels = flow.label_entries(operation[0])
    moved: Tensor = operation.run([labels])
    flow.require_single_axis(moved, moved.ndim - 3)
    return _note_lengths(flow, operation, labels, moved)


def channel_shuffle(flow: Flow, operation: Operation) -> Value:
    """Exact: groups keep one size, since the same slot is removed from all groups."""
    labels, groups = flow.label_entries(operation[0]), operation.option("groups")
    flow.require_single_axis(labels.reshape(len(labels), groups, -1, *labels.shape[2:]), 2)
    return _note_lengths(flow, operation, labels, operation.run([labels.contiguous()]))


def slice_axis(flow: Flow, operation: Operation) -> Value:
    """Exact for a range, whose bounds in the code are tried later; not for steps over channels."""
    labels = flow.label_entries(operation[0])
    axis = operation.option("dim", 0) % labels.ndim
    if operation.option("step", 1) != 1 and axis in flow.labels.varying_axes(labels):
        return None
    return _note_lengths(flow, operation, labels, operation.run([labels]))


def select(flow: Flow, operation: Operation) -> Value:
    """Exact if channels are the same along the axis in the end: then no index counts them."""
    labels = flow.label_entries(operation[0])
    flow.require_same_channel(labels, operation.option("dim", 0))
    moved = operation.run([labels])
    if isinstance(moved, Tensor):
        return _note_lengths(flow, operation, labels, moved)
    for part in moved:
        flow.note_counted_axes(operation, part)
    return list(moved)


def index(flow: Flow, operation: Operation) -> Value:
    """Exact along an axis of one channel: then no index counts channels."""
    labels = flow.label_entries(operation[0])
    if operation.name == "index_select":
        axis, indices = operation.option("dim") % labels.ndim, operation["index"]
        rank = 1
    else:
        given = operation["indices"]
        assert isinstance(given, list)
        axes = [axis for axis, indices in enumerate(given) if indices is not None]
        if len(axes) != 1:
            return None
        axis, indices = axes[0], given[axes[0]]
        rank = len(operation.result_shape) - labels.ndim + 1
    if axis in flow.labels.varying_axes(labels):
        return None
    flow.keep_dense(indices, "is used as an index")
    labels = collapse_axis(labels, axis).squeeze(axis)
    for _ in range(rank):
        labels = labels.unsqueeze(axis)
    return labels.expand(operation.result_shape)


def scatter(flow: Flow, operation: Operation) -> Value:
    """Exact along an axis of one channel: rows go to rows by number, and zeros stay zeros."""
    name = next((each for each in ("source", "src") if each in operation), None)
    if name is None:
        return None  # a number in the place of rows
    target, source = flow.label_entries(operation["self"]), flow.label_entries(operation[name])
    axis = operation.option("dim") % target.ndim
    others = [each for each in range(target.ndim) if each != axis]
    if any(source.shape[each] != target.shape[each] for each in others):
        return None
    if axis in {*flow.labels.varying_axes(source), *flow.labels.varying_axes(target)}:
        return None
    flow.keep_dense(operation["index"], "is used as an index")
    index = flow.label_entries(operation["index"])
    if index.ndim == source.ndim:  # with a number for each entry
        if index.shape != source.shape:
            return None
        join_along_unlabeled(flow, index, source)
    row = collapse_axis(source, axis).narrow(axis, 0, 1)
    return combine_entries(
        flow,
        operation.result_shape,
        [target, row.expand(operation.result_shape)],
        lambda is_zero: Outcome(is_zero=all(is_zero), is_finite=True),
        by_addition=all(operation.is_fed),
    )


def concatenate(flow: Flow, operation: Operation) -> Value:
    """Exact: each part keeps its channels; along other axes, channels of the parts go together."""
    parts = [flow.label_entries(value) for value in operation.inputs]
    joined: Tensor = operation.run(parts)
    axis = operation.option("dim", 0) % joined.ndim
    others = [each for each in flow.labels.varying_axes(joined) if each != axis]
    flow.require_single_axis(joined, others[-1] if others else None)
    return joined


def split(flow: Flow, operation: Operation) -> Value:
    """Exact for equal parts, which lose the same channels and stay equal.

    Unequal parts are exact if their sizes stand in the code, which is tried later. Otherwise the
    number of channels would decide on the sizes.
    """
    labels = flow.label_entries(operation[0])
    parts = list(operation.run([labels]))
    axis = operation.option("dim", 0) % labels.ndim
    is_even = len({part.shape for part in parts}) == 1
    if axis in flow.labels.varying_axes(labels):
        if is_even:
            rows = [collect_rows(part, axis).flatten() for part in parts]
            flow.labels.join_rows(torch.stack(rows, 1), "is cut into pieces")
        elif operation.name != "split_with_sizes":
            return None
    for part in (labels, *parts):
        flow.note_counted_axes(operation, part)
    return parts


def pad(flow: Flow, operation: Operation) -> Value:
    """Exact: padding within a channel belongs to it, and zeros between channels to no channel."""
    labels, widths = flow.label_entries(operation[0]), operation.option("pad")
    value, mode = operation.option("value", 0), operation.option("mode", "constant")
    axes = [labels.ndim - 1 - i // 2 for i, width in enumerate(widths) if width]
    if set(axes) & set(flow.labels.varying_axes(labels)):
        is_added = mode == "constant" and min(widths) >= 0
        return pad_with_zeros(labels, widths) if is_added else None
    for axis in axes:
        labels = collapse_axis(labels, axis)
    labels = labels.expand(operation.result_shape)
    return mark_nonzero(labels) if value else labels


def _note_lengths(flow: Flow, operation: Operation, before: Tensor, after: Tensor) -> Tensor:
    """Note the lengths that the code may count on, and return the labels of the result."""
    flow.note_counted_axes(operation, before)
    flow.note_counted_axes(operation, after)
    return after


RULES: dict[str, Rule] = {
    "alias": copy,
    "clone": copy,
    "contiguous": copy,
    "detach": copy,
    "lift_fresh_copy": copy,
    "to": copy,
    "_to_copy": copy,
    "type_as": copy,
    "dropout": copy,
    "feature_dropout": copy,
    "native_dropout": copy,
    "zeros_like": zeros_like,
    "new_empty": new_constant,
    "new_tensor": new_constant,
    "zeros": fill,
    "ones": fill,
    "full": fill,
    "new_zeros": fill,
    "new_ones": fill,
    "new_full": fill,
    "sym_size": read_size,
    "transpose": reorder,
    "t": reorder,
    "permute": reorder,
    "movedim": move,
    "swapaxes": move,
    "swapdims": move,
    "unsqueeze": move,
    "squeeze": move,
    "expand": move,
    "expand_as": move,
    "repeat": move,
    "tile": move,
    "flip": move,
    "repeat_interleave": move,
    "pixel_unshuffle": move,
    "view": reshape,
    "_unsafe_view": reshape,
    "reshape": reshape,
    "flatten": reshape,
    "unflatten": reshape,
    "view_as": reshape,
    "reshape_as": reshape,
    "unfold": unfold,
    "roll": roll,
    "pixel_shuffle": pixel_shuffle,
    "channel_shuffle": channel_shuffle,
    "slice": slice_axis,
    "narrow": slice_axis,
    "select": select,
    "unbind": select,
    "index": index,
    "index_select": index,
    "index_add": scatter,
    "index_copy": scatter,
    "index_reduce": scatter,
    "scatter": scatter,
    "scatter_add": scatter,
    "scatter_reduce": scatter,
    "cat": concatenate,
    "stack": concatenate,
    "split": split,
    "split_with_sizes": split,
    "chunk": split,
    "pad": pad,
    "constant_pad_nd": pad,
}
