"""Which channels belong together: classes of labels, joined as a model's graph is walked."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

UNLABELLED = 0


class Classes:
    """A partition of labels, which are whole numbers from 1; 0 labels what is no channel.

    A label may come with a minus sign: the channel is then not zero where it is pruned. The sign
    means nothing here.
    """

    def __init__(self) -> None:
        self._parents = np.zeros(1, dtype=np.int64)
        self._is_flat = True
        self._reasons: dict[int, str] = {}
        self._residual: set[int] = set()

    def new(self, number: int) -> Tensor:
        """Return labels that nothing else has."""
        first = len(self._parents)
        labels = np.arange(first, first + number)
        self._parents = np.concatenate([self._parents, labels])
        return torch.from_numpy(labels)

    def roots(self, labels: Tensor) -> Tensor:
        """Return for each label the one that stands for its class."""
        small = thin(labels)
        roots = torch.from_numpy(np.asarray(self._roots()[small.abs().numpy()]))
        return roots.expand(labels.shape)

    def join(self, first: Tensor, second: Tensor, *, residual: bool = False) -> None:
        """Make one class of each pair of labels; pairs with an unlabelled one are left alone.

        Args:
            first: Labels of any shape.
            second: As many labels.
            residual: Whether an addition joins them, and not what a layer reads or writes.
        """
        a, b = self.roots(first).flatten(), self.roots(second).flatten()
        differs = (a != b) & (a != UNLABELLED) & (b != UNLABELLED)
        pairs = torch.unique(a[differs] * len(self._parents) + b[differs])
        for pair in pairs.tolist():
            one, other = divmod(pair, len(self._parents))
            kept, gone = sorted((self._root(one), self._root(other)))
            if kept == gone:
                continue
            self._parents[gone] = kept
            self._is_flat = False
            if gone in self._reasons:
                self._reasons.setdefault(kept, self._reasons.pop(gone))
            if residual or gone in self._residual:
                self._residual.add(kept)

    def join_rows(self, rows: Tensor, reason: str) -> None:
        """Make one class of each row; a row that also has unlabelled entries stays dense.

        Args:
            rows: Labels, ``(rows, entries)``.
            reason: Why it stays dense.
        """
        roots = self.roots(rows)
        highest = roots.amax(1, keepdim=True)
        self.join(roots, highest.expand_as(roots))
        mixed = (roots == UNLABELLED).any(1) & (highest[:, 0] != UNLABELLED)
        self.keep_dense(highest[mixed], reason)

    def keep_dense(self, labels: Tensor, reason: str) -> None:
        """Keep the classes of these labels; the first reason counts."""
        for root in torch.unique(self.roots(thin(labels))).tolist():
            if root != UNLABELLED:
                self._reasons.setdefault(root, reason)

    def why_dense(self, root: int) -> str | None:
        """Return why a class is kept; None if it may go."""
        return self._reasons.get(root)

    def is_residual(self, roots: Iterable[int]) -> bool:
        """Whether an addition has joined the class of any of these."""
        return not self._residual.isdisjoint(roots)

    def varying(self, labels: Tensor) -> list[int]:
        """Return the axes along which classes differ."""
        roots = self.roots(thin(labels))
        return [
            axis
            for axis, size in enumerate(roots.shape)
            if size > 1 and bool((roots != roots.narrow(axis, 0, 1)).any())
        ]

    def _roots(self) -> np.ndarray:
        while not self._is_flat:
            grandparents = self._parents[self._parents]
            self._is_flat = np.array_equal(grandparents, self._parents)
            self._parents = grandparents
        return self._parents

    def _root(self, label: int) -> int:
        while self._parents[label] != label:
            label = int(self._parents[label])
        return label


def thin(labels: Tensor, *others: Tensor, keep: Sequence[int] = ()) -> Tensor:
    """Return labels without the repetitions that are none in memory: what was expanded.

    Args:
        labels: Entries of any shape.
        others: More of the same shape, which must not differ there either.
        keep: Axes that stay as long as they are.
    """
    for axis in range(labels.ndim):
        is_repeated = not any(is_spread(each, axis) for each in (labels, *others))
        if is_repeated and labels.shape[axis] > 1 and axis not in keep:
            labels = labels.narrow(axis, 0, 1)
    return labels


def folded(labels: Tensor) -> Tensor:
    """Return the same labels, expanded along each axis on which they repeat."""
    small = thin(labels)
    for axis, size in enumerate(small.shape):
        first = small.narrow(axis, 0, min(size, 1))
        if size > 1 and bool((small == first).all()):
            small = first
    return small.expand(labels.shape)


def is_spread(labels: Tensor, axis: int) -> bool:
    """Whether an axis is more than one entry that was expanded."""
    return labels.shape[axis] > 1 and labels.stride(axis) != 0


def along(labels: Tensor, axis: int) -> Tensor:
    """Return one row for each index of an axis, with all labels that are there."""
    axis %= labels.ndim
    moved = thin(labels, keep=(axis,)).movedim(axis, 0)
    return moved.reshape(len(moved), -1)


def spread(labels: Tensor, axis: int, shape: Sequence[int]) -> Tensor:
    """Return entries of a shape that carry labels along an axis."""
    ones = [1] * len(shape)
    ones[axis] = len(labels)
    return labels.reshape(ones).expand(tuple(shape))


def has_labels(labels: Tensor) -> bool:
    """Whether any entry belongs to a channel."""
    return bool((thin(labels) != UNLABELLED).any())
