"""Masks of many tensors, applied together."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_prune.tensors.fusing import fuses
from lightning_prune.tensors.masks import Mask

if TYPE_CHECKING:
    from lightning_prune.tensors.fused_zeroing import Launch


_LEAST = 6
"""For this many tensors, a launch by Triton costs the host less than a launch for each tensor."""


class MaskSet:
    """Applies masks to tensors at each step: on a GPU with Triton in one launch, else in turn.

    The launches are found when other masks come, or values that lie otherwise.
    """

    def __init__(self) -> None:
        self._masks: list[Mask] = []
        self._layouts: tuple[list[Any], ...] = ()  # dtypes, devices, strides of the values
        self._launches: list[tuple[Launch, list[int]]] = []  # with the places of the tensors
        self._others: list[int] = []  # places of tensors that no launch takes

    def __reduce__(self) -> tuple[type["MaskSet"], tuple[()]]:
        """Let a copy find launches for the masks that are copied with it."""
        return MaskSet, ()

    def apply(self, masks: Sequence[Mask], values: Sequence[Tensor]) -> None:
        """Set the values of pruned weights to +0.0 in place, as `Mask.apply` does.

        Args:
            masks: The masks.
            values: For each mask a tensor in the same shape.
        """
        if len(values) < _LEAST or not fuses(values[0].device):
            for mask, each in zip(masks, values, strict=True):
                mask.apply(each)
            return
        layouts = (
            [each.dtype for each in values],
            [each.get_device() for each in values],
            [each.stride() for each in values],
        )
        if layouts != self._layouts or list(masks) != self._masks:
            self._find_launches(masks, values)
            self._masks, self._layouts = list(masks), layouts
        for launch, places in self._launches:
            launch.run([values[place] for place in places])
        for place in self._others:
            masks[place].apply(values[place])

    def _find_launches(self, masks: Sequence[Mask], values: Sequence[Tensor]) -> None:
        """Put tensors of the same device and width together."""
        self._others = []
        together: dict[tuple[torch.device, int], list[int]] = {}
        for place, (mask, each) in enumerate(zip(masks, values, strict=True)):
            if fuses(each.device) and lies_alike(mask, each):
                together.setdefault((each.device, each.element_size()), []).append(place)
            else:
                self._others.append(place)
        self._launches = [
            (make_launch([masks[place] for place in places], width), places)
            for (_, width), places in together.items()
        ]


def make_launch(masks: Sequence[Mask], width: int) -> "Launch":
    """Return the launch for masks that have a `Mask.pruned`, and for values of a width in bytes."""
    from lightning_prune.tensors.fused_zeroing import Launch  # it imports Triton, which takes long

    return Launch([mask.pruned for mask in masks if mask.pruned is not None], width)


def lies_alike(mask: Mask, values: Tensor) -> bool:
    """Whether values lie in memory as the mask does, which has no gaps, on the same device."""
    form = mask.pruned
    return form is not None and form.device == values.device and form.stride() == values.stride()
