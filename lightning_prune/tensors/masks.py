"""Masks, in the form that is fastest to apply."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np
import torch
from torch import Tensor

from lightning_prune.tensors.parts import count_pieces, slice_pieces

BITS_ON = ("cpu",)
_IS_NARROW = ContextVar("is_narrow", default=False)
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_MINUS_INFINITY = {
    torch.float32: torch.tensor(-torch.inf, dtype=torch.float32, device="cpu").view(torch.int32),
    torch.float64: torch.tensor(-torch.inf, dtype=torch.float64, device="cpu").view(torch.int64),
}


@contextmanager
def narrow_masks() -> Iterator[None]:
    """Let the masks that are made inside the block take a byte a weight on a CPU, too.

    There they are slower to apply. This is for pruning at once, which applies a mask once.
    """
    token = _IS_NARROW.set(True)
    try:
        yield
    finally:
        _IS_NARROW.reset(token)


class Mask:
    """The mask of a tensor: which weights are kept and which are pruned.

    On a CPU a mask is an integer tensor as wide as the weights, with all bits set where a weight is
    kept. A bitwise *and* then runs at the speed of the memory, and turns even NaN into +0.0. A bool
    mask would need a conversion of each value. On other devices a mask is a bool tensor, True where
    a weight is pruned, because filling with zeros then needs no intermediate tensor.

    Args:
        mask: Bool mask; True keeps; broadcasts to the shape of the weights.
        weights: The weights under the mask; they give shape, device, width and strides.

    Attributes:
        device: Device of the mask.
    """

    def __init__(self, mask: Tensor, weights: Tensor) -> None:
        self._has_bits = weights.device.type in BITS_ON and not _IS_NARROW.get()
        dtype = _INTEGERS[weights.element_size()] if self._has_bits else torch.bool
        self._form = torch.empty_like(weights, dtype=dtype, requires_grad=False)
        self._width, self.device = self._form.element_size(), self._form.device
        self.set(mask)

    @property
    def shape(self) -> torch.Size:
        """Shape of the tensor."""
        return self._form.shape

    @property
    def kept(self) -> Tensor:
        """A new bool mask; True keeps."""
        return self._form != 0 if self._has_bits else ~self._form

    @property
    def pruned(self) -> Tensor | None:
        """The memory of the mask, True where a weight is pruned; None where a mask is bits."""
        return None if self._has_bits else self._form

    @property
    def version(self) -> int | None:
        """A number that changes with the mask; None if changes leave no trace."""
        return None if self._form.is_inference() else self._form._version

    def count(self) -> Tensor:
        """Return the number of kept weights, as a tensor on the device of the mask."""
        if self._has_bits:
            return torch.tensor(np.count_nonzero(self._form.numpy().ravel("K")), device="cpu")
        return self._form.numel() - count_pieces(self._form)

    def count_with(self, mask: Tensor) -> Tensor:
        """Return the number of weights that both this mask and a bool mask keep, as a tensor."""
        mask = mask.expand(self.shape)
        if self._has_bits:
            return count_pieces(self._form, mask, join=lambda bits, kept: (bits != 0) & kept)
        return count_pieces(self._form, mask, join=torch.lt)  # False before True

    def compare(self, mask: Tensor) -> Tensor:
        """Return the numbers of weights that a bool mask keeps and changes, as a tensor."""
        mask = mask.expand(self.shape)
        if self._has_bits:  # numpy compares and counts many times faster
            kept, form = mask.numpy(), self._form.numpy()
            counts = [np.count_nonzero(kept), np.count_nonzero((form != 0) != kept)]
            return torch.tensor(counts, device="cpu")
        changed = count_pieces(self._form, mask, join=torch.eq)  # a form is True where pruned
        return torch.stack([count_pieces(mask), changed])

    def count_revived(self, weights: Tensor) -> Tensor:
        """Return the number of pruned weights that are not 0, as a tensor on their device.

        Args:
            weights: Weights in the shape of the mask.
        """
        if self._has_bits and weights.is_cpu and weights.element_size() == self._width:
            return torch.tensor(self._count_revived_bits(weights), device="cpu")

        def find(values: Tensor, form: Tensor) -> Tensor:
            pruned = form == 0 if self._has_bits else form
            return (values != 0).logical_and_(pruned.to(values.device))

        return count_pieces(weights, self._form, join=find)

    def _count_revived_bits(self, weights: Tensor) -> int:
        """Count the same, from the bits of the weights; numpy compares many times faster.

        The form is 0 where a weight is pruned, and the highest whole number elsewhere. So only the
        bits of a pruned weight can exceed the form. The bits of -0.0 do, but its value is 0.
        """
        dtype = np.dtype(f"u{self._width}")
        minus_zero = 1 << (8 * self._width - 1)
        count = 0
        for rows in slice_pieces(weights):
            bits = weights[rows].view(self._form.dtype).numpy().view(dtype)
            revived = bits > self._form[rows].numpy().view(dtype)
            if revived.any():
                count += int(np.count_nonzero(revived & (bits != minus_zero)))
        return count

    def set(self, mask: Tensor) -> None:
        """Adopt a bool mask; True keeps."""
        self._form.copy_(mask)
        if self._has_bits:
            self._form.neg_()
        else:
            self._form.logical_not_()

    def transpose(self, axis: int, other: int) -> "Mask":
        """Return a view with two axes exchanged."""
        if axis == other:
            return self
        return self._view(self._form.transpose(axis, other))

    def __getitem__(self, rows: slice) -> "Mask":
        """Return a view of a slice of the rows."""
        return self._view(self._form[rows])

    def flatten(self, stride: int = 1) -> "Mask":
        """Return the flat mask with every ``stride``-th weight, for reading only."""
        return self._view(self._form.reshape(-1)[::stride])

    def apply(self, values: Tensor) -> None:
        """Set the values of pruned weights to +0.0 in place, NaN and infinities included.

        Args:
            values: Weights, gradients or optimizer statistics, in the shape of the mask.
        """
        if not self._has_bits:
            form, device = self._form, values.device
            if values.is_cpu and form.is_cpu and values.ndim:
                self._apply_in_pieces(values)
            else:  # a needless call of `to` costs a third of the filling
                values.masked_fill_(form if device == self.device else form.to(device), 0)
        elif values.element_size() == self._width and values.is_cpu:
            values.view(self._form.dtype).bitwise_and_(self._form)
        else:
            values.masked_fill_((self._form == 0).to(values.device), 0)

    def _apply_in_pieces(self, values: Tensor) -> None:
        """Do the same for a narrow mask on a CPU, where ``masked_fill_`` is five times slower."""
        dtype = _INTEGERS[values.element_size()]
        for rows in slice_pieces(values):
            bits = self._form[rows].view(torch.int8).to(dtype).sub_(1)  # all set where kept
            values[rows].view(dtype).bitwise_and_(bits)

    def intersect(self, mask: Tensor) -> None:
        """Keep only weights that a bool mask, which may broadcast, keeps too."""
        if self._has_bits:
            self._form.mul_(mask)
        else:
            self._form.ge_(mask)  # pruned, or not kept by the other mask

    def split(self, values: Tensor, rest: Tensor) -> None:
        """Move the values of pruned weights into ``rest``, and leave +0.0; ``rest`` becomes 0 else.

        Args:
            values: Weights in the shape of the mask.
            rest: A tensor that is laid out like the weights.
        """
        if self._has_bits and values.element_size() == self._form.element_size():
            bits = values.view(self._form.dtype)
            torch.bitwise_not(self._form, out=rest.view(self._form.dtype)).bitwise_and_(bits)
            bits.bitwise_and_(self._form)
        else:
            rest.copy_(values).masked_fill_(self.kept.to(values.device), 0)
            self.apply(values)

    def scale(self, values: Tensor, factor: float) -> None:
        """Multiply the values of pruned weights by a factor in place.

        Args:
            values: Gradients in the shape of the mask.
            factor: The factor.
        """
        rest = torch.empty_like(values)
        self.split(values, rest)
        values.add_(rest, alpha=factor)

    def lower(self, scores: Tensor) -> Tensor:
        """Return finite scores, with -inf where a weight is pruned.

        Args:
            scores: Scores in the shape of the mask, in single or double precision.
        """
        if not self._has_bits:
            return scores.masked_fill(self._form, -torch.inf)
        infinity = _MINUS_INFINITY[scores.dtype]
        addend = self._form.to(infinity.dtype).bitwise_not().bitwise_and_(infinity)
        return addend.view(scores.dtype).add_(scores)

    def _view(self, form: Tensor) -> "Mask":
        view = object.__new__(Mask)
        view._form, view._width, view._has_bits = form, self._width, self._has_bits
        view.device = self.device
        return view
