"""All answers together, as a frozen record."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import yaml

from lightning_prune.arguments.checks import check_fields
from lightning_prune.recipe.allocations import Allocation
from lightning_prune.recipe.budgets import Budget
from lightning_prune.recipe.criteria import Criterion, MagnitudeCriterion
from lightning_prune.recipe.patterns import Pattern, UnstructuredPattern
from lightning_prune.recipe.penalty import GrowingPenalty
from lightning_prune.recipe.phases import Phases
from lightning_prune.recipe.regrowth import Regrow
from lightning_prune.recipe.rewind import Rewind
from lightning_prune.recipe.schedules import PolynomialSchedule, Schedule
from lightning_prune.recipe.straight_through import StraightThrough
from lightning_prune.recipe.targets import (
    DEFAULT_SPARSITY,
    UNCAPPED,
    SparsityTargets,
    check_targets,
    format_target,
)
from lightning_prune.recipe.tolerance import MOST_TRIED, Tolerance
from lightning_prune.recipe.writing import describe_answer
from lightning_prune.tables.table import Column, Table

_MAGNITUDE = MagnitudeCriterion()


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All answers of a user. A recipe checks itself; `dataclasses.replace` varies it.

    Args:
        sparsity: How much: the final fraction of zeros of each pruned tensor, in [0, 1], or a
            fraction for each glob of parameter or module names. None leaves a tensor dense; the
            last glob that matches decides. By default 0.9. Beside a budget it is the most that each
            tensor may lose, by default all but an atom.
        schedule: When the masks change.
        budget: How much, as a cost that may remain; of several budgets all hold. None for a
            sparsity.
        most: The largest sparsity that any tensor may reach, in [0, 1]; None for no limit.
        allocation: Where weights are pruned; None for the `Pattern.default_allocation`.
        criterion: Which weights are kept; None for `MagnitudeCriterion`, or for the masks that a
            `Repair` chooses.
        pattern: What shape the pruned weights have.
        keep_zeros: Whether weights that are zero when training starts stay zero.
        regrow: How pruned weights grow back elsewhere (RigL, SET); None for never.
        straight_through: How pruned weights go on learning behind the mask (ST-3, Feather); None if
            pruned weights stay pruned.
        phases: When training is dense and sparse in turns (AC/DC); None for always sparse.
        penalty: How the weights that go next shrink before they go; None for no penalty.
        rewind: The step to which each round of the schedule goes back; None for no rewinding.
        tolerance: The loss of a metric that pruning may cost; None for no limit. The rounds of the
            tolerance take the place of the schedule.
        on_revival: Whether pruned weights that other code has changed are an "error", or "warn"
            only: then they are masked again, and training goes on.

    Raises:
        ValueError: If an answer is out of range, or two answers clash.
        TypeError: If an answer has the wrong type.

    Examples:
        >>> from dataclasses import replace
        >>> recipe = Recipe(sparsity={"encoder": 0.9})
        >>> replace(recipe, keep_zeros=True).targets
        {'encoder': 0.9}
    """

    sparsity: SparsityTargets | None = None
    budget: Budget | Sequence[Budget] | None = None
    most: float | None = None
    schedule: Schedule = PolynomialSchedule()
    allocation: Allocation | None = None
    criterion: Criterion | None = None
    pattern: Pattern = UnstructuredPattern()
    keep_zeros: bool = False
    regrow: Regrow | None = None
    straight_through: StraightThrough | None = None
    phases: Phases | None = None
    penalty: GrowingPenalty | None = None
    rewind: Rewind | None = None
    tolerance: Tolerance | None = None
    on_revival: Literal["error", "warn"] = "error"

    def __post_init__(self) -> None:
        check_fields(self)  # and copy the sparsity, so that no caller changes it
        if self.budget is not None and not self.budgets:
            raise ValueError(f"need at least one budget, got budget={self.budget}; leave it out")
        self._check_most()
        for target in self.targets.values():
            if target is not None:
                self.pattern.check_sparsity(target)
        if self.tolerance is not None:
            schedule = self.tolerance.choose_schedule(self.schedule)
            object.__setattr__(self, "schedule", schedule)
        self._refuse_clashes()

    @classmethod
    def of(cls, *, keep_zeros: bool, **answers: Any) -> "Recipe":
        """Return the recipe of the answers; None as an answer stands for the default."""
        given = {name: answer for name, answer in answers.items() if answer is not None}
        return cls(keep_zeros=keep_zeros, **given)

    @property
    def targets(self) -> dict[str, float | None]:
        """The final sparsity by glob, or beside a budget the most to lose; None for dense."""
        default = DEFAULT_SPARSITY if self.tolerance is None else MOST_TRIED
        return check_targets(self.sparsity, has_budget=bool(self.budgets), default=default)

    @property
    def budgets(self) -> tuple[Budget, ...]:
        """The budgets, all of which hold."""
        if self.budget is None:
            return ()
        return (self.budget,) if isinstance(self.budget, Budget) else tuple(self.budget)

    def cap(self, sparsity: float) -> float:
        """Return the largest sparsity that a tensor may reach.

        Args:
            sparsity: The sparsity that the deciding glob gives the tensor.
        """
        most = 1.0 if self.most is None else self.most
        return min(most, sparsity) if self.budgets else most

    @property
    def needs_example(self) -> bool:
        """Whether an answer depends on an example of the model's input."""
        is_priced = self.chosen_allocation.per in ("macs", "latency")
        is_limited = any(budget.needs_example for budget in self.budgets)
        return self.pattern.couples_tensors or is_priced or is_limited

    @property
    def chosen_allocation(self) -> Allocation:
        """The allocation; the default of the pattern if the user gives None."""
        return self.allocation or self.pattern.default_allocation()

    def at_once(self, schedule: Schedule) -> "Recipe":
        """Return the recipe of pruning at once: without the answers that need a training.

        Args:
            schedule: When the masks change.
        """
        return replace(
            self,
            schedule=schedule,
            regrow=None,
            straight_through=None,
            phases=None,
            rewind=None,
            tolerance=None,
        )

    @property
    def chosen_criterion(self) -> Criterion:
        """The criterion; `MagnitudeCriterion` if the user gives None."""
        return self.criterion or _MAGNITUDE

    @property
    def criteria(self) -> tuple[Criterion, ...]:
        """The criterion, and those of the regrowth."""
        regrow = self.regrow
        of_regrowth = (regrow.criterion, regrow.first) if regrow else ()
        return (self.chosen_criterion, *(each for each in of_regrowth if each is not None))

    def to_yaml(self) -> str:
        """Return the recipe as the ``init_args`` of a `PruningCallback` in a config.

        Examples:
            >>> recipe = Recipe(pattern=UnstructuredPattern(per_row=True))
            >>> print(recipe.to_yaml().partition("criterion:")[2], end="")
             null
            pattern:
              class_path: lightning_prune.UnstructuredPattern
              init_args:
                per_row: true
            keep_zeros: false
            regrow: null
            straight_through: null
            phases: null
            penalty: null
            rewind: null
            tolerance: null
            on_revival: error
        """
        answers = {field.name: describe_answer(getattr(self, field.name)) for field in fields(self)}
        return yaml.safe_dump(answers, sort_keys=False)

    def table(self) -> Table:
        """Return each answer that is in use, the defaults too, for a terminal or a notebook."""
        capped = {glob: each for glob, each in self.targets.items() if each != UNCAPPED}
        targets = [f"{glob}: {format_target(target)}" for glob, target in capped.items()]
        answers = {field.name: getattr(self, field.name) for field in fields(self)} | {
            "sparsity": ", ".join(targets),
            "allocation": self.chosen_allocation,
            "criterion": self.chosen_criterion,
        }
        return Table(
            title="Recipe",
            columns=[Column(heading=heading, align="left") for heading in ("question", "answer")],
            rows=[[name, str(answer)] for name, answer in answers.items() if answer],
        )

    def _repr_html_(self) -> str:
        return self.table().to_html()

    def _check_most(self) -> None:
        """Raise ValueError if ``most`` is out of range, or less than a sparsity asks for."""
        if self.most is None:
            return
        if not 0 <= self.most <= 1:
            raise ValueError(f"need 0 <= most <= 1, got most={self.most}")
        asked = max((target or 0.0 for target in self.targets.values()), default=0.0)
        if not self.budgets and asked > self.most:
            raise ValueError(f"need most >= sparsity, got most={self.most} and sparsity={asked}")

    def _refuse_clashes(self) -> None:
        """Raise ValueError, with both names, if two answers cannot work together."""
        allocation, pattern = self.chosen_allocation, self.pattern
        units = [budget.unit for budget in self.budgets]
        if len(set(units)) < len(units):
            raise ValueError(f"need budgets of different units, got {', '.join(units)}")
        for budget in self.budgets:
            _refuse_budget(budget, pattern)
        divides = allocation.needs_unsigned_scores or allocation.per is not None
        if divides and self.chosen_criterion.has_signed_scores:
            per = "" if allocation.per is None else f"(per='{allocation.per}')"
            raise ValueError(
                f"need scores >= 0 for {type(allocation).__name__}{per}, got "
                f"criterion={type(self.chosen_criterion).__name__}, whose scores can be negative"
            )
        _refuse_latencies(allocation, pattern)
        if allocation.needs_single_tensors and pattern.couples_tensors:
            raise ValueError(
                f"need a pattern inside single tensors for {type(allocation).__name__}, got "
                f"pattern={type(pattern).__name__}; use UniformAllocation or GlobalAllocation"
            )
        if self.regrow is not None and pattern.couples_tensors:
            raise ValueError(
                f"need a pattern inside single tensors for Regrow, got pattern="
                f"{type(pattern).__name__}; no gradient reaches a channel that is 0 everywhere"
            )
        self._refuse_two_ways_back()
        self._refuse_penalty()
        if self.straight_through is not None:
            self._refuse_beside("straight_through")
        if self.phases is not None:
            self._refuse_beside("phases")

    def _refuse_beside(self, returning: str) -> None:
        """Raise ValueError if an answer cannot work where pruned weights return.

        Args:
            returning: The answer by which they return: straight_through or phases.
        """
        kind, pattern = type(getattr(self, returning)).__name__, type(self.pattern).__name__
        if self.pattern.couples_tensors:
            raise ValueError(
                f"need a pattern inside single tensors for {kind}, got pattern={pattern}; no "
                "gradient reaches a channel that is 0 everywhere"
            )
        reasons = {
            "keep_zeros": "weights that return are not kept at 0",
            "regrow": "both choose which pruned weights return",
            "phases": "both choose when pruned weights return",
            "rewind": "going back forgets what pruned weights have learned",
            "tolerance": "going back forgets what pruned weights have learned",
        }
        for name, reason in reasons.items():
            if name != returning and getattr(self, name):
                raise ValueError(f"need either {returning} or {name}, got both: {reason}")

    def _refuse_two_ways_back(self) -> None:
        """Raise ValueError if two of rewinding, regrowth and a tolerance are asked for."""
        if self.tolerance is not None and (self.rewind is not None or self.regrow is not None):
            name = "regrow" if self.rewind is None else "rewind"
            raise ValueError(
                f"need either tolerance or {name}, got both: a round that does not hold goes back "
                "to earlier masks"
            )
        if self.tolerance is not None and self.budgets:
            raise ValueError(
                "need either tolerance or budget, got both: a budget is reached at any loss"
            )
        if self.rewind is not None:
            self.rewind.check_schedule(self.schedule)
            if self.regrow is not None:
                raise ValueError(
                    "need either rewind or regrow, got both: regrowth goes on between rounds"
                )

    def _refuse_penalty(self) -> None:
        """Raise ValueError if a penalty cannot know what goes next, or would be undone."""
        if self.penalty is None:
            return
        self.penalty.check_schedule(self.schedule)
        reasons = {
            "regrow": "the penalty would shrink weights that grow back",
            "rewind": "the weights go back to those before the penalty",
            "tolerance": "the metric decides what goes next, and no schedule",
            "straight_through": "the penalty would shrink weights that may return",
            "phases": "the penalty would shrink weights that return",
        }
        for name, reason in reasons.items():
            if getattr(self, name) is not None:
                raise ValueError(f"need either penalty or {name}, got both: {reason}")


