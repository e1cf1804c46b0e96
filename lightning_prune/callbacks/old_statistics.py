"""Running statistics of normalizations that are older than the masks."""

from lightning_prune.callbacks.namespace import LightningModule, rank_zero_warn
from lightning_prune.engine.pruner import Pruner
from lightning_prune.models.statistics import find_statistics


class OldStatistics:
    """Warns if no training batch has followed the last update of the masks.

    Then the running means and variances are those of the denser model before the update.

    Args:
        pruner: The engine, attached.
    """

    def __init__(self, pruner: Pruner) -> None:
        self._pruner = pruner
        self._updates = pruner.updates
        self._is_old = False

    def note_batch(self) -> None:
        """Note at the end of a batch whether the masks have changed after the forward pass."""
        updates = self._pruner.updates
        self._is_old, self._updates = updates != self._updates, updates

    def warn(self, model: LightningModule) -> None:
        """Warn at the end of a training, and name the command."""
        norms = find_statistics(model) if self._is_old else []
        if norms:
            rank_zero_warn(
                f"training ended with an update of the masks, so {len(norms)} normalizations have "
                "running statistics from before it; for new ones: lightning-prune reestimate "
                "--config <config> --ckpt_path <checkpoint>, in Python "
                "reestimate_statistics(trainer, model, datamodule)"
            )
