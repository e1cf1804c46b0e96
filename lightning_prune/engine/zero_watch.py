"""Watch over zeros: a keeper for each optimizer, and the search for weights that left zero."""

from collections.abc import Sequence

from torch.optim import Optimizer

from lightning_prune.engine.revival import describe_revival, find_revived, report_revival
from lightning_prune.engine.zero_keeper import ZeroKeeper
from lightning_prune.recipe.tensor import PrunedTensor


class ZeroWatch:
    """Keeps pruned weights at zero from step to step, and looks for weights that left zero.

    Args:
        reaction: The ``on_revival`` of the recipe.

    Attributes:
        keepers: A keeper for each optimizer; empty while no optimizer is hooked.
    """

    def __init__(self, reaction: str) -> None:
        self.keepers: list[ZeroKeeper] = []
        self._reaction = reaction
        self._optimizers: Sequence[Optimizer] = ()

    def renew(self, optimizers: Sequence[Optimizer], tensors: Sequence[PrunedTensor]) -> None:
        """Find out again which optimizer trains which tensor; several can hold a parameter."""
        self.remove()
        self._optimizers = optimizers
        self.keepers = [
            ZeroKeeper(optimizer, tensors, index) for index, optimizer in enumerate(optimizers)
        ]

    def remove(self) -> None:
        """Remove the hooks of the keepers."""
        for keeper in self.keepers:
            keeper.remove()
        self.keepers = []

    def describe(self, tensors: Sequence[PrunedTensor]) -> str:
        """Return in words which pruned weights are not 0; empty if all are."""
        revived = find_revived(tensors)
        return describe_revival(revived, self._optimizers, self.keepers) if revived else ""

    def inspect(self, tensors: Sequence[PrunedTensor]) -> None:
        """Raise or warn if pruned weights are not 0, and mask them again."""
        if revived := find_revived(tensors):
            revival = describe_revival(revived, self._optimizers, self.keepers)
            report_revival(revival, self._reaction)
            for tensor in revived:
                tensor.mask.apply(tensor.weights)
            for keeper in self.keepers:
                keeper.begin_anew()

    def report(self, revival: str) -> None:
        """Raise RuntimeError, or warn, as the user has asked; do nothing for no words."""
        if revival:
            report_revival(revival, self._reaction)
