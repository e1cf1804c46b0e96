"""A search for the sparsity of each tensor that a tolerance or a budget allows."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from rich.console import Console

from lightning_prune.arguments.checks import check_arguments
from lightning_prune.deploy.files import check_output_file
from lightning_prune.post_training.calibration import find_pruning_callback
from lightning_prune.post_training.curves import (
    Curve,
    CurveFile,
    count_unknown,
    digest_trials,
    measure_curve,
    outline_curves,
)
from lightning_prune.post_training.defaults import BATCHES, SEARCH_SPARSITIES, TRIALS
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
    reestimate: bool = True,
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
        batches: Number of training batches for the criterion, and for new statistics.
        train_mode: Whether the modules are in train mode during these batches.
        reestimate: Whether batch normalizations get new statistics from ``batches`` training
            batches before each validation. The old statistics do not fit the pruned model.
        example: For a budget that needs an example, the arguments of ``forward``; by default those
            of the callback, or the model's ``example_input_array``.

    Returns:
        The sparsities, with all measurements.

    Raises:
        ValueError: If an argument is out of range, neither or both of ``tolerance`` and ``budget``
            are given, the grid does not fit the pattern or cannot reach the budget, there is no
            `PruningCallback`, validation does not log ``monitor``, or the output is the input or
            cannot be written.
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
        ckpt_path=ckpt_path,
        batches=batches,
        train_mode=train_mode,
        reestimate=reestimate,
    )
    cost = make_cost(budget, validator, callback.example if example is None else example)
    outline = outline_curves(validator, grid)
    limit = None if budget is None else find_limit(budget, Solver(outline, cost))
    file = CurveFile(
        None if folder is None else Path(folder) / CURVES,
        digest=digest_trials(validator, callback.recipe),
        monitor=monitor,
    )
    unknown = count_unknown(outline, file)
    _announce(outline, unknown, trials, validator)
    sign = 1 if mode == "max" else -1
    with many_trials(trainer, model, unknown + trials) as bar:
        curves = [measure_curve(each, validator, file, bar, sign=sign) for each in outline]
        solver = Solver(curves, cost)
        joint = JointTrials(validator, solver, bar, sign=sign, most=trials)
        best = _choose(joint, tolerance, limit)
        if target is not None:
            validator.apply(joint.prune(best.levels))
            write_pruned_checkpoint(
                trainer, callback.state_key, validator.pruner.state_dict(), target
            )
    return SearchReport(
        monitor=monitor,
        mode=mode,
        tolerance=tolerance,
        limit=limit,
        unit=cost.unit,
        curves=tuple(replace(curve, groups=()) for curve in curves),  # no weights in a report
        trials=joint.all,
        best=best,
        globs=_find_globs(callback.recipe),
    )


def _choose(joint: JointTrials, tolerance: float | None, limit: float | None) -> JointTrial:
    """Try choices, and return the best of them."""
    if tolerance is not None:
        search_within_tolerance(joint, tolerance)
        return joint.find_cheapest(tolerance)
    assert limit is not None
    search_within_limit(joint, limit)
    return joint.find_best(limit)


def _find_globs(recipe: Recipe) -> dict[str, float | None]:
    """Return the globs by which tensors are scored that are in groups and make no channels."""
    if not recipe.pattern.couples_tensors:
        return {}
    return {
        glob: None if target is None else min(target, DEFAULT_SPARSITY)
        for glob, target in recipe.targets.items()
    }


def _announce(
    curves: Sequence[Curve], unknown: int, trials: int, validator: TrialValidator
) -> None:
    """Say what the search costs, before it starts."""
    groups = sum(len(curve.groups) for curve in curves)
    levels = len(curves[0].sparsities) - 1
    known = groups * levels - unknown
    lines = [
        f"search: at most {unknown + trials} validations",
        f"  {unknown} with one of {groups} groups pruned to one of {levels} sparsities"
        + (f" ({known} more are known from an earlier search)" if known else ""),
        f"  at most {trials} with all groups pruned together",
    ]
    if validator.reestimate:
        lines.append(f"  {validator.batches} training batches before each, for new statistics")
    Console().print("\n".join(lines), soft_wrap=True)
