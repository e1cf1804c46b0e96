"""Trainers that pruning does not support."""

from lightning_prune.callbacks.namespace import LightningCallback, Trainer, is_lightning


def refuse_unsupported(trainer: Trainer, kind: type[LightningCallback]) -> None:
    """Raise ValueError if a Trainer has a second callback that prunes, or flattens parameters.

    Args:
        trainer: The Trainer.
        kind: The class of the callback that prunes.
    """
    others = [each for each in trainer.callbacks if isinstance(each, kind)]  # type: ignore[union-attr]
    if len(others) > 1:
        raise ValueError(
            f"need one {kind.__name__} in a Trainer, got {len(others)}; write several "
            "targets in a single callback: sparsity={'encoder': 0.9, 'decoder': 0.5}"
        )
    if is_lightning(trainer.strategy, "DeepSpeedStrategy"):
        raise ValueError(
            "need a strategy whose optimizer steps on the parameters of the model, got "
            "DeepSpeedStrategy: at every stage of ZeRO it steps on flat copies, and overwrites the "
            "masked weights with these; use ModelParallelStrategy (FSDP2) or DDP"
        )
    if is_lightning(trainer.strategy, "FSDPStrategy"):
        raise ValueError(
            "need a strategy that keeps the shape of parameters, got "
            f"{type(trainer.strategy).__name__}; use ModelParallelStrategy (FSDP2) or DDP"
        )
