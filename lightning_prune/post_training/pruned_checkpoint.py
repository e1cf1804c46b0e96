"""The checkpoint of a model that was pruned without training."""

from pathlib import Path
from typing import Any

from lightning_prune.callbacks.namespace import Trainer
from lightning_prune.deploy.checkpoints import write_checkpoint
from lightning_prune.engine.checkpoint import keep_only_masks


def write_pruned_checkpoint(trainer: Trainer, key: str, state: dict[str, Any], path: Path) -> None:
    """Write a checkpoint with the whole model and the masks, and no state of a training.

    Best scores, patience and moments of the dense model would mislead the training that follows.

    Args:
        trainer: The Trainer that has validated the pruned model.
        key: The key of the `PruningCallback` in a checkpoint.
        state: The state of the engine.
        path: The file to write.
    """
    checkpoint = _collect_checkpoint(trainer)
    checkpoint.pop("loops", None)
    checkpoint |= {
        "epoch": 0,
        "global_step": 0,
        "optimizer_states": [],
        "lr_schedulers": [],
        "callbacks": {key: keep_only_masks(state)},
    }
    write_checkpoint(checkpoint, path)


def _collect_checkpoint(trainer: Trainer) -> dict[str, Any]:
    """Return the checkpoint that the Trainer would write."""
    strategy: Any = trainer.strategy
    kept = _KeepingIO()
    given, strategy.checkpoint_io = strategy.checkpoint_io, kept
    try:
        trainer.save_checkpoint("", weights_only=False)
    finally:
        strategy.checkpoint_io = given
    return kept.checkpoint


class _KeepingIO:
    """Keeps a checkpoint instead of writing it."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Keep the checkpoint."""
        self.checkpoint = checkpoint

    def load_checkpoint(self, *arguments: Any, **options: Any) -> dict[str, Any]:
        """Raise NotImplementedError: nothing is loaded."""
        raise NotImplementedError

    def remove_checkpoint(self, path: Any) -> None:
        """Raise NotImplementedError: nothing is removed."""
        raise NotImplementedError
