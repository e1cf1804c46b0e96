"""A search for the sparsity of each tensor that a tolerance or a budget allows."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from lightning_prune.arguments.checks import check_arguments
from lightning_prune.callbacks.namespace import LightningDataModule, LightningModule, Trainer
from lightning_prune.callbacks.printing import shows_progress
from lightning_prune.callbacks.pruning import PruningCallback
from lightning_prune.deploy.files import check_output_file
from lightning_prune.engine.costs import Cost
from lightning_prune.models.progress import show_progress
from lightning_prune.post_training.calibration import find_pruning_callback
from lightning_prune.post_training.curves import (
    Curve,
    CurveFile,
    count_unknown,
    digest_trials,
    measure_curve,
    outline_curves,
)
from lightning_prune.post_training.defaults import (
    BATCHES,
    SEARCH_SPARSITIES,
    STATISTICS,
    TRIALS,
)
from lightning_prune.post_training.joint_trials import (
    JointTrial,
    JointTrials,
    search_within_limit,
    search_within_tolerance,
)
from lightning_prune.post_training.pruned_checkpoint import write_pruned_checkpoint
from lightning_prune.post_training.search_costs import check_budget, find_limit, make_cost
from lightning_prune.post_training.search_report import CURVES, SearchReport, check_goal
from lightning_prune.post_training.sensitivity_report import Mode
from lightning_prune.post_training.solving import Solver
from lightning_prune.post_training.trials import (
    TrialValidator,
    begin_trials,
    check_grid,
    many_trials,
)
from lightning_prune.recipe.budgets import Budget
from lightning_prune.recipe.recipe import Recipe
from lightning_prune.recipe.targets import DEFAULT_SPARSITY


@check_arguments
def search_sparsities(
    trainer: Trainer,
    model: LightningModule,
    datamodule: LightningDataModule | None = None,
    *,
    monitor: str,
    mode: Mode,
    tolerance: float | None = None,
    budget: Budget | None = None,
    ckpt_path: str | Path | None = None,
    folder: str | Path | None = None,
    output: str | Path | None = None,
    sparsities: Sequence[float] = SEARCH_SPARSITIES,
    trials: int = TRIALS,
    batches: int = BATCHES,
    train_mode: bool = False,
    statistics: int = STATISTICS,
    example: Any = None,
) -> SearchReport:
    """Search the sparsity of each tensor that a tolerance or a budget allows, without training.

    First, each tensor (or group of channels) is pruned alone to each sparsity of a grid, and the
    model is validated. A knapsack then combines these losses, as in SPDY: Frantar & Alistarh
    (2022), https://arxiv.org/abs/2201.13096. With a tolerance, the cost is made least; with a
    budget, the sum of the losses. At last, all tensors are pruned together and validated, because
    the sum can mislead. With a tolerance, choices of higher and lower costs follow, and a single
    sparsity for all tensors. The cheapest choice whose measured loss is within the tolerance is the
    result. With a budget, the choice of the least measured loss is.

    The Trainer's `PruningCallback` chooses tensors, criterion and pattern. Its sparsities only say
    which tensors are pruned at all, and its schedule is ignored. The model is unchanged afterwards,
    bit for bit. Each validation sees the same random numbers.

    Args:
        trainer: A Trainer with a `PruningCallback` and one device.
        model: Unchanged, but with the weights of ``ckpt_path``.
        datamodule: The source of batches; by default the model.
        monitor: Name of a metric that validation logs.
        mode: Whether ``"max"`` or ``"min"`` of the metric is good.
        tolerance: Largest allowed loss of the metric against the dense model, in the unit of the
            metric. The cost is then the number of parameters that remain.
        budget: Largest cost, instead of a tolerance.
        ckpt_path: The checkpoint with the weights; by default the model keeps its own weights.
        folder: A folder for the file of the curves. A later search reuses the losses in the file if
            weights, recipe and options are the same. By default no file is written.
        output: A checkpoint of the pruned model to write, with the new statistics, as `prune_once`
            writes it; by default no checkpoint is written.
        sparsities: The grid, in (0, 1], rising.
        trials: Largest number of validations with all tensors pruned together.
        batches: Number of training batches for the criterion, as in `prune_once`.
        train_mode: Whether the modules are in train mode during these batches.
        statistics: Largest number of training batches for new statistics of batch normalizations
            before each validation, as in `prune_once`; 0 leaves the statistics as they are.
        example: For a budget that needs an example, the arguments of ``forward``; by default those
            of the callback, or the model's ``example_input_array``.

    Returns:
        The sparsities, with all measurements.

    Raises:
        ValueError: If an argument is out of range, neither or both of ``tolerance`` and ``budget``
            are given, the grid does not fit the pattern or cannot reach the budget, there is no
            `PruningCallback`, validation does not log ``monitor``, or the output is the input or
            cannot be written.
        TypeError: If the model or the data come from another package of Lightning than the Trainer.
    """
    check_goal(tolerance, budget, trials)
    callback = find_pruning_callback(trainer)
    grid = check_grid(sparsities, callback.recipe.pattern)
    check_budget(budget, callback.recipe.pattern)
    target = None if output is None else check_output_file(output, ckpt_path=ckpt_path)
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
    cost = make_cost(budget, validator, callback.example if example is None else example)
    with show_progress(shows_progress(trainer)):
        outline = outline_curves(validator, grid)
    plan = _Plan(
        validator=validator,
        outline=outline,
        cost=cost,
        file=_open_curves(folder, validator, callback.recipe),
        tolerance=tolerance,
        limit=None if budget is None else find_limit(budget, Solver(outline, cost)),
        trials=trials,
    )
    return plan.carry_out(callback, target)


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """A search whose arguments are checked.

    Args:
        validator: Validates the trials.
        outline: The curves before any measurement.
        cost: The cost of all groups.
        file: Keeps the measurements.
        tolerance: Largest allowed loss; None for a search within a cost.
        limit: Largest allowed cost; None for a search within a tolerance.
        trials: Largest number of validations with all groups pruned together.
    """

    validator: TrialValidator
    outline: tuple[Curve, ...]
    cost: Cost
    file: CurveFile
    tolerance: float | None
    limit: float | None
    trials: int

    def carry_out(self, callback: PruningCallback, target: Path | None) -> SearchReport:
        """Measure, choose, and write the checkpoint.

        Args:
            callback: The callback of the recipe.
            target: The checkpoint to write; None for none.
        """
        unknown, validator = count_unknown(self.outline, self.file), self.validator
        self._announce(unknown)
        with many_trials(validator.trainer, validator.model, unknown + self.trials) as bar:
            curves = [measure_curve(each, validator, self.file, bar) for each in self.outline]
            joint = JointTrials(validator, Solver(curves, self.cost), bar, most=self.trials)
            best = self._choose(joint)
            if target is not None:
                validator.apply(joint.prune(best.levels))
                state = validator.pruner.state_dict()
                write_pruned_checkpoint(validator.trainer, callback.state_key, state, target)
        return SearchReport(
            monitor=validator.monitor,
            mode=validator.mode,
            tolerance=self.tolerance,
            limit=self.limit,
            unit=self.cost.unit,
            curves=tuple(replace(curve, groups=()) for curve in curves),  # no weights in a report
            trials=joint.all,
            best=best,
            globs=_find_globs(callback.recipe),
        )

    def _choose(self, joint: JointTrials) -> JointTrial:
        """Try choices, and return the best of them."""
        if self.tolerance is not None:
            search_within_tolerance(joint, self.tolerance)
            return joint.find_cheapest(self.tolerance)
        assert self.limit is not None
        search_within_limit(joint, self.limit)
        return joint.find_best(self.limit)

    def _announce(self, unknown: int) -> None:
        """Say what the search costs, before it starts."""
        groups = sum(len(curve.groups) for curve in self.outline)
        levels = len(self.outline[0].sparsities) - 1
        known = groups * levels - unknown
        lines = [
            f"search: at most {unknown + self.trials} validations",
            f"  {unknown} with one of {groups} groups pruned to one of {levels} sparsities"
            + (f" ({known} more are known from an earlier search)" if known else ""),
            f"  at most {self.trials} with all groups pruned together",
        ]
        if batches := self.validator.statistics:
            lines.append(f"  at most {batches} training batches before each, for new statistics")
        Console().print("\n".join(lines), soft_wrap=True)


def _open_curves(folder: str | Path | None, validator: TrialValidator, recipe: Recipe) -> CurveFile:
    """Return the file of the curves in a folder, or measurements in memory."""
    return CurveFile(
        None if folder is None else Path(folder) / CURVES,
        digest=digest_trials(validator, recipe),
        monitor=validator.monitor,
    )


def _find_globs(recipe: Recipe) -> dict[str, float | None]:
    """Return the globs by which tensors are scored that are in groups and make no channels."""
    if not recipe.pattern.couples_tensors:
        return {}
    return {
        glob: None if target is None else min(target, DEFAULT_SPARSITY)
        for glob, target in recipe.targets.items()
    }
