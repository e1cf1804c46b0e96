"""Rules for what is computed entry by entry: entries that meet are of one channel."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lightning_prune.channels.flow import Flow
from lightning_prune.channels.labels import (
    NO_CHANNEL,
    has_channels,
    is_unexpanded,
    narrow_expanded_axes,
)
from lightning_prune.channels.operations import Call, Value

_NO_CHANNELS = "meets values that are no channels"
_PROBES = 64  # random values at which an operation is tried

Outcome = Callable[[list[bool]], tuple[bool, bool]]
"""From which operands are zero: whether the result is then, and whether it can be finite."""


def pointwise(flow: Flow, call: Call) -> Value:
    """Zero where the operation gives zero for its operands that are; tried, not looked up."""
    added = call.name in ("add", "sub", "subtract")
    return combined(flow, call.shape, call.inputs, lambda zero: _outcome(call, zero), added=added)


def combined(
    flow: Flow, shape: Sequence[int], values: Sequence[Value], outcome: Outcome, *, added: bool
) -> Tensor:
    """Join the channels of entries that meet.

    Args:
        flow: The labels of the model.
        shape: That of the result, to which all are expanded.
        values: The operands.
        outcome: What comes out of zeros.
        added: Whether activations that meet are a residual stream.
    """
    partner = next((v for v in values if isinstance(v, Tensor) and has_channels(v)), None)
    operands = _without_gates(flow, [flow.entries(value, partner) for value in values], shape)
    small = [narrow_expanded_axes(each, *operands) for each in operands]
    result = torch.stack([flow.labels.representatives(operand) for operand in small]).amax(0)
    for operand, each in zip(operands, small, strict=True):
        if not has_channels(each):
            meet_unlabelled(flow, operand, result)
    for value, operand in zip(values, small, strict=True):
        flow.labels.join(operand, result, by_addition=added and isinstance(value, Tensor))
    result = flow.labels.representatives(result)
    for operand in small:
        if has_channels(operand):
            clash = (operand == NO_CHANNEL) & (result != NO_CHANNEL)
            flow.labels.keep_dense(result[clash], _NO_CHANNELS)
    is_zero = _is_zero(flow, result, small, outcome)
    return torch.where(is_zero, result, -result).expand(tuple(shape))


def meet_unlabelled(flow: Flow, operand: Tensor, labels: Tensor) -> None:
    """Join along the axes of values without channels that differ for each index of them.

    Exact, as the values stay as many as they are.

    Args:
        flow: The labels of the model.
        operand: The entries without channels, expanded.
        labels: Those that they meet, possibly thin.
    """
    axes = [axis for axis in flow.labels.varying_axes(labels) if is_unexpanded(operand, axis)]
    if axes:
        rest = [axis for axis in range(labels.ndim) if axis not in axes]
        size = math.prod(labels.shape[axis] for axis in axes)
        flow.labels.join_rows(labels.permute(*rest, *axes).reshape(-1, size), _NO_CHANNELS)
        flow.refuse_one_class(labels, _NO_CHANNELS)


def glu(flow: Flow, call: Call) -> Value:
    """Halves that are multiplied go together: zero where the half is that is no gate."""
    value, gate = flow.entries(call[0]).chunk(2, call.option("dim", -1))
    small = narrow_expanded_axes(value, gate)
    pairs = torch.stack([small.flatten(), narrow_expanded_axes(gate, value).flatten()], 1)
    flow.labels.join_rows(pairs, _NO_CHANNELS)
    return value


def _without_gates(flow: Flow, operands: Sequence[Tensor], shape: Sequence[int]) -> list[Tensor]:
    """Expand operands; keep dense a single channel that all channels of another meet: a gate."""
    expanded = [operand.expand(tuple(shape)) for operand in operands]
    axes = [set(flow.labels.varying_axes(operand)) for operand in expanded]
    for index, operand in enumerate(operands):
        others = set().union(*axes[:index], *axes[index + 1 :])
        ahead = len(shape) - operand.ndim
        is_one = any(axis < ahead or operand.shape[axis - ahead] == 1 for axis in others)
        if is_one and not axes[index] and has_channels(operand):
            flow.labels.keep_dense(operand, _NO_CHANNELS)
            expanded[index] = torch.zeros(operand.shape, dtype=torch.long).expand(tuple(shape))
    return expanded


def _is_zero(flow: Flow, result: Tensor, operands: Sequence[Tensor], outcome: Outcome) -> Tensor:
    """Return where the result is zero; what cannot be finite there stays dense."""
    codes = torch.zeros_like(result)
    for index, operand in enumerate(operands):
        codes = codes + ((operand > 0).long() << index)
    found = torch.zeros_like(result, dtype=torch.bool)
    for code in torch.unique(codes).tolist():
        is_zero, is_finite = outcome([bool(code >> i & 1) for i in range(len(operands))])
        if is_zero:
            found |= codes == code
        if code and not is_finite:
            flow.labels.keep_dense(result[codes == code], "is not finite where it is pruned")
    return found


def _outcome(call: Call, is_zero: list[bool]) -> tuple[bool, bool]:
    generator = torch.Generator().manual_seed(0)

    def operand(zero: bool, dtype: torch.dtype) -> Tensor:
        values = torch.randn(_PROBES, generator=generator) * 10
        return values.mul(not zero).to(dtype)

    operands = [operand(*each) for each in zip(is_zero, call.types, strict=True)]
    try:
        result = call.run(operands)
    except (RuntimeError, TypeError, ValueError):  # such as an operand of a certain shape
        return False, True
    if not isinstance(result, Tensor):
        return False, True
    return not bool(result.count_nonzero()), bool(result.isfinite().any())