def _refuse_latencies(allocation: Allocation, pattern: Pattern) -> None:
    """Raise ValueError if an allocation reads the latencies of branches, which no table has."""
    if pattern.spans_branches and allocation.per == "latency":
        raise ValueError(
            f"need macs or parameters for branches, got allocation={allocation} with "
            f"pattern={pattern}; use GlobalAllocation(per='macs')"
        )


def _refuse_budget(budget: Budget, pattern: Pattern) -> None:
    """Raise ValueError if the zeros of a pattern cannot meet a budget."""
    if pattern.fixes_sparsity:
        raise ValueError(
            f"need a pattern that leaves the sparsity open for {budget.describe()}, got "
            f"pattern={pattern}, which says how much itself; write the sparsity of each tensor"
        )
    if pattern.spans_branches and budget.unit not in ("macs", "parameters"):
        raise ValueError(
            f"need a pattern inside single tensors, or ChannelPattern(), for {budget.describe()}, "
            f"got pattern={pattern}; use MacsBudget or ParameterBudget"
        )
    if budget.needs_removal and not pattern.couples_tensors:
        raise ValueError(
            f"need channels that can be removed for {budget.describe()}, got pattern={pattern}: "
            "zeros in place make neither this file smaller nor a kernel faster; use "
            "ChannelPattern(), or MacsBudget, ParameterBudget or BytesBudget(file='sparse')"
        )
