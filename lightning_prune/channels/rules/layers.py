"""Rules for layers, which read channels with stored weights, produce them or normalize them.

A pruned channel is zero where it is produced: a row of the weight is zero, and so is the bias. A
pruned channel is ignored where it is read: a column of the weight is zero. So the channel may hold
any values there.
"""

import math

import torch
from torch import Tensor

from lightning_prune.channels.flow import Flow, Rule
from lightning_prune.channels.labels import (
    collapse_axis,
    collect_rows,
    mark_nonzero,
    spread_along_axis,
)
from lightning_prune.channels.operations import Operation, StoredTensor, Value


def linear(flow: Flow, operation: Operation) -> Value:
    """Exact: an output is a row of the weight, an input is a column."""
    weight = operation["weight"]
    if not isinstance(weight, StoredTensor) or len(weight.shape) != 2:
        return None
    inputs = flow.label_entries(operation["input"])
    return _multiply_by_matrix(flow, operation, inputs, weight, operation["bias"], output_axis=0)


def addmm(flow: Flow, operation: Operation) -> Value:
    """Exact as a linear layer; here an output is a column of the weight."""
    weight = operation["mat2"]
    if operation.option("alpha", 1) != 1 or operation.option("beta", 1) != 1:
        return None
    if not isinstance(weight, StoredTensor) or len(weight.shape) != 2:
        return None
    inputs = flow.label_entries(operation["mat1"])
    return _multiply_by_matrix(flow, operation, inputs, weight, operation["self"], output_axis=1)


def convolution(flow: Flow, operation: Operation) -> Value:
    """Exact: a convolution is a linear layer at each position.

    Padding is zero for every channel, so it adds nothing.
    """
    weight, inputs = operation["weight"], flow.label_entries(operation["input"])
    if not isinstance(weight, StoredTensor):
        return None
    is_transposed = "transpose" in operation.name or operation.option("transposed", False)
    groups = operation.option("groups", 1)
    axis = inputs.ndim - len(weight.shape) + 1  # 0 without a batch
    rows = collect_rows(inputs, axis)
    output_axis = 1 if is_transposed else 0
    if groups == 1:
        flow.read(rows, weight, weight.axis_labels[1 - output_axis])
        labels = weight.axis_labels[output_axis]
    elif groups == len(rows):
        output_axis = 0
        labels = _read_depthwise(flow, weight, rows, is_transposed)
    else:
        labels = _read_grouped(flow, weight, rows, groups, is_transposed)
    channels = flow.produce(weight, output_axis, operation["bias"], labels)
    return spread_along_axis(channels, axis, operation.result_shape)


def embedding(flow: Flow, operation: Operation) -> Value:
    """Exact for columns, which are the channels; rows are found by number and must not shift."""
    weight = operation["weight"]
    if not isinstance(weight, StoredTensor):
        return None
    flow.keep_dense(operation["indices"], "is used as an index")
    flow.labels.keep_dense(weight.axis_labels[0], "is picked by number")
    labels = weight.axis_labels[1]
    labels = labels if weight.is_parameter else -labels
    return spread_along_axis(labels, -1, operation.result_shape)


def prelu(flow: Flow, operation: Operation) -> Value:
    """Exact: zero stays zero; a channel and the slope go together, unless all share one slope."""
    labels, slopes = flow.label_entries(operation[0]), operation[1]
    if not isinstance(slopes, StoredTensor):
        return None
    if len(slopes.axis_labels[0]) > 1:
        rows = torch.cat([collect_rows(labels, 1), slopes.axis_labels[0][:, None]], 1)
        flow.labels.join_rows(rows, "meets other values")
    return labels


def _multiply_by_matrix(
    flow: Flow,
    operation: Operation,
    inputs: Tensor,
    weight: StoredTensor,
    bias: Value,
    *,
    output_axis: int,
) -> Tensor:
    """Multiply inputs, along the last axis, by a matrix that produces channels along an axis."""
    flow.read(collect_rows(inputs, -1), weight, weight.axis_labels[1 - output_axis])
    channels = flow.produce(weight, output_axis, bias, weight.axis_labels[output_axis])
    return spread_along_axis(channels, -1, operation.result_shape)


def _read_depthwise(flow: Flow, weight: StoredTensor, rows: Tensor, is_transposed: bool) -> Tensor:
    """Join a channel with its own filters, and return the labels of the outputs."""
    first, second = weight.axis_labels[:2]
    flow.read(rows, weight, first.view(len(rows), -1))
    flow.labels.keep_dense(second, "is used as a value")
    return first.repeat_interleave(len(second)) if is_transposed else first


