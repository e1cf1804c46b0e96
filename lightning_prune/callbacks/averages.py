"""Averaged copies of the weights, which other callbacks hold."""

from lightning_prune.callbacks.namespace import Trainer
from lightning_prune.engine.pruner import Pruner


class Averages:
    """Prunes the averaged copies of other callbacks after each choice of the masks.

    Between two choices an average of zeros stays zero, in any order of the callbacks.

    Args:
        pruner: The engine.
    """

    def __init__(self, pruner: Pruner) -> None:
        self._pruner = pruner
        self._choices: int | None = None  # at the last masking

    def begin(self, trainer: Trainer) -> None:
        """Mask the copies at the start of a training."""
        self._choices = None
        self.mask(trainer)

    def mask(self, trainer: Trainer) -> None:
        """Mask the copies if masks were chosen since the last call."""
        if self._pruner.choices == self._choices:
            return
        self._choices = self._pruner.choices
        for callback in trainer.callbacks:  # type: ignore[union-attr]
            average = getattr(callback, "_average_model", None)
            if average is not None:
                self._pruner.mask_copy(getattr(average, "module", average))
