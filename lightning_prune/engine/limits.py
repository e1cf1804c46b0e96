"""Limits: the costs that budgets allow, on the way and at the end."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lightning_prune.deploy.latency_table import LatencyTable
from lightning_prune.engine.candidates import Selection
from lightning_prune.engine.costs import Cost
from lightning_prune.engine.groups import Group
from lightning_prune.recipe.budgets import Budget, Unit

Latencies = LatencyTable | Callable[[Selection], LatencyTable]
"""Measured latencies, or a function that measures those of the groups of a selection."""

_LISTED_PARTS = 5
_WORDS = {
    "macs": "multiply-adds",
    "parameters": "parameters",
    "bytes": "bytes",
    "latency": "ms",
}


def show_cost(value: float) -> str:
    """Return a cost for a reader: whole from 1,000 on, and below with four digits.

    Examples:
        >>> show_cost(1264256.0), show_cost(0.0792263)
        ('1,264,256', '0.07923')
    """
    return f"{round(value):,}" if value >= 1000 else f"{value:.4g}"


@dataclass(frozen=True, kw_only=True)
class Limit:
    """The cost that a budget allows.

    Args:
        budget: The budget.
        cost: The cost by kept atoms.
        dense: The cost of the dense model.
    """

    budget: Budget
    cost: Cost
    dense: float

    @property
    def final(self) -> float:
        """The largest cost at the end; the dense cost if the budget allows more."""
        return min(self.budget.limit(self.dense), self.dense)

    def correct(self, kept: Mapping[str, int], measured: float) -> "Limit":
        """Return the limit with a cost that is exact for a measured model."""
        return replace(self, cost=self.cost.corrected(kept, measured))

    def due(self, share: float) -> float:
        r"""Return the largest cost on the way: ``dense - share * (dense - final)``.

        Args:
            share: The share of the way that is due, in [0, 1].
        """
        return self.final if share >= 1 else self.dense - share * (self.dense - self.final)


@dataclass(frozen=True, kw_only=True)
class Expense:
    """A cost beside the limit.

    Args:
        limit: The limit.
        cost: The cost of the pruned model, in the unit of the limit.
        due: The largest cost that is due now.
    """

    limit: Limit
    cost: float
    due: float

    @property
    def unit(self) -> Unit:
        """The unit of the cost."""
        return self.limit.cost.unit

    @property
    def largest_error(self) -> float | None:
        """Fraction by which the cost may be off before a measurement corrects it; None if exact."""
        return self.limit.cost.largest_error

    @property
    def words(self) -> str:
        """The unit of the cost in words."""
        return _WORDS[self.unit]

    def describe(self) -> str:
        """Return the cost beside the budget, in the unit of the cost."""
        final, dense, cost = map(show_cost, (self.limit.final, self.limit.dense, self.cost))
        return (
            f"{self.limit.budget.describe()}: at most {final} of {dense} {self.words}, "
            f"now {cost} ({self.share:.4f})"
        )

    @property
    def way(self) -> float:
        """The share of the way to the budget that is due, in [0, 1]."""
        way = self.limit.dense - self.limit.final
        return (self.limit.dense - self.due) / way if way else 1.0

    @property
    def share(self) -> float:
        """The cost as a fraction of the cost of the dense model."""
        return self.cost / self.limit.dense

    @property
    def target(self) -> float:
        """The cost that is due, as a fraction of the cost of the dense model."""
        return self.due / self.limit.dense

    def __str__(self) -> str:
        """Return the cost beside the final limit, as fractions of the cost of the dense model."""
        return f"{self.unit} {self.share:.4f} of {self.limit.final / self.limit.dense:.4f}"


class Spending(tuple[Expense, ...]):
    """The costs under all budgets."""

    __slots__ = ()

    @property
    def is_met(self) -> bool:
        """Whether all costs are within the budgets; true without a budget."""
        return all(expense.cost <= expense.limit.final for expense in self)

    @property
    def binding(self) -> Expense | None:
        """The cost nearest to the budget, which allows no further atom; None without a budget."""
        return max(self, key=lambda each: each.cost / each.limit.final, default=None)


class Limits:
    """The limits of all budgets together.

    Args:
        limits: The limits; none without a budget.
        savings: The cost that an atom saves for each of the weights in the atom, by the name of the
            group; empty if the allocation reads no savings.
        has_measured: Whether the savings were measured, so that a state must hold them.
    """

    def __init__(
        self,
        limits: Sequence[Limit] = (),
        savings: Mapping[str, float] | None = None,
        *,
        has_measured: bool = False,
    ) -> None:
        self.limits = tuple(limits)
        self.savings = savings or {}
        self._has_measured = has_measured

    def __bool__(self) -> bool:
        """Whether there is a budget."""
        return bool(self.limits)

    def fits(self, kept: Mapping[str, int], share: float) -> bool:
        """Return whether numbers of kept atoms are within all budgets.

        Args:
            kept: Number of atoms that each group keeps, by name.
            share: The share of the way that is due, in [0, 1].
        """
        return all(limit.cost(kept) <= limit.due(share) for limit in self.limits)

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed training needs to tell the same costs."""
        costs: dict[str, Any] = {
            limit.cost.unit: {"dense": limit.dense, "measured": limit.cost.state_dict()}
            for limit in self.limits
            if limit.cost.largest_error is not None
        }
        return costs | ({"savings": dict(self.savings)} if self._has_measured else {})

    def correct(self, unit: Unit, kept: Mapping[str, int], measured: float) -> "Limits":
        """Return limits whose cost is exact for a model that was measured whole.

        Args:
            unit: The unit of the cost.
            kept: Number of atoms that each group of the measured model keeps, by name.
            measured: The measured cost.
        """
        limits = [
            limit.correct(kept, measured) if limit.cost.unit == unit else limit
            for limit in self.limits
        ]
        return Limits(limits, self.savings, has_measured=self._has_measured)

    def measure(self, kept: Mapping[str, int], share: float) -> "Spending":
        """Return the costs of numbers of kept atoms, beside the costs that are due.

        Args:
            kept: Number of atoms that each group keeps, by name.
            share: The share of the way that is due, in [0, 1].
        """
        return Spending(
            tuple(
                Expense(limit=limit, cost=limit.cost(kept), due=limit.due(share))
                for limit in self.limits
            )
        )

    def check(self, groups: Sequence[Group]) -> None:
        """Raise ValueError if a budget cannot be reached, limits nothing, or none asks for less.

        Args:
            groups: All groups.
        """
        if not self.limits:
            return
        least = {group.name: group.round_keep(group.floor) for group in groups}
        for limit in self.limits:
            if not limit.dense:
                raise ValueError(
                    f"need a model that costs {limit.cost.unit}, got {limit.budget.describe()} for "
                    f"0 {limit.cost.unit}; give an example for which forward uses the weights"
                )
            if (reached := limit.cost(least)) > limit.final:
                raise ValueError(_describe_unreachable(limit, reached))
        if all(limit.final >= limit.dense for limit in self.limits):
            limit = self.limits[0]
            raise ValueError(
                f"need a budget below the cost of the dense model, got {limit.budget.describe()} "
                f"for {show_cost(limit.dense)} {_WORDS[limit.cost.unit]}"
            )


def _describe_unreachable(limit: Limit, reached: float) -> str:
    unit, parts = _WORDS[limit.cost.unit], limit.cost.dense_parts()
    costly = sorted(parts, key=lambda name: -parts[name])[:_LISTED_PARTS]
    listed = ", ".join(f"'{name}' {show_cost(parts[name])}" for name in costly if parts[name])
    least = f"{show_cost(reached)} {unit}, {reached / limit.dense:.4f} of the dense cost"
    return (
        f"need a budget that can be reached, got {limit.budget.describe()}: the least is {least}"
        + (f"; of the parts that stay dense these cost most: {listed}" if listed else "")
        + "; allow more, or prune more of the model (sparsity, scope='all', round_to)"
    )
