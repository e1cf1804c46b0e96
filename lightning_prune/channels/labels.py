"""Labels: whole numbers that stand for channels, and which labels stand for the same channel.

A tensor of labels has one label for each entry of an activation:

- 0 (`NO_CHANNEL`): the entry belongs to no channel.
- k: the entry belongs to the channel of label k. It is zero if the channel is pruned.
- -k: the entry belongs to the channel of label k. It may be nonzero if the channel is pruned.

Labels repeat along most axes. These axes are expanded (stride 0) and cost no memory. Labels of
entries without channels are expanded only along axes on which the entries themselves repeat.
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

NO_CHANNEL = 0


class Labels:
    """All labels of a model: joined labels stand for one channel.

    It is a union-find structure. The smallest of the joined labels is their representative. Signs
    of labels are ignored.
    """

    def __init__(self) -> None:
        self._parents = np.zeros(1, dtype=np.int64)
        self._is_flat = True
        self._reasons: dict[int, str] = {}
        self._residual: set[int] = set()

    def create(self, number: int) -> Tensor:
        """Return new labels, each a channel of its own."""
        first = len(self._parents)
        labels = np.arange(first, first + number)
        self._parents = np.concatenate([self._parents, labels])
        return torch.from_numpy(labels)

    def representatives(self, labels: Tensor) -> Tensor:
        """Return the representative of each label; labels of one channel share it."""
        small = narrow_expanded_axes(labels)
        found = torch.from_numpy(np.asarray(self._flatten()[small.abs().numpy()]))
        return found.expand(labels.shape)

    def join(self, first: Tensor, second: Tensor, *, by_addition: bool = False) -> None:
        """Make one channel of each pair of labels, except for pairs with `NO_CHANNEL`.

        Args:
            first: Labels of any shape.
            second: As many labels.
            by_addition: Whether activations are added here, as in a residual stream.
        """
        a, b = self.representatives(first).flatten(), self.representatives(second).flatten()
        differs = (a != b) & (a != NO_CHANNEL) & (b != NO_CHANNEL)
        pairs = torch.unique(a[differs] * len(self._parents) + b[differs])
        for pair in pairs.tolist():
            left, right = divmod(pair, len(self._parents))
            kept, gone = sorted((self._find(left), self._find(right)))
            if kept == gone:
                continue
            self._parents[gone] = kept
            self._is_flat = False
            if gone in self._reasons:
                self._reasons.setdefault(kept, self._reasons.pop(gone))
            if by_addition or gone in self._residual:
                self._residual.add(kept)

    def join_rows(self, rows: Tensor, reason: str) -> None:
        """Make one channel of each row; the channel of a row that has `NO_CHANNEL` stays dense.

        Args:
            rows: Labels, ``(rows, entries)``.
            reason: Why that channel stays dense.
        """
        found = self.representatives(rows)
        highest = found.amax(1, keepdim=True)
        self.join(found, highest.expand_as(found))
        is_mixed = (found == NO_CHANNEL).any(1) & (highest[:, 0] != NO_CHANNEL)
        self.keep_dense(highest[is_mixed], reason)

    def keep_dense(self, labels: Tensor, reason: str) -> None:
        """Keep the channels of these labels dense; the first reason counts."""
        found = self.representatives(narrow_expanded_axes(labels))
        for representative in torch.unique(found).tolist():
            if representative != NO_CHANNEL:
                self._reasons.setdefault(representative, reason)

    def why_dense(self, representative: int) -> str | None:
        """Return why a channel stays dense; None if it can be removed."""
        return self._reasons.get(representative)

    def is_residual(self, representatives: Iterable[int]) -> bool:
        """Whether an addition has joined any of these channels."""
        return not self._residual.isdisjoint(representatives)

    def varying_axes(self, labels: Tensor) -> list[int]:
        """Return the axes along which entries belong to different channels."""
        found = self.representatives(narrow_expanded_axes(labels))
        return [
            axis
            for axis, size in enumerate(found.shape)
            if size > 1 and bool((found != found.narrow(axis, 0, 1)).any())
        ]

    def _flatten(self) -> np.ndarray:
        """Return the representative of every label, by label."""
        while not self._is_flat:
            grandparents = self._parents[self._parents]
            self._is_flat = np.array_equal(grandparents, self._parents)
            self._parents = grandparents
        return self._parents

    def _find(self, label: int) -> int:
        """Return the representative of a label, also in the middle of `join`."""
        while self._parents[label] != label:
            label = int(self._parents[label])
        return label


# -- the labels of entries -----------------------------------------------------------------------


def has_channels(labels: Tensor) -> bool:
    """Whether any entry belongs to a channel."""
    return bool((narrow_expanded_axes(labels) != NO_CHANNEL).any())


def has_nonzero_entries(labels: Tensor) -> bool:
    """Whether any entry may be nonzero if the channel is pruned."""
    return bool((narrow_expanded_axes(labels) < NO_CHANNEL).any())


def mark_nonzero(labels: Tensor) -> Tensor:
    """Return the same labels for entries that may be nonzero if the channel is pruned."""
    return -labels.abs()


def collapse_axis(labels: Tensor, axis: int) -> Tensor:
    """Collapse an axis of one channel to a single label, and expand it to the old length.

    The label is negative if any collapsed label was.
    """
    shape = list(labels.shape)
    shape[axis] = 1
    return narrow_expanded_axes(labels).amin(axis, keepdim=True).expand(shape)


def collect_rows(labels: Tensor, *axes: int) -> Tensor:
    """Return one row for each index of the axes, with all labels at that index.

    Examples:
        >>> collect_rows(torch.tensor([[1, 2, 3], [4, 5, 6]]), 1)
        tensor([[1, 4],
                [2, 5],
                [3, 6]])
    """
    axes = tuple(axis % labels.ndim for axis in axes)
    others = [axis for axis in range(labels.ndim) if axis not in axes]
    moved = narrow_expanded_axes(labels, keep=axes).permute(*axes, *others)
    rows, columns = math.prod(moved.shape[: len(axes)]), math.prod(moved.shape[len(axes) :])
    return moved.reshape(rows, columns)


def spread_along_axis(labels: Tensor, axis: int, shape: Sequence[int]) -> Tensor:
    """Return labels of a shape that differ along one axis only.

    Args:
        labels: One label for each index of the axis.
        axis: The axis.
        shape: Shape of the result.
    """
    lengths = [1] * len(shape)
    lengths[axis] = len(labels)
    return labels.reshape(lengths).expand(tuple(shape))


# -- expanded axes -------------------------------------------------------------------------------


def is_unexpanded(labels: Tensor, axis: int) -> bool:
    """Whether an axis has several entries that lie apart in memory."""
    return labels.shape[axis] > 1 and labels.stride(axis) != 0


def narrow_expanded_axes(labels: Tensor, *others: Tensor, keep: Sequence[int] = ()) -> Tensor:
    """Return the labels with a length of 1 along their expanded (stride 0) axes.

    Args:
        labels: Labels of any shape.
        others: More tensors of this shape; an axis is narrowed only if all of them expand it.
        keep: Axes that keep their length.
    """
    for axis in range(labels.ndim):
        is_expanded = not any(is_unexpanded(each, axis) for each in (labels, *others))
        if is_expanded and labels.shape[axis] > 1 and axis not in keep:
            labels = labels.narrow(axis, 0, 1)
    return labels


def expand_repeats(labels: Tensor) -> Tensor:
    """Return the same labels, expanded along each axis on which they repeat."""
    small = narrow_expanded_axes(labels)
    for axis, size in enumerate(small.shape):
        first = small.narrow(axis, 0, min(size, 1))
        if size > 1 and bool((small == first).all()):
            small = first
    return small.expand(labels.shape)
