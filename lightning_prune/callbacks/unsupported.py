"""Trainers that pruning does not support."""

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy


def refuse_unsupported(trainer: Trainer, kind: type[Callback]) -> None:
    """Raise ValueError if a Trainer has a second callback that prunes, or flattens parameters.

    Args:
        trainer: The Trainer.
        kind: The class of the callback that prunes.
    """
    others = [each for each in trainer.callbacks if isinstance(each, kind)]  # type: ignore[attr-defined]
    if len(others) > 1:
        raise ValueError(
            f"need one {kind.__name__} in a Trainer, got {len(others)}; write several "
            "targets in a single callback: sparsity={'encoder': 0.9, 'decoder': 0.5}"
        )
    if isinstance(trainer.strategy, FSDPStrategy | DeepSpeedStrategy):
        raise ValueError(
            "need a strategy that keeps the shape of parameters, got "
            f"{type(trainer.strategy).__name__}; use ModelParallelStrategy (FSDP2) or DDP"
        )
