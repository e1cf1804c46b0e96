"""Rules for products that are summed over an axis: matmul, einsum and attention.

They are written in einsum's letters: a letter that the result lacks is summed over. All operands
are seen on one grid that has an axis for each letter, expanded along those that they lack.
"""

from collections.abc import Sequence
from string import ascii_letters

import torch
from torch import Tensor

from lightning_prune.channels.flow import Flow
from lightning_prune.channels.labels import (
    collapse_axis,
    collect_rows,
    has_channels,
    is_unexpanded,
    mark_nonzero,
    spread_along_axis,
)
from lightning_prune.channels.operations import Call, Stored, Value
from lightning_prune.channels.rules.pointwise import combined, meet_unlabelled


def matmul(flow: Flow, call: Call) -> Value:
    """Rows times columns, for each matrix of a batch."""
    ranks = [len(_shape(call[0])), len(_shape(call[1]))]
    if min(ranks) < 2:
        return None
    batch = ascii_letters[3 : max(ranks) + 1]
    first, second = (batch[len(batch) - rank + 2 :] for rank in ranks)
    return _product(flow, call, [first + "ik", second + "kj"], batch + "ij", [call[0], call[1]])


def baddbmm(flow: Flow, call: Call) -> Value:
    """A product of batches of matrices, and something added: zero where both are."""
    product = _product(flow, call, ["bik", "bkj"], "bij", [call["batch1"], call["batch2"]])
    if not isinstance(product, Tensor):
        return None
    return combined(
        flow, call.shape, [call["self"], product], lambda is_zero: (all(is_zero), True), added=True
    )


def einsum(flow: Flow, call: Call) -> Value:
    """A product of two operands, each with a letter at most once."""
    operands, equation = call["tensors"], call.option("equation").replace(" ", "")
    if not isinstance(operands, list) or len(operands) != 2 or "->" not in equation:
        return None
    terms, result = equation.split("->")
    terms = terms.split(",")
    unused = "".join(letter for letter in ascii_letters if letter not in equation)
    ranks = [
        len(_shape(value)) - len(term.replace("...", ""))
        for term, value in zip(terms, operands, strict=True)
    ]
    dots = unused[: max(ranks)]
    terms = [
        term.replace("...", dots[len(dots) - rank :])
        for term, rank in zip(terms, ranks, strict=True)
    ]
    if any(len(set(term)) < len(term) for term in terms):
        return None
    return _product(flow, call, terms, result.replace("...", dots), operands)


def _product(
    flow: Flow, call: Call, terms: Sequence[str], result: str, operands: Sequence[Value]
) -> Value:
    """Follow channels through a product of two operands, by what these are."""
    sizes: dict[str, int] = {}
    for term, value in zip(terms, operands, strict=True):
        for letter, size in zip(term, _shape(value), strict=True):
            sizes[letter] = max(size, sizes.get(letter, 1))
    grid = result + "".join(letter for letter in sizes if letter not in result)
    for weight, other in ((1, 0), (0, 1)):
        stored, source = operands[weight], operands[other]
        if isinstance(stored, Stored) and all(
            len(labels) == sizes[letter]
            for letter, labels in zip(terms[weight], stored.axes, strict=True)
        ):
            labels = _on_grid(flow.entries(source), terms[other], grid, sizes)
            return _stored_product(
                flow, call, labels, stored, (terms[weight], terms[other], result, grid)
            )
    first, second = (
        _on_grid(flow.entries(value), term, grid, sizes)
        for value, term in zip(operands, terms, strict=True)
    )
    if has_channels(first) and has_channels(second):
        batch = [i for i, c in enumerate(result) if c in terms[0] and c in terms[1]]
        rows = [collect_rows(labels, *batch) for labels in (first, second)]
        labels = together(flow, rows, zero=rows)
        shape = [size if axis in batch else 1 for axis, size in enumerate(call.shape)]
        return labels.view(shape).expand(call.shape)
    if has_channels(second):
        first, second = second, first
    return _weighted_sum(flow, call, first, second)


def _weighted_sum(flow: Flow, call: Call, labels: Tensor, other: Tensor) -> Value:
    """Sums of a channel's own entries, such as over positions: zero if all of these are."""
    rank = len(call.shape)
    for axis in flow.labels.varying_axes(labels):
        if axis >= rank or is_unexpanded(other, axis):
            return None
    for axis in range(rank, labels.ndim):
        labels = collapse_axis(labels, axis)
    return labels.reshape(labels.shape[:rank])


