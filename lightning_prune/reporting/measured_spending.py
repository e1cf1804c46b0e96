"""What a pruned model really costs, beside what a budget asked for and a cost predicted."""

from collections.abc import Iterator
from typing import Any

from torch import nn

from lightning_prune.channels.shrink import shrink
from lightning_prune.engine.limits import Expense, show_cost
from lightning_prune.engine.measured_bytes import measure_bytes
from lightning_prune.engine.pruner import Pruner
from lightning_prune.engine.whole_copies import find_from_whole
from lightning_prune.recipe.budgets import BytesBudget
from lightning_prune.reporting.measured_costs import measure_macs, measure_parameters


def measure_spending(
    pruner: Pruner, model: nn.Module, example: Any, latency_ms: float | None
) -> list[str]:
    """Return a line for each budget: asked, predicted and measured.

    Channels are removed from a copy of the model before.

    Args:
        pruner: The engine.
        model: The pruned model; it stays as it is. If it is sharded, all processes call this
            together, and the first measures a whole copy, unless the shards can be counted.
        example: The arguments of ``forward``; None for the module's ``example_input_array``.
        latency_ms: The measured latency; None if it was not measured.
    """
    if not pruner.spending:
        return []
    removed = pruner.recipe.pattern.couples_tensors

    def compare(whole: nn.Module) -> list[str]:
        small = shrink(whole, example) if removed else whole
        return list(_compare(pruner, small, example, latency_ms, removed=removed))

    counts_zeros = not removed and all(each.unit == "parameters" for each in pruner.spending)
    return compare(model) if counts_zeros else find_from_whole(model, compare)


def _compare(
    pruner: Pruner, small: nn.Module, example: Any, latency_ms: float | None, *, removed: bool
) -> Iterator[str]:
    for expense in pruner.spending:
        measured = _measure(expense, small, example, latency_ms, removed=removed)
        if measured is not None:
            final, cost = show_cost(expense.limit.final), show_cost(expense.cost)
            yield (
                f"asked for at most {final} {expense.words}, predicted {cost}, "
                f"measured {show_cost(measured)}"
            )


def _measure(
    expense: Expense, small: nn.Module, example: Any, latency_ms: float | None, *, removed: bool
) -> float | None:
    budget = expense.limit.budget
    if isinstance(budget, BytesBudget):
        return measure_bytes(small, budget, example)
    if expense.unit == "macs":
        return measure_macs(small, example, removed=removed)
    if expense.unit == "parameters":
        return measure_parameters(small, removed=removed)
    return latency_ms
