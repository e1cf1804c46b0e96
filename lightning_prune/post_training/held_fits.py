"""Fits that show batches to a model while no weight changes."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.optim import Optimizer

from lightning_prune.callbacks.namespace import (
    LOGGERS,
    LightningCallback,
    LightningModule,
    Trainer,
    find_package,
    import_beside,
)
from lightning_prune.models.undisturbed import keep_quiet


class HoldingOptimizer(Optimizer):
    """Takes the place of an optimizer and changes no weight.

    Args:
        original: The optimizer to replace, with the same parameters.
    """

    def __init__(self, original: Optimizer) -> None:
        super().__init__([dict(group) for group in original.param_groups], {})

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Compute the gradients only."""
        if closure is None:
            return None
        with torch.enable_grad():
            return closure()


def hold_weights(trainer: Trainer, model: LightningModule) -> None:
    """Replace the optimizers of a fit that has begun by optimizers that change nothing."""
    trainer.strategy.optimizers = [HoldingOptimizer(o) for o in trainer.optimizers]
    if model.automatic_optimization:
        trainer.strategy.lr_scheduler_configs = []


def similar_trainer(trainer: Trainer, callback: LightningCallback, **arguments: Any) -> Any:
    """Return a Trainer with the device, precision and length of training of another."""
    device = trainer.strategy.root_device
    return find_package(trainer).Trainer(
        accelerator=trainer.accelerator,
        devices=[device.index] if device.type == "cuda" and device.index is not None else 1,
        precision=trainer.precision,
        max_epochs=trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else 1,
        limit_train_batches=trainer.limit_train_batches or 1.0,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        logger=make_dummy_logger(trainer),
        callbacks=[callback],
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        **arguments,
    )


def make_dummy_logger(trainer: Trainer) -> Any:
    """Return a logger of the package of a Trainer that writes nothing."""
    return import_beside(trainer, "loggers.logger").DummyLogger()


@contextmanager
def quiet(*warned: str) -> Iterator[None]:
    """Keep a run within a command from talking as if it were the user's.

    Args:
        *warned: Regular expressions of the warnings to leave out, too.
    """
    with keep_quiet(*LOGGERS, level=logging.WARNING, warned=warned):
        yield