def _stored_product(
    flow: Flow, call: Call, labels: Tensor, weight: Stored, letters: tuple[str, str, str, str]
) -> Value:
    """Channels that a stored tensor reads along one of its axes and makes along another.

    Args:
        flow: The labels of the model.
        call: The product.
        labels: Those of the other operand, on the grid.
        weight: What is stored.
        letters: Those of the weight, of the other operand, of the result and of the grid.
    """
    term, other, result, grid = letters
    summed = [c for c in term if c in other and c not in result]
    shared = [grid[a] for a in flow.labels.varying_axes(labels) if grid[a] in term] or summed[:1]
    if len(shared) > 1:
        return None
    for letter in shared:
        read = weight.axes[term.index(letter)]
        flow.read(collect_rows(labels, grid.index(letter)), weight, read)
    varying = {grid[axis] for axis in flow.labels.varying_axes(labels)}
    if varying - set(result) - set(shared):
        return None
    passed = varying & set(result)
    free = [c for c in term if c in result and c not in other]
    made = None if passed else next((c for c in free if len(weight.axes[term.index(c)]) > 1), None)
    for letter, its_labels in zip(term, weight.axes, strict=True):
        if letter != made and letter not in shared:
            flow.labels.keep_dense(its_labels, "is used as a value")
    if made:
        axis = term.index(made)
        if not shared:
            flow.keep_dense(labels, "multiplied with other values")
        channels = flow.make(weight, axis, None, weight.axes[axis])
        return spread_along_axis(channels, result.index(made), call.shape)
    if not passed:
        if not shared:
            flow.keep_dense(labels, "multiplied with other values")
        return torch.zeros(call.shape, dtype=torch.long)
    for axis in range(len(result), len(grid)):
        labels = collapse_axis(labels, axis)
    return labels.reshape(labels.shape[: len(result)])


def attention(flow: Flow, call: Call) -> Value:
    """A head is a channel: it goes whole, and is zero where its values are, whatever its scores."""
    query, key, value = (flow.entries(call[name]) for name in ("query", "key", "value"))
    batch = query.shape[:-2]
    if batch != value.shape[:-2] or batch != key.shape[:-2]:
        return None
    axes = range(len(batch))
    rows = [collect_rows(labels, *axes) for labels in (query, key, value)]
    mask = flow.entries(call["attn_mask"])
    scores = (*batch, query.shape[-2], key.shape[-2])
    is_labelled = has_channels(mask)
    if is_labelled:
        rows.append(collect_rows(mask.expand(scores), *axes))
    labels = together(flow, rows, zero=rows[2:3]).view(*batch, 1, 1)
    if not is_labelled:
        meet_unlabelled(flow, mask.expand(scores), labels.expand(scores))
    return flow.labels.representatives(labels).mul(labels.sign()).expand(call.shape)


def softmax(flow: Flow, call: Call) -> Value:
    """What sums to one goes whole, and is not zero."""
    labels = flow.entries(call[0])
    reason = "softmax over its channels"
    dim = call.option("dim", -1)
    flow.labels.join_rows(labels.movedim(dim, -1).flatten(0, -2), reason)
    flow.refuse_one_class(labels, reason)
    return mark_nonzero(labels)


def together(flow: Flow, operands: Sequence[Tensor], zero: Sequence[Tensor]) -> Tensor:
    """Make one channel of each row of all operands; it is zero where one of `zero` is.

    Args:
        flow: The labels of the model.
        operands: Labels, each ``(rows, some)``.
        zero: Those of which one makes the row zero.
    """
    flow.labels.join_rows(torch.cat(list(operands), 1), "multiplied with other values")
    roots = flow.labels.representatives(operands[0][:, 0])
    is_zero = torch.zeros_like(roots, dtype=torch.bool)
    for operand in zero:
        is_zero |= (operand > 0).all(1)
    return torch.where(is_zero, roots, -roots)


def _on_grid(labels: Tensor, term: str, grid: str, sizes: dict[str, int]) -> Tensor:
    """Return labels with an axis for each letter of the grid."""
    present = [letter for letter in grid if letter in term]
    ordered = labels.permute([term.index(letter) for letter in present])
    shape = [ordered.shape[present.index(c)] if c in present else 1 for c in grid]
    return ordered.reshape(shape).expand([sizes[letter] for letter in grid])


def _shape(value: Value) -> tuple[int, ...]:
    return tuple(value.shape) if isinstance(value, Tensor | Stored) else ()
