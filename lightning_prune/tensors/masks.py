"""Masks in the form in which they are applied fastest."""

import torch
from torch import Tensor

BITS_ON = ("cpu",)
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_MINUS_INFINITY = {
    torch.float32: torch.tensor(-torch.inf, dtype=torch.float32).view(torch.int32),
    torch.float64: torch.tensor(-torch.inf, dtype=torch.float64).view(torch.int64),
}


class Mask:
    """Which entries of a tensor are kept.

    On a CPU it is an integer as wide as a weight, with all bits set where the weight is kept: a
    bitwise *and* is as fast as the memory, where a bool would be converted entry by entry, and it
    leaves +0.0 even of NaN. Elsewhere it is one byte, true where the weight is pruned, because that
    can be filled with zeros without an intermediate.

    Args:
        kept: True keeps; bool.
        weights: What it is for, of the same shape; device, width and strides are taken from it.
    """

    def __init__(self, kept: Tensor, weights: Tensor) -> None:
        self._has_bits = weights.device.type in BITS_ON
        dtype = _INTEGERS[weights.element_size()] if self._has_bits else torch.bool
        self._form = torch.empty_like(weights, dtype=dtype, requires_grad=False)
        self.set(kept)

    @property
    def shape(self) -> torch.Size:
        """Shape of the tensor."""
        return self._form.shape

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self._form.device

    @property
    def kept(self) -> Tensor:
        """A new bool tensor; True keeps."""
        return self._form != 0 if self._has_bits else ~self._form

    def count(self) -> Tensor:
        """Return how many entries are kept, where they are."""
        count = self._form.count_nonzero()
        return count if self._has_bits else self._form.numel() - count

    def set(self, kept: Tensor) -> None:
        """Take over a bool mask; True keeps."""
        self._form.copy_(kept)
        if self._has_bits:
            self._form.neg_()
        else:
            self._form.logical_not_()

    def transpose(self, axis: int, other: int) -> "Mask":
        """Return a view with two axes exchanged."""
        return self._view(self._form.transpose(axis, other))

    def __getitem__(self, rows: slice) -> "Mask":
        """Return a view of some rows."""
        return self._view(self._form[rows])

    def flatten(self, stride: int = 1) -> "Mask":
        """Return it flat, or some entries at a distance; to read only."""
        return self._view(self._form.reshape(-1)[::stride])

    def apply(self, values: Tensor) -> None:
        """Set values to +0.0 where they are pruned, in place, whatever they were.

        Args:
            values: Weights, gradients or statistics of them, of the same shape.
        """
        if not self._has_bits:
            values.masked_fill_(self._form.to(values.device), 0)
        elif values.element_size() == self._form.element_size() and values.device.type == "cpu":
            values.view(self._form.dtype).bitwise_and_(self._form)
        else:
            values.masked_fill_((self._form == 0).to(values.device), 0)

    def intersect(self, kept: Tensor) -> None:
        """Keep only what is kept already and in a bool mask that broadcasts to this one."""
        if self._has_bits:
            self._form.bitwise_and_(kept.to(self._form.dtype).neg_())
        else:
            self._form.logical_or_(~kept)

    def lower(self, scores: Tensor) -> Tensor:
        """Return finite scores with -inf where they are pruned.

        Args:
            scores: Of the same shape, in single or double precision.
        """
        if not self._has_bits:
            return scores.masked_fill(self._form, -torch.inf)
        infinity = _MINUS_INFINITY[scores.dtype]
        addend = self._form.to(infinity.dtype).bitwise_not().bitwise_and_(infinity)
        return addend.view(scores.dtype).add_(scores)

    def _view(self, form: Tensor) -> "Mask":
        view = object.__new__(Mask)
        view._form, view._has_bits = form, self._has_bits
        return view
