"""Watch over zeros: a keeper for each optimizer, and the search for weights that left zero."""

from collections.abc import Mapping, Sequence

from torch.optim import Optimizer

from lightning_prune.engine.revival import (
    ask_revived,
    describe_revival,
    find_revived,
    report_revival,
)
from lightning_prune.engine.tally import Tally
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
        self._tally = Tally()

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

    def inspect(self, tensors: Sequence[PrunedTensor], *, defers: bool = False) -> None:
        """Raise or warn if pruned weights are not 0, and mask them again.

        Args:
            tensors: The tensors under pruning.
            defers: Whether an update follows that reads `take_tally` before it changes a mask. Then
                an error on an accelerator is raised there, so that the host waits once for both. A
                warning does not wait, since masks must be applied before scores are made.
        """
        self._tally = Tally()
        waits_once = defers and self._reaction == "error"
        if waits_once and not any(tensor.reads_at_once for tensor in tensors):
            ask_revived(tensors, self._tally, self._react)
        else:
            self._react(find_revived(tensors))

    def take_tally(self) -> Tally:
        """Return the tally of the last `inspect`, which raises where pruned weights are not 0."""
        tally, self._tally = self._tally, Tally()
        return tally

    def _react(self, revived: Mapping[PrunedTensor, int]) -> None:
        """Raise or warn, and mask the tensors again that are not 0."""
        if not revived:
            return
        report_revival(describe_revival(revived, self._optimizers, self.keepers), self._reaction)
        for tensor in revived:
            tensor.mask.apply(tensor.weights)
        for keeper in self.keepers:
            keeper.begin_anew()

    def report(self, revival: str) -> None:
        """Raise RuntimeError, or warn, as the user has asked; do nothing for no words."""
        if revival:
            report_revival(revival, self._reaction)
