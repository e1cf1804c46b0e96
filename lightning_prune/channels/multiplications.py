"""Products in the graph of a model, and the axes along which channels shorten them.

A product runs over the indices of axes: the rows of the first matrix, the columns of the second,
and the axis that is summed over. The multiplications are the product of the lengths. If channels
are removed, they fall with the lengths of the axes along which the channels lie.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from string import ascii_letters

import torch
from torch import Tensor

from lightning_prune.channels.labels import NO_CHANNEL, Labels, collect_rows
from lightning_prune.channels.operations import Operation, StoredTensor, Value

_Terms = Sequence[tuple[str, Value]]
"""The operands of a product, with a letter for each axis as in einsum; a dot for no axis of it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Multiplication:
    """A product that a model computes.

    Args:
        module: Qualified name of the module whose code calls the operation.
        parameters: Names of the parameters that a factor is computed from; none for a product of
            activations.
        macs: Number of multiplications in the graph.
        axes: The axes along which channels lie, with the label at each index; those of the weights
            are left out. While the walk goes on, all axes with all labels, ``(length, labels)``.
    """

    module: str
    parameters: frozenset[str]
    macs: int
    axes: tuple[Tensor, ...]

    def settle(self, labels: Labels) -> "Multiplication":
        """Return the product with the representatives at the end of the walk."""
        found = [_find_channels(labels, rows) for rows in self.axes]
        return replace(self, axes=tuple(axis for axis in found if len(torch.unique(axis)) > 1))


def find_multiplications(operation: Operation) -> list[Multiplication]:
    """Return the products of an operation; none if it multiplies entry by entry, or nothing."""
    if operation.name not in _PRODUCTS:
        return []
    factors, find_terms = _PRODUCTS[operation.name]
    parameters = operation.find_parameters(factors)
    return [_describe(operation, parameters, terms) for terms in find_terms(operation)]


def split_equation(operation: Operation) -> tuple[list[str], str] | None:
    """Return the letters of both operands, and of the result, of an einsum.

    Returns:
        None unless there are two operands, and the equation names the letters of the result.
    """
    operands, equation = operation["tensors"], operation.option("equation").replace(" ", "")
    if not isinstance(operands, list) or len(operands) != 2 or "->" not in equation:
        return None
    left, result = equation.split("->")
    terms = left.split(",")
    unused = "".join(letter for letter in ascii_letters if letter not in equation)
    ranks = [  # how many axes the dots stand for
        len(shape_of(operand)) - len(term.replace("...", ""))
        for term, operand in zip(terms, operands, strict=True)
    ]
    dots = unused[: max(ranks)]
    terms = [
        term.replace("...", dots[len(dots) - rank :])
        for term, rank in zip(terms, ranks, strict=True)
    ]
    return terms, result.replace("...", dots)


def shape_of(value: Value) -> tuple[int, ...]:
    """Return the shape of a tensor's labels, or of a stored tensor; no axes for other values."""
    return tuple(value.shape) if isinstance(value, Tensor | StoredTensor) else ()


def _describe(operation: Operation, parameters: frozenset[str], terms: _Terms) -> Multiplication:
    known = [each for each in terms if len(each[0]) == len(shape_of(each[1]))]
    lengths: dict[str, int] = {}
    for letters, value in known:
        for letter, length in zip(letters, shape_of(value), strict=True):
            if letter != ".":
                lengths[letter] = max(length, lengths.get(letter, 1))
    of_weights = _letters_of_weights(operation, known) if parameters else ""
    rows: dict[str, list[Tensor]] = defaultdict(list)
    for letters, value in known:
        if not isinstance(value, Tensor):
            continue
        for axis, letter in enumerate(letters):
            is_whole = value.shape[axis] == lengths.get(letter)
            if is_whole and letter not in of_weights:
                rows[letter].append(collect_rows(value, axis).abs())
    return Multiplication(
        module=operation.module or "",
        parameters=parameters,
        macs=math.prod(lengths.values()),
        axes=tuple(torch.cat(found, 1) for found in rows.values()),
    )


def _letters_of_weights(operation: Operation, terms: _Terms) -> str:
    """Return the letters of the factors that do not depend on the inputs of the graph."""
    pairs = zip(operation.inputs, operation.is_fed, strict=True)
    stored = {id(value) for value, is_fed in pairs if not is_fed}
    return "".join(
        letter
        for letters, value in terms
        if id(value) in stored
        for letter, length in zip(letters, shape_of(value), strict=True)
        if length > 1
    )


def _find_channels(labels: Labels, rows: Tensor) -> Tensor:
    """Return the channel at each index of an axis; `NO_CHANNEL` where it has several or none."""
    found = labels.representatives(rows)
    highest = found.amax(1)
    is_single = ((found == highest[:, None]) | (found == NO_CHANNEL)).all(1)
    return torch.where(is_single, highest, NO_CHANNEL)


# -- the letters of each kind of product ---------------------------------------------------------


def _linear(operation: Operation) -> list[_Terms]:
    inputs, weight = operation["input"], operation["weight"]
    batch = ascii_letters[2 : len(shape_of(inputs)) + 1]
    return [[(batch + "a", inputs), ("ba", weight)]]


def _addmm(operation: Operation) -> list[_Terms]:
    return [_pair(operation["mat1"], operation["mat2"])]


def _matmul(operation: Operation) -> list[_Terms]:
    return [_pair(operation[0], operation[1])]


def _baddbmm(operation: Operation) -> list[_Terms]:
    return [_pair(operation["batch1"], operation["batch2"])]


def _pair(first: Value, second: Value) -> _Terms:
    """Return the letters of a product of matrices, or of vectors; batches align at the end."""
    ranks = [len(shape_of(operand)) for operand in (first, second)]
    batch = ascii_letters[3 : max(*ranks, 2) + 1]
    left, right = (batch[len(batch) - max(rank - 2, 0) :] for rank in ranks)
    return [
        (left + "ab" if ranks[0] > 1 else "b", first),
        (right + "bc" if ranks[1] > 1 else "b", second),
    ]


def _einsum(operation: Operation) -> list[_Terms]:
    letters, operands = split_equation(operation), operation["tensors"]
    if letters is None or not isinstance(operands, list):
        return []
    return [list(zip(letters[0], operands, strict=True))]


def _attention(operation: Operation) -> list[_Terms]:
    """Return the products of queries with keys, and of the scores with values."""
    query, key, value = (operation[name] for name in _OF_ATTENTION)
    of_query, of_key, of_value = (
        ascii_letters[4 : len(shape_of(each)) + 2][::-1] for each in (query, key, value)
    )
    scores = [(of_query + "ac", query), (of_key + "bc", key)]
    return [
        scores,
        [(of_query + "a.", query), (of_key + "b.", key), (of_value + "bd", value)],
    ]


_OF_ATTENTION = ("query", "key", "value")
_PRODUCTS: Mapping[str, tuple[Sequence[str | int], Callable[[Operation], list[_Terms]]]] = {
    "linear": (("input", "weight"), _linear),
    "addmm": (("mat1", "mat2"), _addmm),
    "mm": ((0, 1), _matmul),
    "bmm": ((0, 1), _matmul),
    "matmul": ((0, 1), _matmul),
    "baddbmm": (("batch1", "batch2"), _baddbmm),
    "einsum": (("tensors",), _einsum),
    "scaled_dot_product_attention": (_OF_ATTENTION, _attention),
}