def _read_grouped(
    flow: Flow, weight: StoredTensor, rows: Tensor, groups: int, is_transposed: bool
) -> Tensor:
    """Join the same slot of every group, and return the labels of the outputs.

    All groups of a convolution have one size, so a slot is removed from all groups or from none.
    """
    first, second = weight.axis_labels[:2]
    slots = rows.view(groups, len(rows) // groups, -1).movedim(1, 0).flatten(1)
    first_slots = first.view(groups, -1).T
    if is_transposed:
        flow.read(slots, weight, first_slots)
        return second.repeat(groups)
    flow.read(slots, weight, second)
    flow.labels.join_rows(first_slots, "shares a convolution group")
    return first


# -- normalizations ------------------------------------------------------------------------------


def batch_norm(flow: Flow, operation: Operation) -> Value:
    """Exact: each channel is normalized alone.

    A pruned channel has a scale and a shift of zero, so it is zero afterward. Without them it is
    not zero: the running mean is subtracted in evaluation mode.
    """
    labels = flow.label_entries(operation["input"])
    return _normalize_channels(flow, operation, collect_rows(labels, 1))


def group_norm(flow: Flow, operation: Operation) -> Value:
    """Exact for whole norm groups: the channels of a group share their mean and deviation."""
    groups, labels = operation.option("num_groups"), flow.label_entries(operation["input"])
    rows = collect_rows(labels, 1)
    flow.labels.join_rows(rows.reshape(groups, -1), "is part of a norm group")
    flow.keep_dense_if_single(rows, "width of a GroupNorm")
    flow.note_counted_axes(operation, rows.reshape(groups, -1))
    return _normalize_channels(flow, operation, rows)


def layer_norm(flow: Flow, operation: Operation) -> Value:
    """Exact for all entries that are normalized together, such as an attention head.

    Zeros stay zero without a shift, as in RMSNorm.
    """
    labels = flow.label_entries(operation["input"])
    width = len(operation.option("normalized_shape"))
    reason = f"width of {'a LayerNorm' if 'bias' in operation else 'an RMSNorm'}"
    flow.labels.join_rows(labels.reshape(-1, math.prod(labels.shape[-width:])), reason)
    flow.keep_dense_if_single(labels, reason)
    bias = operation["bias"]
    flow.keep_dense([operation["weight"], bias], reason)
    for axis in range(-width, 0):
        labels = collapse_axis(labels, axis)
    return (labels if bias is None else mark_nonzero(labels)).expand(operation.result_shape)


def _normalize_channels(flow: Flow, operation: Operation, rows: Tensor) -> Tensor | None:
    """Join each channel with the scale, the shift and the running statistics of the channel.

    Args:
        flow: The labels of the model.
        operation: The normalization.
        rows: The labels of each channel, ``(channels, entries)``.
    """
    names = [n for n in ("weight", "bias", "running_mean", "running_var") if n in operation]
    given = {name: value for name in names if (value := operation[name]) is not None}
    stored = {name: value for name, value in given.items() if isinstance(value, StoredTensor)}
    if len(stored) < len(given):
        return None
    columns = [value.axis_labels[0][:, None] for value in stored.values()]
    flow.labels.join_rows(torch.cat([rows, *columns], 1), "is normalized with other values")
    is_zero = all(n in stored and stored[n].is_parameter for n in ("weight", "bias"))
    labels = flow.labels.representatives(rows[:, 0])
    flow.note_counted_axes(operation, labels)
    return spread_along_axis(labels if is_zero else -labels, 1, operation.result_shape)


RULES: dict[str, Rule] = {
    "linear": linear,
    "addmm": addmm,
    "conv1d": convolution,
    "conv2d": convolution,
    "conv3d": convolution,
    "conv_transpose1d": convolution,
    "conv_transpose2d": convolution,
    "conv_transpose3d": convolution,
    "convolution": convolution,
    "embedding": embedding,
    "prelu": prelu,
    "batch_norm": batch_norm,
    "instance_norm": batch_norm,
    "_native_batch_norm_legit_functional": batch_norm,
    "_native_batch_norm_legit_no_training": batch_norm,
    "group_norm": group_norm,
    "layer_norm": layer_norm,
    "rms_norm": layer_norm,
}
