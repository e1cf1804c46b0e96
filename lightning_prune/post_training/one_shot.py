"""Pruning a trained model in one update, without training."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from rich.console import Console, RenderableType

from lightning_prune.callbacks.pruning import PruningCallback
from lightning_prune.engine.pruner import Pruner
from lightning_prune.post_training.calibration import (
    BATCHES,
    calibrate,
    check_batches,
    checked_checkpoint,
    checked_output,
    recipe_of,
    validated,
)
from lightning_prune.reporting.pruning import change_table, pruning_table


@dataclass(frozen=True, kw_only=True)
class OneShotReport:
    """What pruning in one shot has done.

    Args:
        pruner: The engine, with ``tensors``, ``masks`` and ``sparsity``.
        before: What validation logged for the model as it was, by metric.
        after: The same for the pruned model.
    """

    pruner: Pruner
    before: Mapping[str, float]
    after: Mapping[str, float]

    def table(self) -> RenderableType:
        """Return the metrics before and after, side by side, for a terminal."""
        return change_table(self.before, self.after, f"at sparsity {self.pruner.sparsity:.4f}")


def prune_once(
    trainer: Trainer,
    model: LightningModule,
    datamodule: LightningDataModule | None = None,
    *,
    ckpt_path: str | Path | None = None,
    output: str | Path | None = None,
    batches: int = BATCHES,
    train_mode: bool = False,
) -> OneShotReport:
    """Prune a trained model in one update, without training, and validate it before and after.

    The recipe is that of the Trainer's `PruningCallback`; its schedule is ignored. The criterion is
    first shown training batches: ``training_step`` and ``backward`` run, but optimizers that change
    nothing stand in for the model's own. `MagnitudeCriterion` and `RandomCriterion` need none and
    see none. Weights that are not pruned, buffers (so the statistics of batch normalisations) and
    random number generators are left as they were.

    Args:
        trainer: With a `PruningCallback` and one device.
        model: Pruned in place.
        datamodule: Where batches come from; by default from the model.
        ckpt_path: The checkpoint with the weights; by default those of the model as it is.
        output: Where to write a checkpoint of the pruned model. The plain model loads it, and
            ``fit`` with it as ``ckpt_path`` begins a new training (from step 0, with new
            optimizers) that holds these zeros. By default none is written.
        batches: Number of training batches that the criterion is shown, at most those of an epoch.
            One that gathers nothing scores by the mean gradient of all of them (of the last, under
            manual optimization).
        train_mode: Whether modules are in train mode then, for a ``training_step`` that needs it;
            by default they are in eval mode, as when validated, so without dropout.

    Returns:
        The masks, and the metrics before and after.

    Raises:
        ValueError: If there is no `PruningCallback`, more than one process, too few batches, or the
            output would overwrite the input.
    """
    recipe = recipe_of(trainer)
    check_batches(batches)
    source = checked_checkpoint(ckpt_path)
    target = None if output is None else checked_output(output, source)
    before = validated(trainer, model, datamodule, source)
    console = Console()

    def prune(pruner: Pruner, optimizers: Any) -> None:
        console.print(pruning_table(pruner, "To be pruned"))
        for optimizer in optimizers:
            pruner.update(optimizer)

    pruner = calibrate(
        trainer, model, datamodule, batches=batches, train_mode=train_mode, then=prune
    )
    after = validated(trainer, model, datamodule)
    report = OneShotReport(pruner=pruner, before=before, after=after)
    console.print(pruning_table(pruner, "Pruned"))
    console.print(report.table())
    if target is not None:
        _save(trainer, recipe, pruner, target)
    return report


def _save(trainer: Trainer, recipe: PruningCallback, pruner: Pruner, path: Path) -> None:
    """Write a checkpoint with all of the model and the masks, and nothing of a training.

    Best scores, patience and moments of the dense model would mislead the training that follows.
    """
    trainer.save_checkpoint(path, weights_only=False)
    checkpoint = torch.load(path, map_location="cpu", weights_only=False)
    checkpoint.pop("loops", None)
    state = pruner.state_dict() | {"steps": [], "due": {}, "regrown": {}, "observed": {}}
    checkpoint |= {
        "epoch": 0,
        "global_step": 0,
        "optimizer_states": [],
        "lr_schedulers": [],
        "callbacks": {recipe.state_key: state},
    }
    torch.save(checkpoint, path)
