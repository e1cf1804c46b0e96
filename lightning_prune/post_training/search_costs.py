"""The cost that a search weighs against the metric, and the limit of a budget."""

from functools import partial
from typing import Any

from rich.console import Console

from lightning_prune.callbacks.printing import shows_progress
from lightning_prune.engine.costs import Cost
from lightning_prune.engine.count_costs import make_parameter_cost
from lightning_prune.engine.pricing import make_cost as price
from lightning_prune.post_training.solving import Solver
from lightning_prune.post_training.trials import TrialValidator
from lightning_prune.recipe.budgets import Budget, LatencyBudget
from lightning_prune.recipe.patterns import Pattern
from lightning_prune.reporting.latency_widths import measure_latency_table

_LISTED_PARTS = 3


def check_budget(budget: Budget | None, pattern: Pattern) -> None:
    """Raise ValueError if zeros in place cannot lower the cost."""
    if budget is not None and budget.needs_removal and not pattern.couples_tensors:
        raise ValueError(
            f"need a pattern of whole channels for {budget.describe()}, got pattern={pattern}; "
            "zeros in place do not lower this cost"
        )


def make_cost(budget: Budget | None, validator: TrialValidator, example: Any) -> Cost:
    """Return the cost that a budget limits; without a budget, the parameters that remain.

    Latencies are measured.

    Args:
        budget: The budget of the user.
        validator: Has the model and the groups.
        example: The arguments of ``forward``; None for the model's ``example_input_array``.
    """
    selection = validator.pruner.selection
    if budget is None:
        return make_parameter_cost(selection)
    if isinstance(budget, LatencyBudget):
        say = partial(Console(stderr=True).print, soft_wrap=True)
        table = measure_latency_table(
            validator.model,
            example,
            selection,
            budget,
            announce=say,
            progress=shows_progress(validator.trainer),
        )
        return price(budget, validator.model, selection, example, table)
    return price(budget, validator.model, selection, example)


def find_limit(budget: Budget, solver: Solver) -> float:
    """Return the largest cost that a budget allows.

    Raises:
        ValueError: If the sparsest choice costs more, or the dense model does not.
    """
    cost = solver.cost
    dense, least = solver.count_cost(solver.dense), solver.count_cost(solver.sparsest)
    limit = budget.limit(dense)
    if limit >= dense:
        raise ValueError(
            f"need a budget below the cost of the dense model, got {budget.describe()} for "
            f"{dense:,.6g} {cost.unit}"
        )
    if least > limit:
        parts = sorted(cost.dense_parts().items(), key=lambda part: -part[1])[:_LISTED_PARTS]
        listed = ", ".join(f"'{name}' {part:,.6g}" for name, part in parts if part) or "none"
        raise ValueError(
            f"need a budget that the highest sparsities reach, got {budget.describe()}: the least "
            f"is {least:,.6g} {cost.unit}, {least / dense:.4f} of the dense cost; of the parts "
            f"that stay dense these cost most: {listed}; allow more, or higher sparsities"
        )
    return limit
