"""Pricing: a budget as a limit on the cost of the atoms that each group keeps."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from lightning_prune.engine.candidates import Selection
from lightning_prune.engine.costs import Cost
from lightning_prune.engine.count_costs import make_macs_cost, make_parameter_cost
from lightning_prune.engine.limits import Limit, Limits
from lightning_prune.models.calls import make_call
from lightning_prune.recipe.budgets import Budget, Unit

_Maker = Callable[[Budget, nn.Module, Selection, Any], Cost]


def make_limits(
    budgets: Sequence[Budget], model: nn.Module, selection: Selection, example: Any
) -> Limits:
    """Return the limits of budgets.

    Args:
        budgets: The budgets.
        model: The model; it stays as it is.
        selection: The parameters and groups of the model.
        example: What ``forward`` takes; None for ``example_input_array``.

    Raises:
        ValueError: If a budget needs an example and there is none, or a cost cannot be told.
    """
    full = {group.name: group.total for group in selection.groups}
    limits = []
    for budget in budgets:
        cost = _MAKERS[budget.unit](budget, model, selection, example)
        limits.append(Limit(budget=budget, cost=cost, dense=cost(full)))
    return Limits(limits)


def _price_macs(budget: Budget, model: nn.Module, selection: Selection, example: Any) -> Cost:
    return make_macs_cost(model, selection, make_call(model, example))


def _price_parameters(budget: Budget, model: nn.Module, selection: Selection, example: Any) -> Cost:
    return make_parameter_cost(selection)


_MAKERS: Mapping[Unit, _Maker] = {"macs": _price_macs, "parameters": _price_parameters}
