"""The cost that a search weighs against the metric."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from lightning_prune.engine.costs import Cost
from lightning_prune.engine.groups import Group
from lightning_prune.post_training.trials import TrialValidator
from lightning_prune.recipe.budgets import Budget, Unit


class RemainingParameters(Cost):
    """Parameters that are not pruned; a weight in two groups remains if both keep it.

    Args:
        groups: The groups.
        sizes: Number of weights of each parameter of the model, by name.
    """

    unit: Unit = "parameters"

    def __init__(self, groups: Sequence[Group], sizes: Mapping[str, int]) -> None:
        self._totals = {group.name: group.total for group in groups}
        self._sizes = sizes
        self._by_member: dict[str, list[str]] = defaultdict(list)
        for group in groups:
            for member in group.members:
                self._by_member[member.name].append(group.name)

    def __call__(self, kept: Mapping[str, int]) -> float:
        """Return the number of remaining parameters."""
        cost = 0.0
        for name, size in self._sizes.items():
            share = 1.0
            for group in self._by_member.get(name, ()):
                share *= kept[group] / self._totals[group]
            cost += round(size * share)
        return cost

    def dense_parts(self) -> Mapping[str, float]:
        """Return the sizes of the parameters in no group."""
        return {n: float(size) for n, size in self._sizes.items() if n not in self._by_member}


def make_cost(budget: Budget | None, validator: TrialValidator, example: Any) -> Cost:
    """Return the cost that a budget limits; without a budget, the parameters that remain.

    Args:
        budget: The budget of the user.
        validator: Has the model and the groups.
        example: The arguments of ``forward``; None for the model's ``example_input_array``.
    """
    return RemainingParameters(validator.groups, validator.pruner.sizes)
