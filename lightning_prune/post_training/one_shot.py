"""Pruning a trained model in one update, without training."""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from lightning_prune.arguments.checks import check_arguments
from lightning_prune.callbacks.namespace import (
    LightningDataModule,
    LightningModule,
    Trainer,
    refuse_mixed,
)
from lightning_prune.callbacks.printing import print_table
from lightning_prune.deploy.files import check_output_file
from lightning_prune.engine.pruner import Pruner
from lightning_prune.engine.repairing import DenseTwin
from lightning_prune.models.statistics import find_statistics
from lightning_prune.models.undisturbed import undo_on_error
from lightning_prune.post_training.calibration import (
    calibrate,
    check_batches,
    check_unshrunk_checkpoint,
    find_pruning_callback,
    validate,
)
from lightning_prune.post_training.defaults import BATCHES, STATISTICS
from lightning_prune.post_training.held_fits import stay_on_device
from lightning_prune.post_training.pruned_checkpoint import write_pruned_checkpoint
from lightning_prune.post_training.repairing import RepairReport, check_repair, repair_layers
from lightning_prune.post_training.statistics import check_statistics, reestimate_statistics
from lightning_prune.recipe.repair import Repair
from lightning_prune.reporting.pruning import change_table
from lightning_prune.tables.table import Table


@dataclass(frozen=True, kw_only=True)
class OneShotReport:
    """The masks of pruning in one shot, and the metrics before and after.

    Args:
        pruner: The engine, with ``tensors``, ``masks`` and ``sparsity``.
        before: The metrics of the dense model, by name.
        after: The metrics of the pruned model, by name.
        repaired: The layers that were repaired; none without a `Repair`.
    """

    pruner: Pruner
    before: Mapping[str, float]
    after: Mapping[str, float]
    repaired: RepairReport = field(default_factory=RepairReport)

    def table(self) -> Table:
        """Return the metrics before and after, side by side, for a terminal or a notebook."""
        return change_table(self.before, self.after, f"at sparsity {self.pruner.sparsity:.4f}")

    def _repr_html_(self) -> str:
        return self.table().to_html()


@check_arguments
def prune_once(
    trainer: Trainer,
    model: LightningModule,
    datamodule: LightningDataModule | None = None,
    *,
    ckpt_path: str | Path | None = None,
    output: str | Path | None = None,
    batches: int = BATCHES,
    train_mode: bool = False,
    statistics: int = STATISTICS,
    repair: Repair | None = None,
) -> OneShotReport:
    """Prune a trained model in one update, without training, and validate it before and after.

    The Trainer's `PruningCallback` gives the recipe; its schedule is ignored. First, the criterion
    sees training batches: ``training_step`` and ``backward`` run, but the optimizers change no
    weight. A criterion that reads weights only, such as `MagnitudeCriterion`, sees no batch. For a
    criterion that reads inputs only, such as `WandaCriterion`, batches run forward only, unless
    ``training_step`` computes gradients itself or optimization is manual. With
    ``repair``, the kept weights and the biases of pruned layers change, so that the layers keep
    their outputs on the training batches. Then batch normalizations get new running means and
    variances, as by `reestimate_statistics`, because those of the dense model no longer fit. Other
    weights that are not pruned, other buffers, modes and random number generators do not change.
    The model ends on the device where it was.

    Args:
        trainer: A Trainer with a `PruningCallback` and one device.
        model: The model to prune in place.
        datamodule: The source of batches; by default the model.
        ckpt_path: The checkpoint with the weights; by default the model keeps its own weights.
        output: The checkpoint to write; by default no checkpoint is written. The plain model loads
            it. ``fit`` with this ``ckpt_path`` begins a new training that keeps the zeros, from
            step 0 and with new optimizers.
        batches: Number of training batches for the criterion, at most one epoch. A criterion
            without `observe` scores by the mean gradient of all batches; under manual
            optimization, of the last.
        train_mode: Whether the modules are in train mode during these batches, for a
            ``training_step`` that needs it. By default they are in eval mode, without dropout.
        statistics: Largest number of training batches for new statistics of batch normalizations; 0
            leaves the statistics as they are. A model without running statistics needs no batch.
        repair: How the weights that are left make up for those that went; None to leave them as
            they are. If the recipe has no criterion, the repair also chooses the masks inside each
            tensor; the masks of a criterion are kept.

    Returns:
        The masks, and the metrics before and after.

    Raises:
        ValueError: If there is no `PruningCallback`, more than one process, too few batches or none
            for new statistics, or if the output is the input or cannot be written. If a repair
            chooses the masks and the allocation needs scores.
        TypeError: If the model or the data come from another package of Lightning than the Trainer.
    """
    refuse_mixed(trainer, model, datamodule)
    callback = find_pruning_callback(trainer)
    check_batches(batches)
    check_statistics(statistics, trainer, model, datamodule)
    source = check_unshrunk_checkpoint(ckpt_path)
    target = None if output is None else check_output_file(output, ckpt_path=source)
    if repair is not None:
        check_repair(callback.recipe)
    with stay_on_device(model):
        before = validate(trainer, model, datamodule, source)
        console = Console()
        twins: list[DenseTwin] = []

        def prune(pruner: Pruner, optimizers: Any) -> None:
            print_table(trainer, pruner, "To be pruned", callback.table)
            twins.extend([DenseTwin(pruner.tensors)] if repair is not None else [])
            for optimizer in optimizers:
                pruner.update(optimizer)

        data = trainer, model, datamodule
        repaired = RepairReport()
        renews = bool(statistics and find_statistics(model))
        with undo_on_error(model) if renews or repair else nullcontext():
            pruner = calibrate(*data, batches=batches, train_mode=train_mode, then=prune)
            if repair is not None:
                repaired = repair_layers(
                    *data,
                    pruner=pruner,
                    twin=twins[0],
                    repair=repair,
                    batches=batches,
                    train_mode=train_mode,
                )
            if renews:
                renewed = reestimate_statistics(*data, statistics=statistics, train_mode=train_mode)
                console.print(str(renewed))
        after = validate(trainer, model, datamodule)
    report = OneShotReport(pruner=pruner, before=before, after=after, repaired=repaired)
    print_table(trainer, pruner, "Pruned", callback.table)
    if repair is not None:
        console.print(repaired.table())
    console.print(report.table())
    if target is not None:
        write_pruned_checkpoint(trainer, callback.state_key, pruner.state_dict(), target)
    return report
