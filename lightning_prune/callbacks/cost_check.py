"""Costs under budgets while Lightning trains: latencies before and near the end, all at the end."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

from rich.console import Console
from torch import nn

from lightning_prune.callbacks.namespace import LightningModule, Trainer
from lightning_prune.channels.shrink import shrink
from lightning_prune.deploy.latency_table import LatencyTable
from lightning_prune.engine.candidates import Selection
from lightning_prune.engine.limits import Expense
from lightning_prune.engine.measured_bytes import measure_bytes
from lightning_prune.engine.pruner import Pruner
from lightning_prune.engine.whole_copies import find_from_whole, has_shards
from lightning_prune.models.errors import describe_error
from lightning_prune.models.progress import show_progress
from lightning_prune.recipe.budgets import BytesBudget, LatencyBudget
from lightning_prune.reporting.latency_widths import measure_latency_table
from lightning_prune.reporting.measured_spending import measure_spending
from lightning_prune.reporting.stopwatch import measure_model_latency

_NEARLY = 0.9  # of the way: from here on an error of the prediction matters


class CostCheck:
    """Measures what budgets limit; latencies in the first process, for all processes.

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
        self._checked: dict[str, int] = {}
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
        """Measure inexact costs near the end of the way, and correct predictions that are off.

        Call it after each update of the masks. A measurement takes seconds. So it is made at 0.9 of
        the way, at the end, and after each update that a correction leads to.
        """
        kept = {group.name: group.kept for group in self._pruner.groups}
        inexact = [each for each in self._pruner.spending if each.largest_error is not None]
        way = min((each.way for each in inexact), default=0.0)
        if way < _NEARLY or (way < 1 and self._checked) or kept == self._checked:
            return
        self._checked = kept
        for expense in inexact:
            self._correct(expense)

    def _correct(self, expense: Expense) -> None:
        """Measure a cost in the first process; correct it if the prediction is off."""
        found = None
        if self._trainer.is_global_zero or has_shards(self._module):
            with _go_on_after_errors(), show_progress(False):  # the bar of the training is there
                found = find_from_whole(self._module, partial(self._measure, expense))
        shared: Any = self._trainer.strategy.broadcast(found)
        if shared is None:
            return
        measured, is_off = shared
        if expense.unit == "latency":
            self.measured_ms = measured
        if is_off:
            self._pruner.correct_cost(expense.unit, measured)

    def _measure(self, expense: Expense, module: nn.Module) -> tuple[float, bool]:
        """Return the measured cost of a module, and whether the prediction has to be corrected."""
        budget, dense, final = expense.limit.budget, expense.limit.dense, expense.limit.final
        error = expense.largest_error or 0.0
        if isinstance(budget, LatencyBudget):
            shrunk = shrink(module, self._example)
            latency = measure_model_latency(module, shrunk, self._example, budget)
            is_off = latency.contradicts(dense / expense.cost, dense / final, error)
            return dense / latency.speedup, is_off
        assert isinstance(budget, BytesBudget)
        removed = self._pruner.recipe.pattern.couples_tensors
        size = measure_bytes(module, budget, self._example, removes_channels=removed)
        is_too_large = size > max(expense.cost, final)
        is_off = abs(expense.cost - size) > error * size
        return size, is_off or is_too_large

    def print_measured(self) -> None:
        """Print what the budgets asked for, the cost that was predicted, and what is measured."""
        if not (self._trainer.is_global_zero or has_shards(self._module)):
            return
        with _go_on_after_errors(), show_progress(False):
            lines = measure_spending(self._pruner, self._module, self._example, self.measured_ms)
            if self._trainer.is_global_zero:
                for line in lines:
                    Console().print(line)


@contextmanager
def _go_on_after_errors() -> Iterator[None]:
    """Warn of an error in a measurement, which must not end the training."""
    try:
        yield
    except Exception as error:
        warnings.warn(f"no measurement of the budget: {describe_error(error)}", stacklevel=2)
