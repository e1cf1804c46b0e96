"""Training batches for a criterion while no weight changes, and validations without a trace."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_prune.callbacks.namespace import (
    LightningCallback,
    LightningDataModule,
    LightningModule,
    Trainer,
    is_overridden,
)
from lightning_prune.callbacks.printing import shows_progress
from lightning_prune.callbacks.pruning import PruningCallback
from lightning_prune.deploy.checkpoints import find_whole_file, read_lightning_checkpoint
from lightning_prune.engine.pruner import Pruner
from lightning_prune.models.progress import note_progress, show_progress
from lightning_prune.models.undisturbed import (
    keep_generators,
    keep_modes,
    keep_quiet,
    keep_tensors,
    undo_on_error,
)
from lightning_prune.post_training.held_fits import (
    hold_weights,
    make_dummy_logger,
    quiet,
    run_forward_only,
    similar_trainer,
    stay_on_device,
)
from lightning_prune.recipe.criteria import Criterion
from lightning_prune.recipe.schedules import OneShotSchedule
from lightning_prune.tensors.masks import narrow_masks

_EXPECTED_WARNINGS = (
    ".*in eval mode at the start of training",
    ".*smaller than the logging interval",
    r".*isinstance\(treespec",  # Lightning's own
    "None of the inputs have requires_grad=True",  # activation checkpoints without gradients
    "weights are 0 and no mask says why",  # no weight changes, so none grows back
)

# A validation takes the weights of a checkpoint only.
_OTHER_CALLBACKS = "Be aware that when using `ckpt_path`, callbacks used to create the checkpoint"

_EMPTY = (
    "need a training batch, got an empty train_dataloader; set limit_train_batches=0 "
    "(--trainer.limit_train_batches 0) to go without"
)

Conclusion = Callable[[Pruner, Sequence[Optimizer]], None]


def find_pruning_callback(trainer: Trainer) -> PruningCallback:
    """Return the Trainer's callback whose recipe says how to prune.

    Raises:
        ValueError: If the Trainer has no `PruningCallback` or more than one process.
    """
    check_one_process(trainer, "to prune without training")
    for callback in trainer.callbacks:  # type: ignore[union-attr]
        if isinstance(callback, PruningCallback):
            return callback
    raise ValueError("need a PruningCallback among the Trainer's callbacks, got none")


def check_one_process(trainer: Trainer, purpose: str) -> None:
    """Raise ValueError if more than one process would run."""
    if trainer.world_size > 1:
        raise ValueError(
            f"need one process {purpose}, got world_size={trainer.world_size}; "
            "set devices=1 (--trainer.devices 1)"
        )


def needs_batches(criterion: Criterion) -> bool:
    """Return whether a score may depend on more than the weights: on a state or on gradients."""
    return criterion.gathers or not criterion.reads_weights_only


def check_batches(batches: int) -> None:
    """Raise ValueError if the number of batches is not positive."""
    if batches < 1:
        raise ValueError(f"need batches >= 1, got batches={batches}")


def describe_missing_batches(
    trainer: Trainer, model: LightningModule, datamodule: LightningDataModule | None
) -> str | None:
    """Return why there are no training batches, in words; None if there are, as far as known."""
    if trainer.limit_train_batches == 0:
        return "limit_train_batches=0"
    if any(is_overridden("train_dataloader", each) for each in (datamodule, model) if each):
        return None
    return f"no train_dataloader in {type(datamodule or model).__name__}"


def check_unshrunk_checkpoint(ckpt_path: str | Path | None) -> str | None:
    """Return the path of a checkpoint with the shapes of the model; None for no checkpoint.

    Raises:
        ValueError: If the file is not a checkpoint of Lightning, or `shrink` has written it.
    """
    if ckpt_path is None:
        return None
    if "shrunk_attributes" in read_lightning_checkpoint(ckpt_path):
        raise ValueError(
            f"need a checkpoint that is not shrunk, got ckpt_path='{ckpt_path}'; name the "
            "checkpoint from before shrink"
        )
    return str(ckpt_path)


def validate(
    trainer: Trainer,
    model: LightningModule,
    datamodule: LightningDataModule | None,
    ckpt_path: str | None = None,
) -> dict[str, float]:
    """Return the metrics that ``trainer.validate`` logs.

    The Trainer's loggers do not get the metrics. Each call sees the same random numbers.
    """
    loggers, trainer.loggers = trainer.loggers, [make_dummy_logger(trainer)]
    try:
        with (
            keep_generators(),
            keep_quiet(warned=[_OTHER_CALLBACKS]),
            find_whole_file(ckpt_path) if ckpt_path else nullcontext() as file,
        ):
            run: Any = trainer.validate
            results = run(model, datamodule=datamodule, ckpt_path=file, verbose=False)
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
        trainer: Gives the `PruningCallback`, device, precision and plan of the training.
        model: Unchanged afterwards, except for the weights that ``then`` has pruned.
        datamodule: The source of training batches; by default the model.
        batches: Number of batches, if the criterion needs batches. A criterion without `observe`
            scores by the mean gradient of all batches; under manual optimization, of the last.
        train_mode: Whether the modules are in train mode during the batches.
        then: Called after the last batch, while the gradients are still there.

    Returns:
        The detached engine.

    Raises:
        ValueError: If there are fewer training batches than the criterion needs.
    """
    given = find_pruning_callback(trainer)
    recipe = given.recipe.at_once(OneShotSchedule(end=1.0))
    callback = PruningCallback.from_recipe(recipe, example=given.example)
    shown = batches if needs_batches(recipe.chosen_criterion) else 0
    at_once = not recipe.chosen_criterion.gathers and model.automatic_optimization
    source = _choose_source(trainer, model, datamodule, shown)
    calibration = _Calibration(callback, shown)
    try:
        with stay_on_device(model):
            bar = show_progress(shows_progress(trainer))
            with _unchanging(model, callback.pruner), bar:
                model.train(train_mode)
                fitting = similar_trainer(
                    trainer,
                    calibration,
                    max_steps=max(trainer.max_steps, shown, 1) if trainer.max_steps > 0 else -1,
                    accumulate_grad_batches=max(shown, 1) if at_once else 1,
                )
                fitting.fit(model, **source)
                if not calibration.concluded:
                    raise ValueError(_EMPTY)
            _conclude(model, callback.pruner, calibration.optimizers, then)
            callback.pruner.detach(completed=False)
    finally:
        model.zero_grad()
        model.trainer = trainer
        if datamodule is not None:
            datamodule.trainer = trainer
    return callback.pruner


