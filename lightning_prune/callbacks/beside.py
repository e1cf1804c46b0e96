"""How a callback finds the pruning of the same Trainer."""

from lightning_prune.callbacks.namespace import Trainer
from lightning_prune.callbacks.pruning import PruningCallback
from lightning_prune.engine.pruner import Pruner


def find_pruner(callback: object, trainer: Trainer) -> Pruner:
    """Return the engine of the Trainer's `PruningCallback`.

    Args:
        callback: The callback that asks.
        trainer: The Trainer of both callbacks.

    Raises:
        ValueError: If the Trainer has no `PruningCallback`.
    """
    for other in trainer.callbacks:  # type: ignore[union-attr]
        if isinstance(other, PruningCallback):
            return other.pruner
    raise ValueError(
        f"need a PruningCallback beside a {type(callback).__name__}, got a Trainer without a "
        "PruningCallback; add PruningCallback(sparsity=...) to its callbacks"
    )
