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


def run_forward_only(
    trainer: Trainer, observe: Callable[[Optimizer], None], give_up: Callable[[], None]
) -> None:
    """Let the training steps of a fit run without gradients, and leave backward passes out.

    Args:
        trainer: The Trainer of a fit that has begun, under automatic optimization.
        observe: Called before each step of an optimizer, which changes no weight.
        give_up: Called if a training step raises RuntimeError, as does a step that computes
            gradients itself. Then this step and all later steps run with gradients.
    """
    strategy = trainer.strategy
    methods, run = vars(strategy), strategy.training_step

    def run_without_gradients(*args: Any, **kwargs: Any) -> Any:
        try:
            with torch.no_grad():
                return run(*args, **kwargs)
        except RuntimeError:
            for name in replaced:
                del methods[name]
            give_up()
        return run(*args, **kwargs)

    def observe_only(
        optimizer: Optimizer, closure: Callable[[], Any], *args: Any, **kwargs: Any
    ) -> Any:
        loss = closure()
        observe(optimizer)
        optimizer.step()
        return loss

    replaced = {
        "training_step": run_without_gradients,
        "backward": lambda closure_loss, *args, **kwargs: closure_loss,
        "optimizer_step": observe_only,
    }
    methods.update(replaced)


@contextmanager
def stay_on_device(model: LightningModule) -> Iterator[None]:
    """Let fits and validations leave a model where they have put it, until the block ends.

    Lightning moves a model to the CPU after each of them. At the end of the block the model goes
    back to the device that it is on now.
    """
    device, attributes = model.device, vars(model)
    is_outer = "cpu" not in attributes
    if is_outer:
        attributes["cpu"] = lambda: model
    try:
        yield
    finally:
        if is_outer:
            del attributes["cpu"]
            model.to(device)


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
