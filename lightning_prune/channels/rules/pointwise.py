"""Rules for pointwise operations: the entries of all operands that meet belong to one channel."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_prune.channels.flow import Flow, Rule
from lightning_prune.channels.labels import (
    NO_CHANNEL,
    collect_rows,
    has_channels,
    is_unexpanded,
    narrow_expanded_axes,
)
from lightning_prune.channels.operations import Operation, Value

_NO_CHANNELS = "meets values without channels"
_SAMPLES = 64  # random values on which an operation is tried


class Outcome(NamedTuple):
    """The result of a pointwise operation if some operands are zero.

    Args:
        is_zero: Whether the result is zero for all values of the other operands.
        is_finite: Whether the result is finite for any values of the other operands.
    """

    is_zero: bool
    is_finite: bool


Trial = Callable[[list[bool]], Outcome]
"""Takes for each operand whether it is zero."""


def pointwise(flow: Flow, operation: Operation) -> Value:
    """Exact: entries that meet go together, and a trial tells if zeros give zero.

    So no table has to list the operations that keep zeros. An addition makes a residual stream of
    two operands that depend on the inputs. A bias that does not, such as a table of biases of
    positions, goes with the channels that it is added to.
    """
    is_addition = operation.name in ("add", "sub", "subtract") and all(operation.is_fed)
    trial = partial(_try_zeros, operation)
    return combine_entries(
        flow, operation.result_shape, operation.inputs, trial, by_addition=is_addition
    )


def glu(flow: Flow, operation: Operation) -> Value:
    """Exact: a channel and the gate go together; the product is zero if the channel is."""
    labels, gates = flow.label_entries(operation[0]).chunk(2, operation.option("dim", -1))
    small, small_gates = narrow_expanded_axes(labels, gates), narrow_expanded_axes(gates, labels)
    pairs = torch.stack([small.flatten(), small_gates.flatten()], 1)
    flow.labels.join_rows(pairs, _NO_CHANNELS)
    return labels


def combine_entries(
    flow: Flow,
    shape: Sequence[int],
    values: Sequence[Value],
    trial: Trial,
    *,
    by_addition: bool,
) -> Tensor:
    """Join the channels of entries that meet, and return the labels of the result.

    Args:
        flow: The labels of the model.
        shape: Shape of the result, to which all operands are expanded.
        values: The operands.
        trial: Tells the result if some operands are zero.
        by_addition: Whether activations that meet are a residual stream.
    """
    partner = next((v for v in values if isinstance(v, Tensor) and has_channels(v)), None)
    operands = [flow.label_entries(value, partner) for value in values]
    operands = _expand_operands(flow, operands, shape)
    small = [narrow_expanded_axes(operand, *operands) for operand in operands]
    result = torch.stack([flow.labels.representatives(labels) for labels in small]).amax(0)
    for operand, labels in zip(operands, small, strict=True):
        if not has_channels(labels):
            join_along_unlabeled(flow, operand, result)
    for value, labels in zip(values, small, strict=True):
        flow.labels.join(labels, result, by_addition=by_addition and isinstance(value, Tensor))
    result = flow.labels.representatives(result)
    for labels in small:
        if has_channels(labels):
            is_mixed = (labels == NO_CHANNEL) & (result != NO_CHANNEL)
            flow.labels.keep_dense(result[is_mixed], _NO_CHANNELS)
    is_zero = _find_zeros(flow, result, small, trial)
    return torch.where(is_zero, result, -result).expand(tuple(shape))


def join_along_unlabeled(flow: Flow, operand: Tensor, labels: Tensor) -> None:
    """Join all channels along the axes on which an operand without channels varies.

    The operand keeps this length, so either all channels along these axes go, or no channel.

    Args:
        flow: The labels of the model.
        operand: The labels of the operand; an axis on which it varies is not expanded.
        labels: The labels that it meets, of the same shape or narrowed.
    """
    axes = [axis for axis in flow.labels.varying_axes(labels) if is_unexpanded(operand, axis)]
    if axes:
        others = [axis for axis in range(labels.ndim) if axis not in axes]
        flow.labels.join_rows(collect_rows(labels, *others), _NO_CHANNELS)
        flow.keep_dense_if_single(labels, _NO_CHANNELS)


def _expand_operands(flow: Flow, operands: Sequence[Tensor], shape: Sequence[int]) -> list[Tensor]:
    """Expand operands to a shape; a single channel that gates all others stays dense."""
    expanded = [operand.expand(tuple(shape)) for operand in operands]
    varying = [set(flow.labels.varying_axes(operand)) for operand in expanded]
    for position, operand in enumerate(operands):
        others = set().union(*varying[:position], *varying[position + 1 :])
        ahead = len(shape) - operand.ndim
        is_repeated = any(axis < ahead or operand.shape[axis - ahead] == 1 for axis in others)
        if is_repeated and not varying[position] and has_channels(operand):
            flow.labels.keep_dense(operand, _NO_CHANNELS)
            unlabeled = torch.zeros(operand.shape, dtype=torch.long, device="cpu")
            expanded[position] = unlabeled.expand(tuple(shape))
    return expanded


def _find_zeros(flow: Flow, result: Tensor, operands: Sequence[Tensor], trial: Trial) -> Tensor:
    """Return where the result is zero if the channel is pruned.

    Where the result cannot be finite then, the channel stays dense.
    """
    codes = torch.zeros_like(result)  # bit i says that operand i is zero
    for position, operand in enumerate(operands):
        codes = codes + ((operand > NO_CHANNEL).long() << position)
    is_zero = torch.zeros_like(result, dtype=torch.bool)
    for code in torch.unique(codes).tolist():
        outcome = trial([bool(code >> position & 1) for position in range(len(operands))])
        if outcome.is_zero:
            is_zero |= codes == code
        if code and not outcome.is_finite:
            flow.labels.keep_dense(result[codes == code], "is not finite if it is pruned")
    return is_zero


def _try_zeros(operation: Operation, is_zero: list[bool]) -> Outcome:
    """Run an operation on random values, with zeros for some operands."""
    generator = torch.Generator().manual_seed(0)
    operands = []
    for operand_is_zero, dtype in zip(is_zero, operation.dtypes, strict=True):
        values = torch.randn(_SAMPLES, generator=generator, device="cpu") * 10
        operands.append(values.mul(not operand_is_zero).to(dtype))
    try:
        result = operation.run(operands)
    except (RuntimeError, TypeError, ValueError):  # such as an operand that needs a certain shape
        return Outcome(is_zero=False, is_finite=True)
    if not isinstance(result, Tensor):
        return Outcome(is_zero=False, is_finite=True)
    return Outcome(
        is_zero=not bool(result.count_nonzero()), is_finite=bool(result.isfinite().any())
    )


RULES: dict[str, Rule] = {
    "glu": glu,
    # torch tags other operations as pointwise, but not these:
    "hardswish": pointwise,
    "log_sigmoid": pointwise,
    "multiply": pointwise,
    "divide": pointwise,
    "subtract": pointwise,
    "absolute": pointwise,
}
