"""New statistics for the normalizations of a pruned model, from training batches."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor

from lightning_prune.arguments.checks import check_arguments
from lightning_prune.callbacks.namespace import (
    LightningCallback,
    LightningDataModule,
    LightningModule,
    Trainer,
    refuse_mixed,
)
from lightning_prune.callbacks.printing import shows_progress
from lightning_prune.models.compiled import run_uncompiled
from lightning_prune.models.progress import note_progress, show_progress
from lightning_prune.models.statistics import (
    find_statistics,
    gather_statistics,
    write_statistics,
)
from lightning_prune.models.undisturbed import keep_generators, keep_modes, keep_tensors
from lightning_prune.post_training.calibration import check_one_process, describe_missing_batches
from lightning_prune.post_training.defaults import STATISTICS
from lightning_prune.post_training.held_fits import hold_weights, quiet, similar_trainer

_REMEDY = "set statistics=0 (--statistics 0) to keep the statistics as they are"


class Reestimation(NamedTuple):
    """What got new statistics.

    Attributes:
        norms: Number of normalizations with new statistics.
        batches: Number of training batches that gave them.
    """

    norms: int
    batches: int

    def __str__(self) -> str:
        return f"normalizations with new statistics: {self.norms}, from {self.batches} batches"


@check_arguments
def reestimate_statistics(
    trainer: Trainer,
    model: LightningModule,
    datamodule: LightningDataModule | None = None,
    *,
    statistics: int = STATISTICS,
    train_mode: bool = False,
) -> Reestimation:
    """Give each batch normalization the mean statistics of training batches.

    Pruning shifts the inputs of a normalization, and the running statistics of the dense model no
    longer fit: Li et al., "EagleEye" (2020), https://arxiv.org/abs/2007.02491. ``training_step``
    runs, and the optimizers change no weight. Only running means, running variances and their
    counts change: the mean over the batches takes their place. Each call sees the same batches. A
    normalization that the batches do not reach in train mode keeps the statistics that it has. In a
    model without running statistics, no batch is read.

    Args:
        trainer: Gives device and precision; one process.
        model: The pruned model. On an error it stays as it is.
        datamodule: The source of training batches; by default the model.
        statistics: Largest number of training batches. A shorter epoch gives all of its batches.
        train_mode: Whether all modules are in train mode during the batches. By default only the
            normalizations are, so that they see the inputs that they see in eval mode.

    Returns:
        The number of normalizations and batches.

    Raises:
        ValueError: If there are no training batches, or more than one process.
        TypeError: If the model or the data come from another package of Lightning than the Trainer.
    """
    if statistics < 1:
        raise ValueError(f"need statistics >= 1, got statistics={statistics}")
    refuse_mixed(trainer, model, datamodule)
    check_one_process(trainer, "for new statistics")
    check_statistics(statistics, trainer, model, datamodule)
    norms = find_statistics(model)
    if not norms:
        return Reestimation(0, 0)
    batches = _FirstBatches(statistics)
    try:
        bar = show_progress(shows_progress(trainer))
        with _undisturbed(model), run_uncompiled(model), gather_statistics(norms) as sums, bar:
            model.train(train_mode)
            for norm in norms:
                norm.train()
            similar_trainer(trainer, batches).fit(model, datamodule=datamodule)
    finally:
        model.zero_grad()
        model.trainer = trainer
        if datamodule is not None:
            datamodule.trainer = trainer
    if not batches.seen:
        raise ValueError(f"need training batches for new statistics, got none; {_REMEDY}")
    return Reestimation(write_statistics(norms, sums), batches.seen)


def check_statistics(
    statistics: int,
    trainer: Trainer,
    model: LightningModule,
    datamodule: LightningDataModule | None,
) -> None:
    """Raise ValueError if new statistics are asked for and cannot be measured.

    Args:
        statistics: Number of training batches; 0 for the statistics that are there.
        trainer: The Trainer.
        model: The model; without running statistics it needs no batches.
        datamodule: The source of batches; by default the model.
    """
    if statistics < 0:
        raise ValueError(f"need statistics >= 0, got statistics={statistics}")
    if not statistics or not find_statistics(model):
        return
    if missing := describe_missing_batches(trainer, model, datamodule):
        raise ValueError(f"need training batches for new statistics, got {missing}; {_REMEDY}")


@contextmanager
def _undisturbed(model: LightningModule) -> Iterator[None]:
    with keep_generators(), keep_modes(model), keep_tensors(model), quiet(".*"):
        yield


class _FirstBatches(LightningCallback):
    """Ends a fit after the first batches of an epoch, in which no optimizer changes a weight."""

    def __init__(self, batches: int) -> None:
        self.batches = batches
        self.seen = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace the optimizers by those that change nothing."""
        hold_weights(trainer, pl_module)

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
        note_progress("showing batches to the normalizations", self.seen, self.batches)
        trainer.should_stop = self.seen >= self.batches

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop after an epoch with fewer batches."""
        trainer.should_stop = True