@contextmanager
def _unchanging(model: nn.Module, pruner: Pruner) -> Iterator[None]:
    """Keep the model as it is now; if the block raises, detach the engine."""
    with keep_generators(), keep_modes(model), keep_tensors(model), quiet(*_EXPECTED_WARNINGS):
        try:
            yield
        except BaseException:
            pruner.detach(completed=False)
            raise


def _conclude(
    model: nn.Module, pruner: Pruner, optimizers: Sequence[Optimizer], then: Conclusion
) -> None:
    """Call ``then``; if it raises, the model is as before."""
    # The update of a single optimizer raises before it changes a weight.
    with undo_on_error(model) if len(optimizers) > 1 else nullcontext():
        try:
            then(pruner, optimizers)
        except BaseException:
            pruner.detach(completed=False)
            raise


def _choose_source(
    trainer: Trainer, model: LightningModule, datamodule: LightningDataModule | None, shown: int
) -> dict[str, Any]:
    """Return where a fit reads batches; without batches, nowhere, if the criterion needs no batch.

    Raises:
        ValueError: If there is no batch, and the criterion needs batches.
    """
    missing = describe_missing_batches(trainer, model, datamodule)
    if missing is None:
        return {"datamodule": datamodule}
    if shown:
        raise ValueError(f"need batches={shown} training batches, got {missing}")
    return {"train_dataloaders": range(1)}  # the fit ends before the first batch


class _Calibration(LightningCallback):
    """Lets the engine observe the first batches of a fit, then ends the fit."""

    def __init__(self, callback: PruningCallback, batches: int) -> None:
        self.callback = callback
        self.pruner = callback.pruner
        self.batches = batches
        self.seen = 0
        self.concluded = False
        self.optimizers: Sequence[Optimizer] = ()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace the optimizers by those that change nothing, and attach the engine."""
        if trainer.num_training_batches < self.batches:
            raise ValueError(describe_shortage(self.batches, int(trainer.num_training_batches)))
        hold_weights(trainer, pl_module)
        with narrow_masks():
            self.pruner.attach(
                pl_module,
                trainer.optimizers,
                clocks=lambda schedule: lambda done: float(self.concluded),
                is_trial_step=lambda optimizer: True,  # a gradient scaler may skip a step
                example=self.callback.example,
            )
        for tensor in self.pruner.tensors:
            if tensor.hooks:  # they run in train mode only; the layer computes the same
                tensor.owner.training = True
        criterion = self.pruner.recipe.chosen_criterion
        if criterion.reads_inputs_only and pl_module.automatic_optimization:
            self._set_forward_only(True)
            run_forward_only(trainer, self.pruner.before_step, self._run_backward_too)
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
        """Count the batch, and stop after the last."""
        self.seen += 1
        note_progress("showing batches to the criterion", self.seen, self.batches)
        if self.seen == self.batches:
            self._conclude(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse to score with fewer batches than requested."""
        if not self.concluded:
            raise ValueError(describe_shortage(self.batches, self.seen))

    def _run_backward_too(self) -> None:
        """Forget what hooks have seen in this step, and count as in training from now on."""
        self._set_forward_only(False)
        for tensor in self.pruner.tensors:
            tensor.forget_seen()

    def _set_forward_only(self, is_forward_only: bool) -> None:
        for tensor in self.pruner.tensors:
            tensor.is_forward_only = is_forward_only

    def _conclude(self, trainer: Trainer) -> None:
        self.concluded, self.optimizers = True, trainer.optimizers
        trainer.should_stop = True


def describe_shortage(batches: int, found: int) -> str:
    """Return the error for an epoch with fewer batches than requested."""
    return (
        f"need at least batches={batches} training batches in an epoch, got {found}; "
        "ask for fewer batches"
    )
