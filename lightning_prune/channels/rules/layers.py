"""Rules for layers: what reads channels with stored weights, makes them, or normalises them.

A channel that a layer makes is zero where its row of the weight and its bias are. A channel that a
layer reads is absorbed, zero or not, as the column that reads it is zero.
"""

import math

import torch
from torch import Tensor

from lightning_prune.channels.flow import Flow
from lightning_prune.channels.labels import (
    collapse_axis,
    collect_rows,
    mark_nonzero,
    spread_along_axis,
)
from lightning_prune.channels.operations import Call, Stored, Value


def linear(flow: Flow, call: Call) -> Value:
    """Outputs are rows of the weight, inputs its columns."""
    weight = call["weight"]
    if not isinstance(weight, Stored) or len(weight.axes) != 2:
        return None
    return dense_layer(flow, call, flow.entries(call["input"]), weight, call["bias"], made=0)


def addmm(flow: Flow, call: Call) -> Value:
    """A linear layer whose outputs are columns of the weight."""
    weight = call["mat2"]
    if call.option("alpha", 1) != 1 or call.option("beta", 1) != 1:
        return None
    if not isinstance(weight, Stored) or len(weight.axes) != 2:
        return None
    return dense_layer(flow, call, flow.entries(call["mat1"]), weight, call["self"], made=1)


def dense_layer(
    flow: Flow, call: Call, source: Tensor, weight: Stored, bias: Value, made: int
) -> Tensor:
    """Inputs, along the last axis, times a stored matrix that makes outputs along an axis."""
    flow.read(collect_rows(source, -1), weight, weight.axes[1 - made])
    return spread_along_axis(flow.make(weight, made, bias, weight.axes[made]), -1, call.shape)


def convolution(flow: Flow, call: Call) -> Value:
    """A linear layer at each position; padding with zeros adds nothing, whatever the channel holds.

    With groups, those must stay of one size: the same slot of every group goes. Depthwise, a group
    is a channel with all that is made of it.
    """
    weight, source = call["weight"], flow.entries(call["input"])
    if not isinstance(weight, Stored):
        return None
    transposed = "transpose" in call.name or call.option("transposed", False)
    groups = call.option("groups", 1)
    axis = source.ndim - len(weight.axes) + 1  # 0 without a batch
    rows = collect_rows(source, axis)
    first, second = weight.axes[:2]
    made = 1 if transposed else 0
    if groups == 1:
        flow.read(rows, weight, first if transposed else second)
        labels = weight.axes[made]
    elif groups == len(rows):
        flow.read(rows, weight, first.view(groups, -1))
        labels = first.repeat_interleave(len(second)) if transposed else first
        made = 0
        flow.labels.keep_dense(second, "is used as a value")
    else:
        slots = rows.view(groups, len(rows) // groups, -1).movedim(1, 0).flatten(1)
        if transposed:
            flow.read(slots, weight, first.view(groups, -1).T)
            labels = second.repeat(groups)
        else:
            flow.read(slots, weight, second)
            flow.labels.join_rows(first.view(groups, -1).T, "groups")
            labels = first
    return spread_along_axis(flow.make(weight, made, call["bias"], labels), axis, call.shape)


def embedding(flow: Flow, call: Call) -> Value:
    """Rows are looked up by their number, which must not shift; columns are made."""
    weight = call["weight"]
    if not isinstance(weight, Stored):
        return None
    flow.keep_dense(call["indices"], "is used as an index")
    flow.labels.keep_dense(weight.axes[0], "is picked by its number")
    labels = weight.axes[1]
    return spread_along_axis(labels if weight.is_parameter else -labels, -1, call.shape)


def prelu(flow: Flow, call: Call) -> Value:
    """Zero stays zero; the slope of a channel goes with it."""
    labels, weight = flow.entries(call[0]), call[1]
    if not isinstance(weight, Stored):
        return None
    if len(weight.axes[0]) > 1:
        flow.labels.join_rows(
            torch.cat([collect_rows(labels, 1), weight.axes[0][:, None]], 1), "meets other values"
        )
    return labels


# -- normalisations ------------------------------------------------------------------------------


def batch_norm(flow: Flow, call: Call) -> Value:
    """Each channel is normalised alone; its scale and its shift make it zero.

    Without these it is not zero in evaluation, as the running mean is taken off.
    """
    return _normalised(flow, call, collect_rows(flow.entries(call["input"]), 1))


def group_norm(flow: Flow, call: Call) -> Value:
    """The channels of a group are normalised by what all of them hold, so a group goes whole."""
    groups, labels = call.option("num_groups"), flow.entries(call["input"])
    rows = collect_rows(labels, 1)
    flow.labels.join_rows(rows.reshape(groups, -1), "a part of a norm group")
    flow.refuse_one_class(rows, "width of a GroupNorm")
    return _normalised(flow, call, collect_rows(labels, 1))


def layer_norm(flow: Flow, call: Call) -> Value:
    """What is normalised together goes whole, as attention heads do that are normalised alone.

    RMSNorm leaves zeros zero, and so does a LayerNorm without a shift.
    """
    labels = flow.entries(call["input"])
    width = len(call.option("normalized_shape"))
    reason = f"width of {'a LayerNorm' if 'bias' in call else 'an RMSNorm'}"
    flow.labels.join_rows(labels.reshape(-1, math.prod(labels.shape[-width:])), reason)
    flow.refuse_one_class(labels, reason)
    bias = call["bias"]
    flow.keep_dense([call["weight"], bias], reason)
    for axis in range(-width, 0):
        labels = collapse_axis(labels, axis)
    return (labels if bias is None else mark_nonzero(labels)).expand(call.shape)


def _normalised(flow: Flow, call: Call, rows: Tensor) -> Tensor | None:
    names = [n for n in ("weight", "bias", "running_mean", "running_var") if n in call]
    given = {name: value for name in names if (value := call[name]) is not None}
    if not all(isinstance(value, Stored) for value in given.values()):
        return None
    stored = {name: value for name, value in given.items() if isinstance(value, Stored)}
    flow.labels.join_rows(
        torch.cat([rows, *(value.axes[0][:, None] for value in stored.values())], 1),
        "normalises other values",
    )
    made_zero = all(n in stored and stored[n].is_parameter for n in ("weight", "bias"))
    labels = flow.labels.representatives(rows[:, 0])
    flow.note_cut(call, labels)
    return spread_along_axis(labels if made_zero else -labels, 1, call.shape)
