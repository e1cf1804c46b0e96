"""The record of a search, as table, plot, CSV and YAML."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_prune.arguments.checks import check_arguments
from lightning_prune.deploy.files import check_output_file, replace_files
from lightning_prune.post_training.curves import Curve
from lightning_prune.post_training.joint_trials import JointTrial
from lightning_prune.post_training.sensitivity_report import Mode, check_tolerance
from lightning_prune.recipe.budgets import Budget, Unit
from lightning_prune.recipe.targets import format_target
from lightning_prune.tables.table import Cell, Column, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CURVES = "search_curves.csv"
CHECKPOINT = "search.ckpt"


@dataclass(frozen=True, kw_only=True)
class SearchReport:
    """The sparsities that a search has found, with the measurements behind them.

    Args:
        monitor: Name of the metric.
        mode: Whether ``"max"`` or ``"min"`` is good.
        tolerance: Largest allowed loss; None for a search within a budget.
        limit: Largest allowed cost; None for a search within a tolerance.
        unit: Unit of the cost.
        curves: The losses of each tensor, or group of channels, pruned alone.
        trials: The measurements with all tensors pruned together; the dense model comes first.
        best: The trial whose sparsities are the result.
        globs: The globs of the recipe that are written before the result.
    """

    monitor: str
    mode: Mode
    tolerance: float | None
    limit: float | None
    unit: Unit
    curves: tuple[Curve, ...]
    trials: tuple[JointTrial, ...]
    best: JointTrial
    globs: Mapping[str, float | None]

    @property
    def sparsity(self) -> dict[str, float | None]:
        """The result, as the ``sparsity`` of a recipe: a sparsity by glob; None for dense.

        Where channels span tensors, a dense tensor has sparsity 0, so that it is scored as in the
        search.
        """
        dense = 0.0 if self.globs else None
        found = {
            escape(name): curve.sparsities[level] or dense
            for curve, level in zip(self.curves, self.best.levels, strict=True)
            for name in curve.producers
        }
        return {**self.globs, **found}

    @property
    def dense(self) -> JointTrial:
        """The dense model."""
        return self.trials[0]

    @property
    def front(self) -> tuple[JointTrial, ...]:
        """The Pareto front: trials that no cheaper trial matches in loss, the cheapest first."""
        ordered = sorted(self.trials, key=lambda trial: (trial.cost, trial.loss))
        return tuple(
            trial
            for place, trial in enumerate(ordered)
            if all(trial.loss < cheaper.loss for cheaper in ordered[:place])
        )

    def table(self) -> Table:
        """Return a row for each tensor, and the measurement of all together."""
        rows: list[list[Cell]] = [
            [
                ", ".join(curve.producers),
                f"{curve.sparsities[level]:g}",
                f"{curve.losses[level]:.4f}",
            ]
            for curve, level in zip(self.curves, self.best.levels, strict=True)
        ]
        return Table(
            title=self._describe(),
            columns=(
                Column(heading="tensor", align="left"),
                Column(heading="sparsity"),
                Column(heading="loss alone"),
            ),
            rows=[*rows, ["all together", "", f"{self.best.loss:.4f}"]],
            has_total=True,
            notes=[
                f"The losses alone sum up to {self.best.predicted:.4f}.",
                f"{len(self.trials) - 1} trials with all together were measured.",
            ],
        )

    def _repr_html_(self) -> str:
        return self.table().to_html()

    def figure(self) -> "Figure":
        """Return a plot of the metric over the cost, with the Pareto front. It needs matplotlib."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 4.5), layout="constrained")
        axes = figure.subplots()
        for kind, marker in (("knapsack", "o"), ("single sparsity", "x"), ("dense", "s")):
            some = [trial for trial in self.trials if trial.kind == kind]
            axes.plot(*_points(some, self.dense.cost), marker, label=kind)
        axes.step(*_points(self.front, self.dense.cost), "--", where="post", label="Pareto front")
        axes.plot(*_points([self.best], self.dense.cost), "o", ms=14, mfc="none", label="result")
        if self.tolerance is not None:
            worst = self.dense.metric + self.tolerance * (-1 if self.mode == "max" else 1)
            axes.axhspan(self.dense.metric, worst, color="0.9", label=f"within {self.tolerance:g}")
        if self.limit is not None:
            axes.axvline(self.limit / self.dense.cost, color="0.7", label="budget")
        axes.set(xlabel=f"{self.unit} that remain, of the dense model", ylabel=self.monitor)
        axes.spines[["top", "right"]].set_visible(False)
        figure.legend(loc="outside right upper", fontsize="small", frameon=False)
        return figure

    @check_arguments
    def write(self, folder: Path, *, plot: bool = True) -> list[Path]:
        """Write ``search.csv`` (all trials), ``search.yaml`` and ``search.png``.

        Args:
            folder: The folder to write to.
            plot: Whether to draw ``search.png``.

        Returns:
            The files that were written.

        Raises:
            ValueError: If a file cannot be written.
        """
        paths = check_search_folder(folder, plot=plot)
        with replace_files(paths) as written:
            written[0].write_text(self._to_csv(), newline="")
            written[1].write_text(self._to_yaml())
            if plot:
                self.figure().savefig(written[2], dpi=150)
        return paths

    def _describe(self) -> str:
        share = self.best.cost / self.dense.cost
        return (
            f"{self.monitor} {self.best.metric:.4f} ({self.dense.metric:.4f} dense) with "
            f"{self.best.cost:,.0f} {self.unit}, {share:.4f} of the dense model"
        )

    def _to_csv(self) -> str:
        """Return a line for each trial of all tensors together."""
        names = [", ".join(curve.producers) for curve in self.curves]
        front = set(map(id, self.front))
        headings = ("kind", self.unit, self.monitor, "loss", "sum of losses", "front", *names)
        rows: list[list[Cell]] = [
            [
                *(trial.kind, trial.cost, trial.metric, trial.loss, trial.predicted),
                int(id(trial) in front),
                *(
                    curve.sparsities[level]
                    for curve, level in zip(self.curves, trial.levels, strict=True)
                ),
            ]
            for trial in self.trials
        ]
        columns = [Column(heading=heading) for heading in headings]
        return Table(columns=columns, rows=rows).to_csv(line_end="\r\n")

    def _to_yaml(self) -> str:
        """Return the result as the ``sparsity`` of a config."""
        lines = [f"# {self._describe()}, without training", "sparsity:"]
        for glob, sparsity in self.sparsity.items():
            lines.append(f"  '{glob}': {format_target(sparsity)}")
        return "\n".join(lines) + "\n"


def _points(trials: Sequence[JointTrial], dense: float) -> tuple[list[float], list[float]]:
    """Return the relative costs and the metrics of trials."""
    return [trial.cost / dense for trial in trials], [trial.metric for trial in trials]


def check_goal(tolerance: float | None, budget: Budget | None, trials: int) -> None:
    """Raise ValueError unless exactly one goal is given, in range, and a trial is allowed."""
    if (tolerance is None) == (budget is None):
        shown = None if budget is None else budget.describe()
        raise ValueError(
            f"need exactly one of tolerance and budget, got tolerance={tolerance} and "
            f"budget={shown}"
        )
    if tolerance is not None:
        check_tolerance(tolerance)
    if trials < 1:
        raise ValueError(f"need trials >= 1, got trials={trials}")


def check_search_folder(folder: Path, *, plot: bool) -> list[Path]:
    """Return the files to write; raise ValueError if they cannot be written to the folder."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"need a folder to write to, got the file output='{folder}'")
    for name in (CURVES, CHECKPOINT):
        check_output_file(folder / name)
    kinds = ("csv", "yaml", "png") if plot else ("csv", "yaml")
    return [check_output_file(folder / f"search.{kind}") for kind in kinds]
