"""Pricing: budgets as limits on the cost of the atoms that each group keeps."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from lightning_prune.deploy.latency_table import LatencyTable
from lightning_prune.engine.byte_costs import make_bytes_cost
from lightning_prune.engine.candidates import Selection
from lightning_prune.engine.costs import Cost
from lightning_prune.engine.count_costs import make_macs_cost, make_parameter_cost
from lightning_prune.engine.latency_costs import make_latency_cost
from lightning_prune.engine.limits import Latencies, Limit, Limits
from lightning_prune.models.calls import make_call
from lightning_prune.models.names import named_parameters
from lightning_prune.recipe.budgets import (
    Budget,
    BytesBudget,
    LatencyBudget,
    MacsBudget,
    ParameterBudget,
)
from lightning_prune.recipe.recipe import Recipe
from lightning_prune.tensors.shards import refuse_shards


def make_limits(
    recipe: Recipe,
    model: nn.Module,
    selection: Selection,
    example: Any,
    latencies: Latencies | None = None,
    saved: Mapping[str, Any] | None = None,
) -> Limits:
    """Return the limits of budgets, and the savings that the allocation reads.

    Args:
        recipe: The answers.
        model: The model; it stays as it is.
        selection: The parameters and groups of the model.
        example: What ``forward`` takes; None for ``example_input_array``.
        latencies: The measured latencies, for a latency.
        saved: What an earlier training has measured, by unit: `Limits.state_dict`.

    Raises:
        ValueError: If a cost cannot be told, or needs an example that is missing.
    """
    full = {group.name: group.total for group in selection.groups}
    costs: dict[str, Cost] = {}
    limits = []
    for budget in recipe.budgets:
        known = (saved or {}).get(budget.unit)
        if known is not None and budget.unit == "latency":
            latencies = LatencyTable(**known["measured"])
        cost = make_cost(budget, model, selection, example, latencies)
        dense = cost(full)
        if known is not None:
            cost.load_state_dict(known["measured"])
            dense = known["dense"]
        costs[budget.unit] = cost
        limits.append(Limit(budget=budget, cost=costs[budget.unit], dense=dense))
    per = recipe.chosen_allocation.per
    if per is None:
        return Limits(limits)
    is_measured = per == "latency"
    savings = (saved or {}).get("savings") if is_measured else None
    if savings is None or savings.keys() != full.keys():
        if per not in costs:
            costs[per] = make_cost(_SAMPLES[per], model, selection, example, latencies)
        savings = _find_savings(costs[per], selection)
    return Limits(limits, savings, has_measured=is_measured)


def make_cost(
    budget: Budget,
    model: nn.Module,
    selection: Selection,
    example: Any,
    latencies: Latencies | None = None,
) -> Cost:
    """Return the cost that a budget limits; the arguments are those of `make_limits`."""
    if isinstance(budget, LatencyBudget | BytesBudget) and budget.needs_example:
        remedy = "use MacsBudget, ParameterBudget or BytesBudget(file='sparse'), or DDP"
        refuse_shards(named_parameters(model), wanted=budget.describe(), remedy=remedy)
    if isinstance(budget, LatencyBudget):
        return _price_latency(budget, model, selection, example, latencies)
    return _PRICES[type(budget)](budget, model, selection, example)


def _find_savings(cost: Cost, selection: Selection) -> dict[str, float]:
    r"""Return the cost that an atom saves, divided by the number of its scored weights.

    .. math:: \frac{C(n) - C(n_{-g})}{n_g\, w_g}

    Here :math:`C(n)` is the cost of the dense model, :math:`n_{-g}` is without the :math:`n_g`
    atoms of the group, and :math:`w_g` is the number of weights in an atom. So the quotient of
    score and saving is the sum of the scores of the weights over the cost that they save.
    """
    full = {group.name: group.total for group in selection.groups}
    dense = cost(full)
    return {
        group.name: (dense - cost({**full, group.name: 0})) / (group.total * group.weights_per_atom)
        for group in selection.groups
    }


def _price_macs(budget: Budget, model: nn.Module, selection: Selection, example: Any) -> Cost:
    return make_macs_cost(model, selection, make_call(model, example))


def _price_parameters(budget: Budget, model: nn.Module, selection: Selection, example: Any) -> Cost:
    return make_parameter_cost(selection)


def _price_bytes(budget: Budget, model: nn.Module, selection: Selection, example: Any) -> Cost:
    assert isinstance(budget, BytesBudget)
    call = make_call(model, example) if budget.needs_example else None
    return make_bytes_cost(budget, model, selection, call)


def _price_latency(
    budget: LatencyBudget,
    model: nn.Module,
    selection: Selection,
    example: Any,
    latencies: Latencies | None,
) -> Cost:
    if latencies is None:
        raise ValueError(
            f"need measured latencies for {budget.describe()}, got latencies=None; give attach() "
            "latencies=LatencyTable.load(path), or a function of the selection that returns "
            "measure_latency_table(model, example, selection, budget)"
        )
    table = latencies if isinstance(latencies, LatencyTable) else latencies(selection)
    return make_latency_cost(table, model, selection, example)


_PRICES: Mapping[type[Budget], Callable[[Budget, nn.Module, Selection, Any], Cost]] = {
    MacsBudget: _price_macs,
    ParameterBudget: _price_parameters,
    BytesBudget: _price_bytes,
}
_SAMPLES: Mapping[str, Budget] = {
    "macs": MacsBudget(keep=0.5),
    "parameters": ParameterBudget(keep=0.5),
    "latency": LatencyBudget(speedup=2.0),
}
"""A budget of each unit; nothing but the unit matters."""
