"""Batches through a model that does not learn from them, and validations that leave no trace."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers.logger import DummyLogger
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_prune.callbacks.pruning import PruningCallback
from lightning_prune.engine.pruner import Pruner
from lightning_prune.models.undisturbed import (
    keep_generators,
    keep_modes,
    keep_quiet,
    keep_tensors,
)
from lightning_prune.recipe.criteria import Criterion, MagnitudeCriterion, RandomCriterion
from lightning_prune.recipe.schedules import OneShotSchedule

BATCHES = 16

_EXPECTED = (
    ".*in eval mode at the start of training",
    ".*smaller than the logging interval",
    r".*isinstance\(treespec",  # Lightning's own
)

Conclusion = Callable[[Pruner, Sequence[Optimizer]], None]


def recipe_of(trainer: Trainer) -> PruningCallback:
    """Return the callback that says what, where, which and in what shape to prune.

    Raises:
        ValueError: If there is none, or if more than one process would run.
    """
    check_one_process(trainer, "to prune without training")
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, PruningCallback):
            return callback
    raise ValueError(
        "need a PruningCallback among the Trainer's callbacks, which says what to prune, got none"
    )


def check_one_process(trainer: Trainer, purpose: str) -> None:
    """Raise ValueError if more than one process would run."""
    if trainer.world_size > 1:
        raise ValueError(
            f"need one process {purpose}, got world_size={trainer.world_size}; "
            "set devices=1 (--trainer.devices 1)"
        )


def gathers(criterion: Criterion) -> bool:
    """Whether it overrides `Criterion.observe`."""
    return type(criterion).observe is not Criterion.observe


def needs_batches(criterion: Criterion) -> bool:
    """Whether scores may depend on anything but the weights: what it gathers, or gradients."""
    return gathers(criterion) or not isinstance(criterion, MagnitudeCriterion | RandomCriterion)


def check_batches(batches: int) -> None:
    """Raise ValueError if that is no number of batches to show a criterion."""
    if batches < 1:
        raise ValueError(f"need batches >= 1, got batches={batches}")


def checked_checkpoint(ckpt_path: str | Path | None) -> str | None:
    """Return the path; raise ValueError if nothing is there."""
    if ckpt_path is not None and not Path(ckpt_path).exists():
        raise ValueError(f"need an existing checkpoint, got ckpt_path='{ckpt_path}'")
    return None if ckpt_path is None else str(ckpt_path)


def checked_output(output: str | Path, source: str | Path | None) -> Path:
    """Return the path; raise ValueError if it is a folder, or what is read."""
    path = Path(output)
    if source is not None and Path(source).resolve() == path.resolve():
        raise ValueError(f"need an output other than ckpt_path, got output='{path}'")
    if path.is_dir():
        raise ValueError(f"need the name of a file to write, got the folder output='{path}'")
    return path


def validated(
    trainer: Trainer,
    model: LightningModule,
    datamodule: LightningDataModule | None,
    ckpt_path: str | None = None,
) -> dict[str, float]:
    """Return what ``trainer.validate`` logs; each call sees the same random numbers.

    Nothing of it goes to the Trainer's loggers.
    """
    loggers, trainer.loggers = trainer.loggers, [DummyLogger()]
    try:
        with keep_generators():
            results = trainer.validate(
                model, datamodule=datamodule, ckpt_path=ckpt_path, verbose=False
            )
    finally:
        trainer.loggers = loggers
    return {name: float(value) for result in results for name, value in result.items()}


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Give weights, buffers, modes and the random number generators back as they are now.

    Gradients are gone, as they are after any validation.
    """
    try:
        with keep_generators(), keep_modes(model), keep_tensors(model):
            yield
    finally:
        model.zero_grad()


