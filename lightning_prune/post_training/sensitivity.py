"""A measurement of the sparsity that each tensor tolerates alone."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from torch import Tensor

from lightning_prune.arguments.checks import check_arguments
from lightning_prune.engine.groups import Group
from lightning_prune.engine.pools import Pool
from lightning_prune.engine.pruner import Pruner
from lightning_prune.engine.scores import TensorScores
from lightning_prune.engine.update import prune_pool
from lightning_prune.post_training.calibration import (
    Conclusion,
    calibrate,
    check_batches,
    check_unshrunk_checkpoint,
    find_pruning_callback,
    quiet,
    unchanged,
    validate,
)
from lightning_prune.post_training.defaults import BATCHES, SPARSITIES
from lightning_prune.post_training.sensitivity_report import Mode, Sensitivity
from lightning_prune.recipe.allocations import UniformAllocation
from lightning_prune.recipe.criteria import Criterion
from lightning_prune.recipe.patterns import Pattern
from lightning_prune.tensors.masks import Mask

Metrics = dict[str, dict[float, float]]


@check_arguments
def measure_sensitivity(
    trainer: Trainer,
    model: LightningModule,
    datamodule: LightningDataModule | None = None,
    *,
    monitor: str,
    mode: Mode,
    ckpt_path: str | Path | None = None,
    sparsities: Sequence[float] = SPARSITIES,
    batches: int = BATCHES,
    train_mode: bool = False,
) -> Sensitivity:
    """Prune each tensor alone to each sparsity, and validate each time.

    The Trainer's `PruningCallback` chooses tensors, criterion and pattern. Its sparsities only say
    which tensors are pruned at all, and its schedule is ignored. The model is unchanged
    afterwards, bit for bit, and every validation sees the same random numbers.

    Args:
        trainer: A Trainer with a `PruningCallback` and one device.
        model: Unchanged, but with the weights of ``ckpt_path``.
        datamodule: The source of batches; by default the model.
        monitor: Name of a metric that validation logs.
        mode: Whether ``"max"`` or ``"min"`` of the metric is good.
        ckpt_path: The checkpoint with the weights; by default the model keeps its own weights.
        sparsities: The grid, in (0, 1], rising.
        batches: Number of training batches for the criterion, as in `prune_once`.
        train_mode: Whether the modules are in train mode during these batches.

    Returns:
        The metric by tensor and sparsity; NaN where a tensor cannot be that sparse, because each
        row of a `weight_norm` keeps a weight.

    Raises:
        ValueError: If an argument is out of range, the grid does not fit the pattern, there is no
            `PruningCallback`, or validation does not log ``monitor``.
    """
    recipe = find_pruning_callback(trainer).recipe
    check_batches(batches)
    grid = _check_grid(sparsities, recipe.pattern)
    logged = validate(trainer, model, datamodule, check_unshrunk_checkpoint(ckpt_path))
    _check_monitor(monitor, logged)
    scores: dict[str, Tensor] = {}
    pruner = calibrate(
        trainer,
        model,
        datamodule,
        batches=batches,
        train_mode=train_mode,
        then=_keep_scores(recipe.criterion, scores),
    )
    trials = [(group, sparsity) for group in pruner.groups for sparsity in grid]
    metrics: Metrics = {}
    # Validation has already warned about the dense model.
    with unchanged(model), quiet(".*"), _progress_bar(trainer, len(trials)) as (bar, task):
        for group, sparsity in trials:
            bar.update(task, description=f"{group.name} at {sparsity:g}")
            metric = math.nan
            if group.leaves_rows(sparsity):
                with _pruned_alone(group, scores, sparsity):
                    metric = validate(trainer, model, datamodule)[monitor]
            _record(metrics, group, sparsity, metric, mode)
            bar.advance(task)
    return Sensitivity(monitor=monitor, mode=mode, dense=logged[monitor], metrics=metrics)


def _check_grid(sparsities: Sequence[float], pattern: Pattern) -> tuple[float, ...]:
    grid = tuple(float(sparsity) for sparsity in sparsities)
    if not grid or any(not 0 < sparsity <= 1 for sparsity in grid):
        raise ValueError(f"need at least one sparsity in (0, 1], got sparsities={list(sparsities)}")
    if sorted(set(grid)) != list(grid):
        raise ValueError(f"need rising sparsities, got sparsities={list(sparsities)}")
    for sparsity in grid:
        pattern.check_sparsity(sparsity)
    return grid


def _check_monitor(monitor: str, logged: Mapping[str, float]) -> None:
    if monitor not in logged:
        names = ", ".join(f"'{name}'" for name in logged) or "nothing"
        raise ValueError(
            f"need a metric that validation logs, got monitor={monitor!r}; validation logs {names}"
        )


def _keep_scores(criterion: Criterion, scores: dict[str, Tensor]) -> Conclusion:
    """Return a function that scores each tensor once, after the last batch."""

    def keep(pruner: Pruner, optimizers: Any) -> None:
        for tensor in pruner.tensors:
            if tensor.is_scored:
                found = tensor.output_first(TensorScores.of(tensor, criterion).whole)
                scores[tensor.name] = found.to("cpu", copy=True)

    return keep


def _record(metrics: Metrics, group: Group, sparsity: float, metric: float, mode: Mode) -> None:
    """Keep the metric under each producer; of a producer in several groups, the worst metric."""
    choose_worse = min if mode == "max" else max
    for name in group.producers:
        by_sparsity = metrics.setdefault(name, {})
        by_sparsity[sparsity] = choose_worse(metric, by_sparsity.get(sparsity, metric))


@contextmanager
def _pruned_alone(group: Group, scores: Mapping[str, Tensor], sparsity: float) -> Iterator[None]:
    """Set the weights of one group with the lowest scores to zero, and restore them."""
    members = tuple(
        replace(member, mask=Mask(member.mask.kept, member.weights.cpu()), sparsity=sparsity)
        for member in group.members
    )
    trial = replace(group, members=members)
    pool = Pool(groups=(trial,), allocation=UniformAllocation())
    known = {m.name: TensorScores(m, scores[m.name]) for m in members if m.is_scored}
    prune_pool(pool, sparsity, known)
    weights = [member.weights for member in members]
    saved = [weight.clone() for weight in weights]
    for weight, member in zip(weights, members, strict=True):
        member.mask.apply(weight)
    try:
        yield
    finally:
        for member, value in zip(members, saved, strict=True):
            member.weights.copy_(value)


@contextmanager
def _progress_bar(trainer: Trainer, trials: int) -> Iterator[tuple[Progress, TaskID]]:
    """Show one bar for all validations in the place of a bar for each."""
    callbacks, is_shown = trainer.callbacks, trainer.progress_bar_callback is not None  # type: ignore[attr-defined]
    trainer.callbacks = [c for c in callbacks if not isinstance(c, ProgressBar)]  # type: ignore[attr-defined]
    try:
        with Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            transient=True,
            disable=not is_shown,
        ) as bar:
            yield bar, bar.add_task("", total=trials)
    finally:
        trainer.callbacks = callbacks  # type: ignore[attr-defined]
