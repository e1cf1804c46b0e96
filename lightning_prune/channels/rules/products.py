"""Rules for products that are summed over axes: matmul, einsum, attention, and softmax in between.

A product is written in einsum's letters, with a letter for each axis. A letter that the result
lacks is summed over. All labels are placed on a grid with an axis for each letter; labels are
expanded along the letters that their operand lacks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_letters

import torch
from torch import Tensor

from lightning_prune.channels.flow import Flow, Rule
from lightning_prune.channels.labels import (
    NO_CHANNEL,
    collapse_axis,
    collect_rows,
    has_channels,
    is_unexpanded,
    mark_nonzero,
    narrow_expanded_axes,
    spread_along_axis,
)
from lightning_prune.channels.multiplications import shape_of, split_equation
from lightning_prune.channels.operations import Operation, StoredTensor, Value
from lightning_prune.channels.rules.pointwise import (
    Outcome,
    combine_entries,
    join_along_unlabeled,
)


@dataclass(frozen=True, kw_only=True)
class _Equation:
    """A product of two operands in einsum's letters.

    Args:
        terms: The letters of each operand.
        result: The letters of the result.
        lengths: The length of each letter's axis.
    """

    terms: tuple[str, str]
    result: str
    lengths: dict[str, int]

    @property
    def grid(self) -> str:
        """All letters, those of the result first."""
        return self.result + "".join(c for c in self.lengths if c not in self.result)

    def fits(self, stored: StoredTensor, operand: int) -> bool:
        """Whether a stored tensor has full length along all letters of an operand."""
        return stored.shape == tuple(self.lengths[letter] for letter in self.terms[operand])

    def place_on_grid(self, labels: Tensor, operand: int) -> Tensor:
        """Return the labels of an operand with an axis for each letter of the grid."""
        term, grid = self.terms[operand], self.grid
        present = [letter for letter in grid if letter in term]
        ordered = labels.permute([term.index(letter) for letter in present])
        shape = [ordered.shape[present.index(c)] if c in present else 1 for c in grid]
        return ordered.reshape(shape).expand([self.lengths[letter] for letter in grid])


def matmul(flow: Flow, operation: Operation) -> Value:
    """Exact as any product (`_multiply`): rows times columns, for each matrix of a batch."""
    operands = [operation[0], operation[1]]
    ranks = [len(shape_of(operand)) for operand in operands]
    if min(ranks) < 2:
        return None
    batch = ascii_letters[3 : max(ranks) + 1]
    first, second = (batch[len(batch) - rank + 2 :] for rank in ranks)
    return _multiply(flow, operation, [first + "ik", second + "kj"], batch + "ij", operands)


def baddbmm(flow: Flow, operation: Operation) -> Value:
    """Exact: a product and an addition, which is zero if both operands are."""
    operands = [operation["batch1"], operation["batch2"]]
    product = _multiply(flow, operation, ["bik", "bkj"], "bij", operands)
    if not isinstance(product, Tensor):
        return None

    def add(is_zero: list[bool]) -> Outcome:
        return Outcome(is_zero=all(is_zero), is_finite=True)

    values = [operation["self"], product]
    by_addition = all(operation.is_fed)
    return combine_entries(flow, operation.result_shape, values, add, by_addition=by_addition)


def einsum(flow: Flow, operation: Operation) -> Value:
    """Exact as any product (`_multiply`); for two operands that have each letter once at most."""
    letters, operands = split_equation(operation), operation["tensors"]
    if letters is None or not isinstance(operands, list):
        return None
    terms, result = letters
    if any(len(set(term)) < len(term) for term in terms):
        return None
    return _multiply(flow, operation, terms, result, operands)


def attention(flow: Flow, operation: Operation) -> Value:
    """Exact for whole heads: a head is zero if the values are zero, for any scores.

    A head of keys and values that several heads of queries read goes with all of them.
    """
    query, key, value = (flow.label_entries(operation[name]) for name in ("query", "key", "value"))
    if operation.option("enable_gqa", False):
        key, value = (_repeat_heads(labels, query.shape[-3]) for labels in (key, value))
    batch = query.shape[:-2]
    if batch != value.shape[:-2] or batch != key.shape[:-2]:
        return None
    axes = range(len(batch))
    rows = [collect_rows(labels, *axes) for labels in (query, key, value)]
    scores = (*batch, query.shape[-2], key.shape[-2])
    mask = flow.label_entries(operation["attn_mask"])
    is_labeled = has_channels(mask)
    if is_labeled:
        rows.append(collect_rows(mask.expand(scores), *axes))
    labels = _join_factors(flow, rows, zeroing=rows[2:3]).view(*batch, 1, 1)
    if not is_labeled:
        join_along_unlabeled(flow, mask.expand(scores), labels.expand(scores))
    heads = flow.labels.representatives(labels).mul(labels.sign())
    return heads.expand(operation.result_shape)


def _repeat_heads(labels: Tensor, heads: int) -> Tensor:
    """Return labels ``(..., heads, length, head size)`` with each head repeated, to that number."""
    axis = labels.ndim - 3
    repeats = heads // labels.shape[axis]
    repeated = narrow_expanded_axes(labels, keep=(axis,)).repeat_interleave(repeats, axis)
    return repeated.expand(*labels.shape[:axis], heads, *labels.shape[-2:])


def softmax(flow: Flow, operation: Operation) -> Value:
    """Exact for entries that sum to one and go together; the results are not zero."""
    labels = flow.label_entries(operation[0])
    reason = "softmax over channels"
    dim = operation.option("dim", -1)
    flow.labels.join_rows(labels.movedim(dim, -1).flatten(0, -2), reason)
    flow.keep_dense_if_single(labels, reason)
    return mark_nonzero(labels)


# -- products of two operands --------------------------------------------------------------------


def _multiply(
    flow: Flow,
    operation: Operation,
    terms: Sequence[str],
    result: str,
    operands: Sequence[Value],
) -> Value:
    """Follow channels through a product: of a stored tensor, of two activations, or of weights.

    Args:
        flow: The labels of the model.
        operation: The product.
        terms: The letters of each operand.
        result: The letters of the result.
        operands: Both operands.
    """
    lengths: dict[str, int] = {}
    for term, operand in zip(terms, operands, strict=True):
        for letter, length in zip(term, shape_of(operand), strict=True):
            lengths[letter] = max(length, lengths.get(letter, 1))
    equation = _Equation(terms=(terms[0], terms[1]), result=result, lengths=lengths)
    for position in (1, 0):
        stored = operands[position]
        if isinstance(stored, StoredTensor) and equation.fits(stored, position):
            labels = flow.label_entries(operands[1 - position])
            labels = equation.place_on_grid(labels, 1 - position)
            return _multiply_by_stored(flow, operation, equation, labels, stored, position)
    first, second = (
        equation.place_on_grid(flow.label_entries(operand), position)
        for position, operand in enumerate(operands)
    )
    if has_channels(first) and has_channels(second):
        return _multiply_activations(flow, operation, equation, first, second)
    if has_channels(second):
        first, second = second, first
    return _sum_entries(flow, operation, first, second)


def _multiply_by_stored(
    flow: Flow,
    operation: Operation,
    equation: _Equation,
    labels: Tensor,
    weight: StoredTensor,
    position: int,
) -> Value:
    """Exact as a linear layer: the stored tensor reads along one letter, produces along another.

    Args:
        flow: The labels of the model.
        operation: The product.
        equation: The letters of the product.
        labels: The labels of the other operand, on the grid.
        weight: The stored tensor.
        position: Which operand the stored tensor is.
    """
    term, other = equation.terms[position], equation.terms[1 - position]
    result = equation.result
    summed = [c for c in term if c in other and c not in result]
    read = [c for c in _varying_letters(flow, equation, labels) if c in term] or summed[:1]
    if len(read) > 1:
        return None
    for letter in read:
        rows = collect_rows(labels, equation.grid.index(letter))
        flow.read(rows, weight, weight.axis_labels[term.index(letter)])
    varying = set(_varying_letters(flow, equation, labels))
    if varying - set(result) - set(read):
        return None
    has_passed = bool(varying & set(result))
    free = [c for c in term if c in result and c not in other and equation.lengths[c] > 1]
    produced = free[0] if free and not has_passed else None
    for letter, axis_labels in zip(term, weight.axis_labels, strict=True):
        if letter != produced and letter not in read:
            flow.labels.keep_dense(axis_labels, "is used as a value")
    if has_passed:
        return _collapse_summed(labels, len(result))
    if not read:
        flow.keep_dense(labels, "is multiplied by other values")
    if produced is None:
        return torch.zeros(operation.result_shape, dtype=torch.long, device="cpu")
    axis = term.index(produced)
    channels = flow.produce(weight, axis, None, weight.axis_labels[axis])
    return spread_along_axis(channels, result.index(produced), operation.result_shape)


def _multiply_activations(
    flow: Flow, operation: Operation, equation: _Equation, first: Tensor, second: Tensor
) -> Tensor:
    """Exact along the letters that operands and result have: a product is zero if a factor is."""
    shared = [
        axis
        for axis, letter in enumerate(equation.result)
        if letter in equation.terms[0] and letter in equation.terms[1]
    ]
    rows = [collect_rows(labels, *shared) for labels in (first, second)]
    labels = _join_factors(flow, rows, zeroing=rows)
    shape = [length if axis in shared else 1 for axis, length in enumerate(operation.result_shape)]
    return labels.view(shape).expand(operation.result_shape)


def _sum_entries(flow: Flow, operation: Operation, labels: Tensor, other: Tensor) -> Value:
    """Exact if sums run within a channel, such as over positions: they are zero if all of it is.

    Args:
        flow: The labels of the model.
        operation: The product.
        labels: The labels of the operand with channels, on the grid.
        other: The labels of the operand without channels, on the grid.
    """
    rank = len(operation.result_shape)
    for axis in flow.labels.varying_axes(labels):
        if axis >= rank or is_unexpanded(other, axis):
            return None
    return _collapse_summed(labels, rank)


def _join_factors(flow: Flow, factors: Sequence[Tensor], zeroing: Sequence[Tensor]) -> Tensor:
    """Make one channel of each row of all factors, and return the label of each row.

    Args:
        flow: The labels of the model.
        factors: Labels, each ``(rows, labels)``.
        zeroing: The factors which make the product zero if they are zero.
    """
    flow.labels.join_rows(torch.cat(list(factors), 1), "is multiplied by other values")
    labels = flow.labels.representatives(factors[0][:, 0])
    is_zero = torch.zeros_like(labels, dtype=torch.bool)
    for factor in zeroing:
        is_zero |= (factor > NO_CHANNEL).all(1)
    return torch.where(is_zero, labels, -labels)


def _collapse_summed(labels: Tensor, rank: int) -> Tensor:
    """Collapse the axes of the grid behind those of the result, each of one channel."""
    for axis in range(rank, labels.ndim):
        labels = collapse_axis(labels, axis)
    return labels.reshape(labels.shape[:rank])


def _varying_letters(flow: Flow, equation: _Equation, labels: Tensor) -> list[str]:
    """Return the letters along which labels on the grid belong to different channels."""
    return [equation.grid[axis] for axis in flow.labels.varying_axes(labels)]


RULES: dict[str, Rule] = {
    "mm": matmul,
    "bmm": matmul,
    "matmul": matmul,
    "baddbmm": baddbmm,
    "einsum": einsum,
    "scaled_dot_product_attention": attention,
    "softmax": softmax,
    "log_softmax": softmax,
    "_safe_softmax": softmax,
}
