"""Trials: groups of a trained model are pruned for a moment, and the model is validated."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_prune.arguments.words import suggest
from lightning_prune.callbacks.namespace import (
    LightningDataModule,
    LightningModule,
    Trainer,
    is_lightning,
    refuse_mixed,
)
from lightning_prune.callbacks.printing import shows_progress
from lightning_prune.engine.groups import Group
from lightning_prune.engine.pools import Pool
from lightning_prune.engine.pruner import Pruner
from lightning_prune.engine.scores import TensorScores
from lightning_prune.engine.update import prune_pool
from lightning_prune.models.progress import note_progress, show_progress
from lightning_prune.models.statistics import find_statistics
from lightning_prune.models.undisturbed import keep_tensors
from lightning_prune.post_training.calibration import (
    Conclusion,
    calibrate,
    check_batches,
    check_unshrunk_checkpoint,
    find_pruning_callback,
    unchanged,
    validate,
)
from lightning_prune.post_training.held_fits import quiet
from lightning_prune.post_training.sensitivity_report import Mode
from lightning_prune.post_training.statistics import check_statistics, reestimate_statistics
from lightning_prune.recipe.allocations import UniformAllocation
from lightning_prune.recipe.criteria import Criterion
from lightning_prune.recipe.patterns import Pattern
from lightning_prune.tensors.masks import Mask


@dataclass(frozen=True, kw_only=True)
class TrialValidator:
    """Validates a trained model with pruned groups; the model is as before afterwards.

    Args:
        trainer: The Trainer that validates.
        model: The trained model.
        datamodule: The source of batches; None for the model.
        monitor: Name of the metric.
        mode: Whether ``"max"`` or ``"min"`` of the metric is good.
        dense: The metric of the dense model.
        pruner: The detached engine, with the groups.
        scores: The scores of all scored tensors by name, on the CPU.
        batches: Number of training batches that the criterion has seen.
        train_mode: Whether all modules are in train mode during training batches.
        statistics: Largest number of training batches for new statistics of batch normalizations
            before each validation; 0 for none, as in a model without such layers.
    """

    trainer: Trainer
    model: LightningModule
    datamodule: LightningDataModule | None
    monitor: str
    mode: Mode
    dense: float
    pruner: Pruner
    scores: Mapping[str, Tensor]
    batches: int
    train_mode: bool
    statistics: int

    @property
    def groups(self) -> tuple[Group, ...]:
        """The groups that can be pruned."""
        return self.pruner.groups

    def loss(self, metric: float) -> float:
        """Return how much worse a metric is than the dense metric; negative if it is better."""
        return self.dense - metric if self.mode == "max" else metric - self.dense

    def can_prune(self, group: Group, sparsity: float) -> bool:
        """Whether a group can be that sparse: by the rows that must stay, and by the cap."""
        return group.leaves_rows(sparsity) and sparsity <= group.members[0].most

    def prune(self, group: Group, sparsity: float) -> Group:
        """Return a copy of a group with masks of its own; weights stay as they are."""
        members = tuple(
            replace(member, mask=Mask(member.mask.kept, member.weights.cpu()), sparsity=sparsity)
            for member in group.members
        )
        trial = replace(group, members=members)
        pool = Pool(groups=(trial,), allocation=UniformAllocation())
        known = {m.name: TensorScores(m, self.scores[m.name]) for m in members if m.is_scored}
        prune_pool(pool, sparsity, known)
        return trial

    def validate_alone(self, group: Group, sparsity: float) -> float:
        """Return the metric of the model with a single pruned group.

        It is NaN where the group cannot be that sparse.
        """
        can_prune = self.can_prune(group, sparsity)
        return self.validate([self.prune(group, sparsity)]) if can_prune else math.nan

    def validate(self, pruned: Sequence[Group]) -> float:
        """Return the metric of the model with pruned groups.

        Args:
            pruned: Results of `prune`.
        """
        with keep_tensors(self.model, parameters=False), _masked(pruned):
            self._refresh_statistics()
            return validate(self.trainer, self.model, self.datamodule)[self.monitor]

    def apply(self, pruned: Sequence[Group]) -> None:
        """Prune the model itself, as `validate` saw it, and take the masks into the engine.

        Args:
            pruned: Results of `prune`.
        """
        trials = {trial.name: trial for trial in pruned}
        for group in self.groups:
            if group.name in trials:
                group.keep(trials[group.name].alive().to(group.members[0].mask.device))
        self.pruner.mask_copy(self.model)
        self._refresh_statistics()

    def _refresh_statistics(self) -> None:
        if self.statistics:
            reestimate_statistics(
                self.trainer,
                self.model,
                self.datamodule,
                statistics=self.statistics,
                train_mode=self.train_mode,
            )


def begin_trials(
    trainer: Trainer,
    model: LightningModule,
    datamodule: LightningDataModule | None,
    *,
    monitor: str,
    mode: Mode,
    ckpt_path: str | Path | None,
    batches: int,
    train_mode: bool,
    statistics: int,
) -> TrialValidator:
    """Validate the dense model, and score the weights by the recipe of the `PruningCallback`.

    Raises:
        ValueError: If there is no `PruningCallback`, the checkpoint cannot be used, there are too
            few batches or none for new statistics, or validation does not log ``monitor``.
    """
    refuse_mixed(trainer, model, datamodule)
    recipe = find_pruning_callback(trainer).recipe
    check_batches(batches)
    check_statistics(statistics, trainer, model, datamodule)
    logged = validate(trainer, model, datamodule, check_unshrunk_checkpoint(ckpt_path))
    _check_monitor(monitor, logged)
    scores: dict[str, Tensor] = {}
    pruner = calibrate(
        trainer,
        model,
        datamodule,
        batches=batches,
        train_mode=train_mode,
        then=_keep_scores(recipe.chosen_criterion, scores),
    )
    return TrialValidator(
        trainer=trainer,
        model=model,
        datamodule=datamodule,
        monitor=monitor,
        mode=mode,
        dense=logged[monitor],
        pruner=pruner,
        scores=scores,
        batches=batches,
        train_mode=train_mode,
        statistics=statistics if find_statistics(model) else 0,
    )


def check_grid(sparsities: Sequence[float], pattern: Pattern) -> tuple[float, ...]:
    """Return the sparsities of a grid.

    Raises:
        ValueError: If they do not rise within (0, 1], or do not fit the pattern.
    """
    grid = tuple(float(sparsity) for sparsity in sparsities)
    if not grid or any(not 0 < sparsity <= 1 for sparsity in grid):
        raise ValueError(f"need at least one sparsity in (0, 1], got sparsities={list(sparsities)}")
    if sorted(set(grid)) != list(grid):
        raise ValueError(f"need rising sparsities, got sparsities={list(sparsities)}")
    for sparsity in grid:
        pattern.check_sparsity(sparsity)
    return grid


@contextmanager
def many_trials(trainer: Trainer, model: LightningModule, trials: int) -> "Iterator[TrialBar]":
    """Give the model back as it was after many trials, and show a single bar for all of them."""
    # Validation has already warned about the dense model.
    with unchanged(model), quiet(".*"), _one_bar(trainer):
        yield TrialBar(trials)


class TrialBar:
    """A bar that shows how many trials are done.

    Args:
        trials: Number of trials.
    """

    def __init__(self, trials: int) -> None:
        self._trials, self._done = trials, 0

    @contextmanager
    def step(self, description: str) -> Iterator[None]:
        """Describe the trial of the block, and count it at the end."""
        note_progress("validating", self._done, self._trials, description)
        yield
        self._done += 1


def _check_monitor(monitor: str, logged: Mapping[str, float]) -> None:
    if monitor not in logged:
        names = ", ".join(f"'{name}'" for name in logged) or "nothing"
        raise ValueError(
            f"need a metric that validation logs, got monitor={monitor!r}; validation logs {names}"
            f"{suggest(monitor, logged)}"
        )


def _keep_scores(criterion: Criterion, scores: dict[str, Tensor]) -> Conclusion:
    """Return a function that scores each tensor once, after the last batch."""

    def keep(pruner: Pruner, optimizers: Any) -> None:
        for tensor in pruner.tensors:
            if tensor.is_scored:
                found = tensor.output_first(TensorScores.of(tensor, criterion).whole)
                scores[tensor.name] = found.to("cpu", copy=True)

    return keep


@contextmanager
def _masked(pruned: Sequence[Group]) -> Iterator[None]:
    """Set the pruned weights of all groups to zero, and restore the weights."""
    members = [member for group in pruned for member in group.members]
    saved = {member.name: (member, member.weights.clone()) for member in members}
    for member in members:
        member.mask.apply(member.weights)
    try:
        yield
    finally:
        for member, value in saved.values():
            member.weights.copy_(value)


@contextmanager
def _one_bar(trainer: Trainer) -> Iterator[None]:
    """Show one bar for all validations in the place of a bar for each."""
    callbacks, is_shown = trainer.callbacks, shows_progress(trainer)  # type: ignore[union-attr]
    trainer.callbacks = [c for c in callbacks if not is_lightning(c, "ProgressBar")]  # type: ignore[union-attr]
    try:
        with show_progress(is_shown):
            yield
    finally:
        trainer.callbacks = callbacks  # type: ignore[union-attr]
