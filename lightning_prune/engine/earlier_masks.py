"""Masks from before: of a restored state, and of parameters that have left the model."""

from collections.abc import Iterable, Mapping, MutableMapping
from typing import Any

from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from lightning_prune.engine.candidates import Selection
from lightning_prune.engine.checkpoint import (
    keep_masks,
    refuse_foreign_masks,
    restore_tensor,
)
from lightning_prune.models.names import named_parameters
from lightning_prune.models.sharding import reshard
from lightning_prune.recipe.tensor import PrunedTensor
from lightning_prune.tensors.masks import Mask


class EarlierMasks:
    """The masks that no tensor has now, but that a tensor may have again.

    A restored mask goes to the first tensor of its name, and only to the parameter that has the
    name from the start. It waits as long as the parameter is frozen, not initialized or without an
    optimizer. A parameter that leaves the model takes its mask along, and brings the mask back.

    Args:
        state: The restored state; None for none.
        model: The model at the start.

    Attributes:
        state: The restored state with the masks that still wait; None for none.
    """

    def __init__(self, state: Mapping[str, Any] | None, model: nn.Module) -> None:
        if state is not None:
            refuse_foreign_masks(state, model)
        self.state = state
        self._parameters: Mapping[str, nn.Parameter] = named_parameters(model)
        self._absent: MutableMapping[Tensor, tuple[Mask, dict[str, Tensor]]] = WeakIdKeyDictionary()

    def check_shapes(self, model: nn.Module) -> None:
        """Raise ValueError if a mask does not fit a lazy parameter, which has a shape only now."""
        if self.state is not None:
            refuse_foreign_masks(keep_masks(self.state, self._find_unchanged(model)), model)

    def has(self, tensor: PrunedTensor) -> bool:
        """Whether there is a mask for a tensor."""
        return tensor.parameter in self._absent or self._has_restored(tensor)

    def give_to(self, tensor: PrunedTensor) -> None:
        """Give a tensor the mask and the gathered state from before, if they are there."""
        if tensor.parameter in self._absent:
            mask, tensor.state = self._absent[tensor.parameter]
            tensor.prune_to(mask.kept)
        elif self._has_restored(tensor):
            assert self.state is not None
            restore_tensor(tensor, self.state)

    def has_other_parameters(self, model: nn.Module) -> bool:
        """Whether the model has other parameters than at the last `note`."""
        reshard(model)
        unchanged = self._find_unchanged(model)
        return unchanged != self._parameters.keys() or unchanged != named_parameters(model).keys()

    def note(self, model: nn.Module, selection: Selection, gone: Iterable[PrunedTensor]) -> None:
        """Keep the masks of tensors that are gone, and forget masks that no tensor can take.

        Args:
            model: The present model.
            selection: The tensors under pruning, which have taken their masks.
            gone: The tensors that are no longer under pruning.
        """
        for tensor in gone:
            self._absent[tensor.parameter] = tensor.mask, tensor.state
        if self.state is not None:
            waiting = selection.unready - {tensor.name for tensor in selection.tensors}
            self.state = keep_masks(self.state, waiting & self._find_unchanged(model))
        self._parameters = named_parameters(model)

    def _has_restored(self, tensor: PrunedTensor) -> bool:
        is_same = self._parameters.get(tensor.name) is tensor.parameter
        return is_same and self.state is not None and tensor.name in self.state["masks"]

    def _find_unchanged(self, model: nn.Module) -> set[str]:
        """Return the names of the parameters that are the same as at the last `note`."""
        before = self._parameters
        return {name for name, p in named_parameters(model).items() if before.get(name) is p}
