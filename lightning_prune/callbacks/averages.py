"""Averaged copies of the model that other callbacks keep."""

from lightning.pytorch import Trainer

from lightning_prune.engine.pruner import Pruner


class Averages:
    """Prunes the averaged copies of other callbacks after each change of the masks.

    Between two changes an average of zeros stays zero, in any order of the callbacks.

    Args:
        pruner: The engine, attached.
    """

    def __init__(self, pruner: Pruner) -> None:
        self._pruner = pruner
        self._updates: int | None = None

    def mask(self, trainer: Trainer) -> None:
        """Zero the pruned weights in the copies if the masks have changed."""
        if self._pruner.updates == self._updates:
            return
        self._updates = self._pruner.updates
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            average = getattr(callback, "_average_model", None)
            if average is not None:
                self._pruner.mask_copy(getattr(average, "module", average))
