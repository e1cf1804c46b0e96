"""A measurement of the sparsity that each tensor tolerates alone."""

from collections.abc import Sequence
from pathlib import Path

from lightning_prune.arguments.checks import check_arguments
from lightning_prune.callbacks.namespace import LightningDataModule, LightningModule, Trainer
from lightning_prune.engine.groups import Group
from lightning_prune.post_training.calibration import find_pruning_callback
from lightning_prune.post_training.defaults import BATCHES, SPARSITIES, STATISTICS
from lightning_prune.post_training.sensitivity_report import Mode, Sensitivity
from lightning_prune.post_training.trials import begin_trials, check_grid, many_trials

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
    statistics: int = STATISTICS,
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
        statistics: Largest number of training batches for new statistics of batch normalizations
            before each validation, as in `prune_once`; 0 leaves the statistics as they are.

    Returns:
        The metric by tensor and sparsity; NaN where a tensor cannot be that sparse, because each
        row of a `weight_norm` keeps a weight.

    Raises:
        ValueError: If an argument is out of range, the grid does not fit the pattern, there is no
            `PruningCallback`, or validation does not log ``monitor``.
        TypeError: If the model or the data come from another package of Lightning than the Trainer.
    """
    grid = check_grid(sparsities, find_pruning_callback(trainer).recipe.pattern)
    validator = begin_trials(
        trainer,
        model,
        datamodule,
        monitor=monitor,
        mode=mode,
        ckpt_path=ckpt_path,
        batches=batches,
        train_mode=train_mode,
        statistics=statistics,
    )
    trials = [(group, sparsity) for group in validator.groups for sparsity in grid]
    metrics: Metrics = {}
    with many_trials(trainer, model, len(trials)) as bar:
        for group, sparsity in trials:
            with bar.step(f"{group.name} at {sparsity:g}"):
                _record(metrics, group, sparsity, validator.validate_alone(group, sparsity), mode)
    return Sensitivity(monitor=monitor, mode=mode, dense=validator.dense, metrics=metrics)


def _record(metrics: Metrics, group: Group, sparsity: float, metric: float, mode: Mode) -> None:
    """Keep the metric under each producer; of a producer in several groups, the worst metric."""
    choose_worse = min if mode == "max" else max
    for name in group.producers:
        by_sparsity = metrics.setdefault(name, {})
        by_sparsity[sparsity] = choose_worse(metric, by_sparsity.get(sparsity, metric))