def calibrate(
    trainer: Trainer,
    model: LightningModule,
    datamodule: LightningDataModule | None,
    *,
    batches: int,
    train_mode: bool,
    then: Conclusion,
) -> Pruner:
    """Show training batches to the criterion of a Trainer's recipe while no weight changes.

    Args:
        trainer: Whose `PruningCallback`, device, precision and plan of training are taken.
        model: Left as it was, but for what ``then`` has pruned.
        datamodule: Where training batches come from; by default from the model.
        batches: How many, if the criterion needs any. One that gathers nothing scores by the mean
            gradient of all of them (of the last, under manual optimization).
        train_mode: Whether modules are in train mode meanwhile; else in eval mode.
        then: What is done when the criterion has seen them, with gradients still there.

    Returns:
        The engine, detached.
    """
    given = recipe_of(trainer)
    recipe = given.pruner
    callback = PruningCallback(
        sparsity=dict(recipe.targets),
        schedule=OneShotSchedule(end=1.0),
        allocation=recipe.allocation,
        criterion=recipe.criterion,
        pattern=recipe.pattern,
        keep_zeros=recipe.keep_zeros,
        example=given.example,
    )
    shown = batches if needs_batches(recipe.criterion) else 0
    at_once = not gathers(recipe.criterion) and model.automatic_optimization
    try:
        with unchanged(model), quiet(*_EXPECTED):
            model.train(train_mode)
            fitting = _trainer_like(
                trainer,
                _Calibration(callback, shown, then),
                max_steps=max(trainer.max_steps, shown, 1) if trainer.max_steps > 0 else -1,
                accumulate_grad_batches=max(shown, 1) if at_once else 1,
            )
            fitting.fit(model, datamodule=datamodule)
    finally:
        model.trainer = trainer
        if datamodule is not None:
            datamodule.trainer = trainer
    callback.pruner.mask_copy(model)
    return callback.pruner


class HoldingOptimizer(Optimizer):
    """Stands in for an optimizer and leaves the weights alone.

    Args:
        original: The optimizer whose parameters it holds.
    """

    def __init__(self, original: Optimizer) -> None:
        super().__init__([dict(group) for group in original.param_groups], {})

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Compute the gradients, and nothing more."""
        if closure is None:
            return None
        with torch.enable_grad():
            return closure()


class _Calibration(Callback):
    """Lets the engine observe some batches of a fit and ends it."""

    def __init__(self, callback: PruningCallback, batches: int, then: Conclusion) -> None:
        self.callback = callback
        self.pruner = callback.pruner
        self.batches = batches
        self.then = then
        self.seen = 0
        self.concluded = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put optimizers that change nothing in the place of the real ones, and begin."""
        if trainer.num_training_batches < self.batches:
            raise ValueError(_too_few(self.batches, int(trainer.num_training_batches)))
        trainer.strategy.optimizers = [HoldingOptimizer(o) for o in trainer.optimizers]
        if pl_module.automatic_optimization:
            trainer.strategy.lr_scheduler_configs = []
        self.pruner.attach(
            pl_module,
            trainer.optimizers,
            clocks=lambda schedule: lambda done: float(self.concluded),
            uncounted=lambda optimizer: True,  # those that a gradient scaler skips
            example=self.callback.example,
        )
        for tensor in self.pruner.tensors:
            if tensor.hooks:  # they count in train mode only; these layers compute the same in both
                tensor.owner.training = True
        if self.batches == 0:
            self._conclude(trainer)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Let the criterion observe."""
        self.callback.on_before_optimizer_step(trainer, pl_module, optimizer)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Tensor | Mapping[str, Any] | None,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Count, and stop after the last one."""
        self.seen += 1
        if self.seen == self.batches:
            self._conclude(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse to score with less than was asked for."""
        if not self.concluded:
            raise ValueError(_too_few(self.batches, self.seen))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the hooks away."""
        self.pruner.detach(completed=False)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Take the hooks away."""
        self.pruner.detach(completed=False)

    def _conclude(self, trainer: Trainer) -> None:
        self.concluded = True
        self.then(self.pruner, trainer.optimizers)
        trainer.should_stop = True


def _trainer_like(trainer: Trainer, callback: Callback, **arguments: Any) -> Trainer:
    """Return a Trainer that fits where and as precisely as the given one, and plans as long."""
    device = trainer.strategy.root_device
    return Trainer(
        accelerator=trainer.accelerator,
        devices=[device.index] if device.type == "cuda" and device.index is not None else 1,
        precision=trainer.precision,
        max_epochs=trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else 1,
        limit_train_batches=trainer.limit_train_batches,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        logger=DummyLogger(),
        callbacks=[callback],
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        **arguments,
    )


@contextmanager
def quiet(*warned: str) -> Iterator[None]:
    """Keep a run within a command from talking as if it were the user's.

    Args:
        *warned: Regular expressions of the warnings to leave out, too.
    """
    loggers = "lightning.pytorch", "lightning.fabric"
    with keep_quiet(*loggers, level=logging.WARNING, warned=warned):
        yield


def _too_few(batches: int, found: int) -> str:
    return (
        f"need at least batches={batches} training batches in an epoch, got {found}; "
        "ask for fewer batches"
    )
