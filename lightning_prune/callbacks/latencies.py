"""Latencies of a model while Lightning trains it: measured before, and again near the end."""

from pathlib import Path
from typing import Any, cast

from lightning.pytorch import LightningModule, Trainer
from rich.console import Console

from lightning_prune.channels.shrink import shrink
from lightning_prune.deploy.latency_table import LatencyTable
from lightning_prune.engine.candidates import Selection
from lightning_prune.engine.latency_costs import LARGEST_ERROR
from lightning_prune.engine.pruner import Pruner
from lightning_prune.recipe.budgets import LatencyBudget
from lightning_prune.reporting.latency_widths import measure_latency_table
from lightning_prune.reporting.stopwatch import measure_model_latency

_NEARLY = 0.9  # of the way: from here on an error of the prediction matters


class LatencyCheck:
    """Measures latencies for a `LatencyBudget`, in the first process, for all processes.

    Args:
        pruner: The engine.
        trainer: The Trainer.
        module: The model.
        example: The arguments of ``forward``; None for the module's ``example_input_array``.

    Attributes:
        measured_ms: The latency of the shrunk model by the last measurement; None before.
    """

    def __init__(
        self, pruner: Pruner, trainer: Trainer, module: LightningModule, example: Any
    ) -> None:
        self._pruner, self._trainer, self._module = pruner, trainer, module
        self._example = example
        self._checked: dict[str, int] | None = None
        self.measured_ms: float | None = None

    def find_table(self, selection: Selection) -> LatencyTable:
        """Return the latencies of the file if it exists; else measure them, and write the file.

        Args:
            selection: The groups that are pruned.
        """
        budgets = self._pruner.recipe.budgets
        asked = [each for each in budgets if isinstance(each, LatencyBudget)]
        budget = asked[0] if asked else LatencyBudget(speedup=2.0)  # an allocation reads latencies
        path = None if budget.table is None else Path(budget.table)
        table = None
        if self._trainer.is_global_zero and path is not None and path.exists():
            table = LatencyTable.load(path)
        elif self._trainer.is_global_zero:
            table = measure_latency_table(
                self._module, self._example, selection, budget, announce=Console().print
            )
            if path is not None:
                table.save(path)
        shared: Any = self._trainer.strategy.broadcast(table)
        return cast("LatencyTable", shared)

    def check(self) -> None:
        """Measure the shrunk model near the end of the way, and correct predictions that are off.

        Call it after each update of the masks.
        """
        expense = next((each for each in self._pruner.spending if each.unit == "latency"), None)
        kept = {group.name: group.kept for group in self._pruner.groups}
        if expense is None or expense.way < _NEARLY or kept == self._checked:
            return
        self._checked = kept
        budget = cast("LatencyBudget", expense.limit.budget)
        self.measured_ms = expense.limit.dense / self._measure_speedup(budget)
        if abs(expense.cost - self.measured_ms) > LARGEST_ERROR * self.measured_ms:
            self._pruner.correct_latency(self.measured_ms)

    def _measure_speedup(self, budget: LatencyBudget) -> float:
        """Return how many times faster the shrunk model is than the model with zeros in place."""
        speedup = None
        if self._trainer.is_global_zero:
            shrunk = shrink(self._module, self._example)
            latency = measure_model_latency(self._module, shrunk, self._example, budget)
            speedup = latency.speedup
        shared: Any = self._trainer.strategy.broadcast(speedup)
        return cast("float", shared)
