"""Pricing: a budget as a cost of the atoms that each group keeps."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from lightning_prune.engine.candidates import Selection
from lightning_prune.engine.costs import Cost
from lightning_prune.engine.limits import Limit, Limits
from lightning_prune.recipe.budgets import Budget, Unit


class ParameterCost(Cost):
    unit: Unit = "parameters"

    def __init__(self, selection: Selection) -> None:
        self._selection = selection
        pruned = {t.name for t in selection.tensors}
        self._dense = {n: float(size) for n, size in selection.sizes.items() if n not in pruned}
        self._per = {g.name: g.size / g.total for g in selection.groups}
        self._base = sum(self._dense.values())

    def __call__(self, kept: Mapping[str, int]) -> float:
        return self._base + sum(self._per[name] * number for name, number in kept.items())

    def dense_parts(self) -> Mapping[str, float]:
        return self._dense


def make_limits(
    budgets: Sequence[Budget], model: nn.Module, selection: Selection, example: Any
) -> Limits:
    limits = []
    for budget in budgets:
        cost = ParameterCost(selection)
        dense = cost({group.name: group.total for group in selection.groups})
        limits.append(Limit(budget=budget, cost=cost, dense=dense))
    return Limits(limits)
