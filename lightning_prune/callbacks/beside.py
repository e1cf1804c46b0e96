"""What a callback knows of the pruning that goes on beside it."""

from lightning.pytorch import Callback, Trainer

from lightning_prune.callbacks.pruning import PruningCallback
from lightning_prune.engine.pruner import Pruner


def pruner_beside(callback: Callback, trainer: Trainer) -> Pruner:
    """Return the engine of the Trainer's `PruningCallback`.

    Args:
        callback: The callback that asks.
        trainer: The Trainer that it is in.

    Raises:
        ValueError: If the Trainer has none.
    """
    for other in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(other, PruningCallback):
            return other.pruner
    raise ValueError(
        f"need a PruningCallback beside a {type(callback).__name__}, got none in the Trainer"
    )
