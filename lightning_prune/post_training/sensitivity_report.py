"""The record of a sensitivity measurement, as table, plot, CSV and YAML."""

import importlib.util
import math
from collections.abc import Mapping
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.text import Text

from lightning_prune.arguments.checks import check_arguments
from lightning_prune.deploy.files import check_output_file, replace_files
from lightning_prune.post_training.defaults import TOLERANCE
from lightning_prune.recipe.targets import format_target
from lightning_prune.tables.table import Cell, Column, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Mode = Literal["max", "min"]

_ROUNDING = 1e-6  # a metric is often a float32
_LINE_STYLES = ("-", "--", ":", "-.")


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """The value of a metric after each tensor alone was pruned to each sparsity.

    Args:
        monitor: Name of the metric.
        mode: Whether ``"max"`` or ``"min"`` is good.
        dense: The metric of the dense model.
        metrics: The metric by tensor name and sparsity.

    Examples:
        >>> sensitivity = Sensitivity(
        ...     monitor="val_acc",
        ...     mode="max",
        ...     dense=0.98,
        ...     metrics={"a.weight": {0.5: 0.9, 0.9: 0.4}, "b.weight": {0.5: 0.99, 0.9: 0.97}},
        ... )
        >>> sensitivity.targets(tolerance=0.01)
        {'a.weight': None, 'b.weight': 0.9}
    """

    monitor: str
    mode: Mode
    dense: float
    metrics: Mapping[str, Mapping[float, float]]

    @property
    def sparsities(self) -> tuple[float, ...]:
        """The sparsities of the grid, rising."""
        return tuple(next(iter(self.metrics.values()), ()))

    def loss(self, name: str, sparsity: float) -> float:
        """Return how much worse the metric is than the dense metric; negative if it is better.

        Args:
            name: Name of the pruned tensor.
            sparsity: A sparsity of the grid.
        """
        change = self.metrics[name][sparsity] - self.dense
        return -change if self.mode == "max" else change

    def targets(self, tolerance: float = TOLERANCE) -> dict[str, float | None]:
        """Return the largest sparsity of each tensor within a tolerance, as ``sparsity`` globs.

        Args:
            tolerance: Largest allowed loss, in the unit of the metric.

        Returns:
            The largest sparsity of the grid by tensor name; None if no sparsity is within the
            tolerance.
        """
        check_tolerance(tolerance)
        return {
            escape(name): max(
                (s for s in by_sparsity if self._is_tolerable(name, s, tolerance)), default=None
            )
            for name, by_sparsity in self.metrics.items()
        }

    def table(self, tolerance: float = TOLERANCE) -> Table:
        """Return a row for each tensor and a column for each sparsity.

        Args:
            tolerance: Largest allowed loss. Cells beyond it are dim.
        """
        return Table(
            title=f"{self.monitor} with one tensor pruned ({self.dense:.4f} dense)",
            columns=(
                Column(heading="tensor", align="left"),
                *(Column(heading=f"{sparsity:g}") for sparsity in self.sparsities),
                Column(heading=f"within {tolerance:g}"),
            ),
            rows=[
                self._row(name, target, tolerance)
                for name, target in zip(self.metrics, self.targets(tolerance).values(), strict=True)
            ],
        )

    def _repr_html_(self) -> str:
        return self.table().to_html()

    def figure(self, tolerance: float = TOLERANCE) -> "Figure":
        """Return a plot of the metric over the sparsity, with a line for each tensor.

        It needs matplotlib.

        Args:
            tolerance: Largest allowed loss, drawn as a band.
        """
        from matplotlib.figure import Figure

        check_tolerance(tolerance)
        figure = Figure(figsize=(8, max(4.5, 0.2 * len(self.metrics))), layout="constrained")
        axes = figure.subplots()
        self._draw(axes, tolerance)
        axes.set(xlabel="sparsity of this tensor alone", ylabel=self.monitor, xlim=(0, 1))
        axes.spines[["top", "right"]].set_visible(False)
        figure.legend(loc="outside right upper", fontsize="small", frameon=False)
        return figure

    @check_arguments
    def write(self, folder: Path, tolerance: float = TOLERANCE, *, plot: bool = True) -> list[Path]:
        """Write ``sensitivity.csv``, ``sensitivity.yaml`` and ``sensitivity.png``.

        Args:
            folder: The folder to write to.
            tolerance: Largest allowed loss, for the sparsities in the YAML file.
            plot: Whether to draw ``sensitivity.png``.

        Returns:
            The files that were written.

        Raises:
            ValueError: If a file cannot be written.
        """
        paths = check_folder(folder, plot=plot)
        with replace_files(paths) as written:
            written[0].write_text(self._to_csv(), newline="")
            written[1].write_text(self._to_yaml(tolerance))
            if plot:
                self.figure(tolerance).savefig(written[2], dpi=150)
        return paths

    def _is_tolerable(self, name: str, sparsity: float, tolerance: float) -> bool:
        return self.loss(name, sparsity) <= tolerance + _ROUNDING

    def _row(self, name: str, target: float | None, tolerance: float) -> list[Cell]:
        cells = [
            Text(
                f"{metric:.4f}",
                style="" if self._is_tolerable(name, sparsity, tolerance) else "dim",
            )
            for sparsity, metric in self.metrics[name].items()
        ]
        return [name, *cells, Text("null" if target is None else f"{target:g}", style="bold")]

    def _draw(self, axes: "Axes", tolerance: float) -> None:
        worst = self.dense - tolerance if self.mode == "max" else self.dense + tolerance
        axes.axhspan(self.dense, worst, color="0.9", label=f"within {tolerance:g} of dense")
        axes.axhline(self.dense, color="black", linewidth=0.8)
        for index, (name, by_sparsity) in enumerate(self.metrics.items()):
            axes.plot(
                [0.0, *by_sparsity],
                [self.dense, *by_sparsity.values()],
                color=f"C{index % 10}",
                linestyle=_LINE_STYLES[index // 10 % len(_LINE_STYLES)],
                marker=".",
                label=name,
            )

    def _to_csv(self) -> str:
        """Return a line for each tensor and sparsity; sparsity 0 is the dense model."""
        headings = ("tensor", "sparsity", self.monitor, "loss")
        rows: list[list[Cell]] = []
        for name, by_sparsity in self.metrics.items():
            rows.append([name, 0, self.dense, 0])
            rows += [[name, s, metric, self.loss(name, s)] for s, metric in by_sparsity.items()]
        columns = [Column(heading=heading) for heading in headings]
        return Table(columns=columns, rows=rows).to_csv(line_end="\r\n")

    def _to_yaml(self, tolerance: float) -> str:
        """Return `targets` as the ``sparsity`` of a config."""
        lines = [
            f"# With a single tensor this sparse, {self.monitor} stays within {tolerance:g} of "
            f"{self.dense:.6g}, the value of the dense model.",
            "# All tensors together cost more: train on, or prune while training.",
            "sparsity:",
        ]
        for glob, sparsity in self.targets(tolerance).items():
            lines.append(f"  '{glob}': {format_target(sparsity)}")
        return "\n".join(lines) + "\n"


@check_arguments
def check_tolerance(tolerance: float) -> None:
    """Raise ValueError if the tolerance is not a finite number of at least 0."""
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise ValueError(f"need a finite tolerance >= 0, got tolerance={tolerance}")


def check_folder(folder: Path, *, plot: bool) -> list[Path]:
    """Return the files to write; raise ValueError if they cannot be written to the folder."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"need a folder to write to, got the file output='{folder}'")
    kinds = ("csv", "yaml", "png") if plot else ("csv", "yaml")
    return [check_output_file(folder / f"sensitivity.{kind}") for kind in kinds]


def check_plot() -> None:
    """Raise ValueError if matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError(
            "need matplotlib, got plot=True without matplotlib; "
            "pip install 'lightning-prune[plots]', or set plot=False"
        )
