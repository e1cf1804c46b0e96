"""Rules for what moves entries, joins and cuts tensors, or makes one entry of many.

What only moves entries is run on their labels. It is exact as long as it would move what is left
in the same way; what picks entries by their number, or moves them by a number, would not.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad as padded_with_zeros

from lightning_prune.channels.flow import Flow
from lightning_prune.channels.labels import (
    collapse_axis,
    collect_rows,
    has_nonzero_entries,
    mark_nonzero,
    narrow_expanded_axes,
)
from lightning_prune.channels.operations import Call, Stored, Value, reordered


def copy(flow: Flow, call: Call) -> Value:
    """The same entries."""
    return flow.entries(call[0])


def zeros(flow: Flow, call: Call) -> Value:
    """As many entries as another tensor has, zero."""
    return flow.entries(call[0]).abs()


def constant(flow: Flow, call: Call) -> Value:
    """Entries of a shape of their own, whatever the tensor holds whose type they take."""
    return torch.zeros(call.shape, dtype=torch.long)


def reorder(flow: Flow, call: Call) -> Value:
    """What is stored is known by its axes."""
    source = call[0]
    return reordered(source, call) if isinstance(source, Stored) else move(flow, call)


def move(flow: Flow, call: Call) -> Value:
    """The same entries, or copies, in places that do not depend on how many channels there are."""
    labels = flow.entries(call[0])
    if call.name.endswith("_as"):
        others = [torch.empty(flow.entries(value).shape) for value in call.inputs[1:]]
    elif len(call.inputs) > 1:
        return None
    else:
        others = []
    return _moved(flow, call, labels, call.run([labels, *others]))


def reshape(flow: Flow, call: Call) -> Value:
    """The same entries in the same order; an axis that becomes several is cut into slices."""
    labels = flow.entries(call[0])
    if labels.numel() != math.prod(call.shape):
        return None
    shaped = labels.reshape(call.shape)
    flow.note_crossing(shaped)
    return _moved(flow, call, labels, shaped)


def unfold(flow: Flow, call: Call) -> Value:
    """Windows of an axis; channels that share one go together."""
    labels = flow.entries(call[0])
    moved: Tensor = call.run([labels])
    flow.note_crossing(moved)
    return _moved(flow, call, labels, moved)


def roll(flow: Flow, call: Call) -> Value:
    """As a move, along axes where the channel is the same: others would be shifted by a number."""
    labels = flow.entries(call[0])
    axes = [axis % labels.ndim for axis in call.option("dims", [])]
    varying = flow.labels.varying_axes(labels)
    if varying and (not axes or set(axes) & set(varying)):
        return None
    return move(flow, call)


def pixel_shuffle(flow: Flow, call: Call) -> Value:
    """As a move; the channels of which one is made go together."""
    labels = flow.entries(call[0])
    moved: Tensor = call.run([labels])
    flow.note_crossing(moved, moved.ndim - 3)
    return _moved(flow, call, labels, moved)


def channel_shuffle(flow: Flow, call: Call) -> Value:
    """As a move; groups stay of one size, so the same slot of all goes."""
    labels, groups = flow.entries(call[0]), call.option("groups")
    flow.note_crossing(labels.reshape(len(labels), groups, -1, *labels.shape[2:]), 2)
    return _moved(flow, call, labels, call.run([labels.contiguous()]))


def slices(flow: Flow, call: Call) -> Value:
    """A part of an axis, cut by numbers in code; in steps only where the channel is the same."""
    labels = flow.entries(call[0])
    axis = call.option("dim", 0) % labels.ndim
    if call.option("step", 1) != 1 and axis in flow.labels.varying_axes(labels):
        return None
    return _moved(flow, call, labels, call.run([labels]))


def select(flow: Flow, call: Call) -> Value:
    """One index, or each on its own, of an axis along which channels are the same in the end."""
    labels = flow.entries(call[0])
    flow.note_pick(labels, call.option("dim", 0))
    moved = call.run([labels])
    if isinstance(moved, Tensor):
        return _moved(flow, call, labels, moved)
    for part in moved:
        flow.note_cut(call, part)
    return list(moved)


def index(flow: Flow, call: Call) -> Value:
    """Entries picked by numbers along an axis on which the channel is the same."""
    labels = flow.entries(call[0])
    if call.name == "index_select":
        axis, rank = call.option("dim") % labels.ndim, 1
        indices = call["index"]
    else:
        given = call["indices"]
        assert isinstance(given, list)
        axes = [axis for axis, each in enumerate(given) if each is not None]
        if len(axes) != 1:
            return None
        axis, indices = axes[0], given[axes[0]]
        rank = len(call.shape) - labels.ndim + 1
    if axis in flow.labels.varying_axes(labels):
        return None
    flow.keep_dense(indices, "is used as an index")
    one = collapse_axis(labels, axis).squeeze(axis)
    for _ in range(rank):
        one = one.unsqueeze(axis)
    return one.expand(call.shape)


def cat(flow: Flow, call: Call) -> Value:
    """All entries one after another; along other axes channels lie side by side."""
    parts = [flow.entries(value) for value in call.inputs]
    joined: Tensor = call.run(parts)
    axis = call.option("dim", 0) % joined.ndim
    varying = [each for each in flow.labels.varying_axes(joined) if each != axis]
    flow.note_crossing(joined, varying[-1] if varying else None)
    return joined


def split(flow: Flow, call: Call) -> Value:
    """Parts of an axis; those of one size lose the same channels, to stay so.

    Parts of other sizes are cut by numbers that the code has, or else by one that would change.
    """
    labels = flow.entries(call[0])
    parts = list(call.run([labels]))
    axis = call.option("dim", 0) % labels.ndim
    is_even = len({part.shape for part in parts}) == 1
    if axis in flow.labels.varying_axes(labels):
        if is_even:
            rows = [collect_rows(part, axis).flatten() for part in parts]
            flow.labels.join_rows(torch.stack(rows, 1), "cut into pieces")
        elif call.name != "split_with_sizes":
            return None
    for part in (labels, *parts):
        flow.note_cut(call, part)
    return parts


def pad(flow: Flow, call: Call) -> Value:
    """Around a channel, what is added is a part of it; between channels, zeros are no channels."""
    labels, widths = flow.entries(call[0]), call.option("pad")
    value, mode = call.option("value", 0), call.option("mode", "constant")
    axes = [labels.ndim - 1 - i // 2 for i, width in enumerate(widths) if width]
    if set(axes) & set(flow.labels.varying_axes(labels)):
        is_added = mode == "constant" and min(widths) >= 0
        return padded_with_zeros(labels, widths) if is_added else None
    for axis in axes:
        labels = collapse_axis(labels, axis)
    labels = labels.expand(call.shape)
    return mark_nonzero(labels) if value else labels


def _moved(flow: Flow, call: Call, before: Tensor, after: Tensor) -> Tensor:
    flow.note_cut(call, before)
    flow.note_cut(call, after)
    return after


# -- one entry of many ---------------------------------------------------------------------------

_NOT_ZERO_OF_ZEROS = ("logsumexp", "argmax", "argmin")
_ZERO_ADDS_NOTHING = ("sum", "norm", "linalg_vector_norm")


def pool(flow: Flow, call: Call) -> Value:
    """Zero where the channel is, as padding counts for nothing or for zero."""
    labels = flow.entries(call[0])
    spatial = next(int(digit) for digit in "123" if f"{digit}d" in call.name)
    return _reduced(flow, labels, range(-spatial, 0), call.shape, "pooled with other channels")


def reduce(flow: Flow, call: Call) -> Value:
    """Within a channel, zero of zeros; over channels, exact if a zero adds nothing."""
    labels, name = flow.entries(call[0]), call.name
    axes = call.option("dim", [])
    axes = [axes] if isinstance(axes, int) else list(axes) or list(range(labels.ndim))
    axes = [axis % labels.ndim for axis in axes]
    varying = flow.labels.varying_axes(labels)
    if varying and set(varying) <= set(axes):
        order = call.option("ord", call.option("p", 2))
        if name not in _ZERO_ADDS_NOTHING or has_nonzero_entries(labels) or order <= 0:
            flow.labels.keep_dense(labels, f"{name} over its channels")
        return torch.zeros(call.shape, dtype=torch.long)
    shape = [1 if axis in axes else size for axis, size in enumerate(labels.shape)]
    result = _reduced(flow, labels, axes, shape, f"{name} over its channels").reshape(call.shape)
    return mark_nonzero(result) if name in _NOT_ZERO_OF_ZEROS else result


def _reduced(
    flow: Flow, labels: Tensor, axes: Sequence[int], shape: Sequence[int], reason: str
) -> Tensor:
    """Join what is reduced to one entry, and return the labels of the result."""
    axes = [axis % labels.ndim for axis in axes]
    small = narrow_expanded_axes(labels)
    rest = [axis for axis in range(labels.ndim) if axis not in axes]
    rows = small.permute(*rest, *axes).flatten(len(rest)) if rest else small.reshape(1, -1)
    flow.labels.join_rows(rows.reshape(-1, rows.shape[-1]), reason)
    for axis in axes:
        labels = collapse_axis(labels, axis)
    return labels.expand(tuple(shape))
