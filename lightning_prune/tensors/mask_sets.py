"""Masks of many tensors, applied together."""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_prune.tensors.masks import Mask

if TYPE_CHECKING:
    from lightning_prune.tensors.fused_zeroing import Launch

_HAS_TRITON = find_spec("triton") is not None


class MaskSet:
    """Applies masks to tensors at each step: on a GPU with Triton in one launch, else in turn.

    What a launch needs to know of the masks is found when other masks come.
    """

    def __init__(self) -> None:
        self._launches: dict[tuple[torch.device, int], tuple[list[Mask], Launch]] = {}

    def apply(self, masks: Sequence[Mask], values: Sequence[Tensor]) -> None:
        """Set the values of pruned weights to +0.0 in place, as `Mask.apply` does.

        Args:
            masks: The masks.
            values: For each mask a tensor in the same shape.
        """
        together: dict[tuple[torch.device, int], list[tuple[Mask, Tensor]]] = {}
        for mask, each in zip(masks, values, strict=True):
            if each.is_cuda and _HAS_TRITON and lies_alike(mask, each):
                together.setdefault((each.device, each.element_size()), []).append((mask, each))
            else:
                mask.apply(each)
        for key, pairs in together.items():
            of_launch = [mask for mask, _ in pairs]
            known, launch = self._launches.get(key, ([], None))
            if launch is None or known != of_launch:
                launch = make_launch(of_launch)
                self._launches[key] = of_launch, launch
            launch.run([each for _, each in pairs])


def make_launch(masks: Sequence[Mask]) -> "Launch":
    """Return the launch for masks that have a `Mask.pruned`."""
    from lightning_prune.tensors.fused_zeroing import Launch  # it imports Triton, which takes long

    return Launch([mask.pruned for mask in masks if mask.pruned is not None])


def lies_alike(mask: Mask, values: Tensor) -> bool:
    """Whether values lie in memory as the mask does, which has no gaps, on the same device."""
    form = mask.pruned
    return form is not None and form.device == values.device and form.stride() == values.stride()
