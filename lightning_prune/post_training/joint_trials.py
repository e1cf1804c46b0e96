"""Trials of all groups pruned together, which tell where the sum of the losses misled."""

import math
from dataclasses import dataclass

from lightning_prune.engine.groups import Group
from lightning_prune.post_training.knapsack import Levels
from lightning_prune.post_training.solving import Solver
from lightning_prune.post_training.trials import TrialBar, TrialValidator

_ROUNDING = 1e-6  # a metric is often a float32
_LEAST = 1e-3  # of the cost, in a step of a bisection
_CLOSE = 1.01  # costs nearer than this factor are not told apart
_NEAR = 0.8  # other powers are tried from this fraction of the least cost on
_POWERS = (1.0, 2.0, 0.5)  # of the losses: a power above 1 avoids few large losses
_NEIGHBORS = (0.7, 1.4, 0.5, 2.0)  # of the limit, for the plot


@dataclass(frozen=True, kw_only=True)
class JointTrial:
    """A measured choice of sparsities.

    Args:
        levels: The level of each curve.
        kind: How the sparsities were chosen.
        cost: The cost of the pruned model.
        predicted: The sum of the losses of groups pruned alone.
        metric: The metric with all groups pruned.
        loss: How much worse the metric is than the dense metric; negative if it is better.
    """

    levels: Levels
    kind: str
    cost: float
    predicted: float
    metric: float
    loss: float

    def is_within(self, tolerance: float) -> bool:
        """Whether the loss is at most the tolerance; a loss that is NaN is not."""
        return self.loss <= tolerance + _ROUNDING


class JointTrials:
    """Measures choices of sparsities, each once, as long as trials are left.

    Args:
        validator: Validates.
        solver: Finds the choices.
        bar: Shows the progress.
        most: Number of trials.
    """

    def __init__(
        self,
        validator: TrialValidator,
        solver: Solver,
        bar: TrialBar,
        *,
        most: int,
    ) -> None:
        self.solver = solver
        self._validator, self._bar, self._most = validator, bar, most
        self._known = {
            solver.dense: JointTrial(
                levels=solver.dense,
                kind="dense",
                cost=solver.count_cost(solver.dense),
                predicted=0.0,
                metric=validator.dense,
                loss=0.0,
            )
        }

    @property
    def left(self) -> int:
        """Number of trials that are left."""
        return self._most - len(self._known) + 1

    @property
    def all(self) -> tuple[JointTrial, ...]:
        """All trials, the dense model first."""
        return tuple(self._known.values())

    def prune(self, levels: Levels) -> list[Group]:
        """Return copies of the groups with the masks of a choice; a dense group is left out."""
        return [
            self._validator.prune(group, curve.sparsities[level])
            for curve, level in zip(self.solver.curves, levels, strict=True)
            for group in curve.groups
            if level
        ]

    def measure(self, levels: Levels, kind: str) -> JointTrial:
        """Return the trial of a choice, which is measured if it is new."""
        if levels not in self._known:
            with self._bar.step(f"all together: {kind}"):
                metric = self._validator.validate(self.prune(levels))
            self._known[levels] = JointTrial(
                levels=levels,
                kind=kind,
                cost=self.solver.count_cost(levels),
                predicted=self.solver.sum_losses(levels),
                metric=metric,
                loss=self._validator.loss(metric),
            )
        return self._known[levels]

    def find_cheapest(self, tolerance: float) -> JointTrial:
        """Return the trial of least cost whose measured loss is within a tolerance."""
        holding = [trial for trial in self.all if trial.is_within(tolerance)]
        return min(holding, key=lambda trial: (trial.cost, trial.loss))

    def find_best(self, limit: float) -> JointTrial:
        """Return the trial of least loss whose cost is within a limit, which a trial is."""
        fitting = [trial for trial in self.all if trial.cost <= limit]
        return min(fitting, key=lambda trial: (math.isnan(trial.loss), trial.loss, trial.cost))


def search_within_tolerance(trials: JointTrials, tolerance: float) -> None:
    """Try choices near the least cost at which the measured loss is within a tolerance.

    First comes the knapsack's choice for the tolerance. Then comes the highest single sparsity for
    all groups, by bisection. If the measured loss of the knapsack's choice is beyond the tolerance,
    or within it, choices of higher or lower costs follow, by bisection. Other powers of the losses
    are tried at last.
    """
    solver = trials.solver
    first = trials.measure(solver.find_cheapest(tolerance + _ROUNDING), "knapsack")
    least = solver.count_cost(solver.sparsest) if first.is_within(tolerance) else first.cost
    _bisect_levels(trials, tolerance)
    for power in _POWERS:
        _bisect_costs(trials, tolerance, least, power)
        least = _NEAR * trials.find_cheapest(tolerance).cost


def search_within_limit(trials: JointTrials, limit: float) -> None:
    """Try choices within a cost, and a few of other costs, which show what another limit gives."""
    solver = trials.solver
    for power in _POWERS:
        _try(trials, solver.find_best(limit, power=power), "knapsack")
    choices = map(solver.level_all, range(1, len(solver.curves[0].sparsities)))
    fitting = (choice for choice in choices if solver.count_cost(choice) <= limit)
    _try(trials, next(fitting, None), "single sparsity")
    for factor in _NEIGHBORS:
        _try(trials, solver.find_best(factor * limit), "knapsack")


def _try(trials: JointTrials, levels: Levels | None, kind: str) -> None:
    if levels is not None and trials.left:
        trials.measure(levels, kind)


def _bisect_levels(trials: JointTrials, tolerance: float) -> None:
    """Find the highest level for all curves that is within a tolerance."""
    holds, fails = 0, len(trials.solver.curves[0].sparsities)
    while fails - holds > 1 and trials.left:
        level = (holds + fails) // 2
        trial = trials.measure(trials.solver.level_all(level), "single sparsity")
        holds, fails = (level, fails) if trial.is_within(tolerance) else (holds, level)


def _bisect_costs(trials: JointTrials, tolerance: float, fails: float, power: float) -> None:
    """Find the least cost whose choice is within a tolerance.

    Args:
        trials: Measures the choices.
        tolerance: The largest loss.
        fails: A cost that is too low.
        power: Exponent of the losses.
    """
    holds = trials.find_cheapest(tolerance).cost
    while holds > _CLOSE * fails and trials.left:
        limit = math.sqrt(holds * max(fails, _LEAST * holds))
        levels = trials.solver.find_best(limit, power=power)
        if levels is None:
            fails = limit
        elif trials.measure(levels, "knapsack").is_within(tolerance):
            holds = trials.solver.count_cost(levels)
        else:
            fails = limit
