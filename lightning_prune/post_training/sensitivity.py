"""How much sparsity each tensor bears alone."""

import csv
import importlib.util
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from torch import Tensor

from lightning_prune.engine.groups import Group
from lightning_prune.engine.pools import Pool
from lightning_prune.engine.pruner import Pruner
from lightning_prune.engine.scores import TensorScores
from lightning_prune.engine.update import prune_pool
from lightning_prune.post_training.calibration import (
    BATCHES,
    calibrate,
    check_batches,
    checked_checkpoint,
    quiet,
    recipe_of,
    unchanged,
    validated,
)
from lightning_prune.recipe.allocations import UniformAllocation
from lightning_prune.recipe.criteria import Criterion
from lightning_prune.recipe.targets import as_yaml
from lightning_prune.recipe.tensor import PrunedTensor
from lightning_prune.tensors.masks import Mask

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Mode = Literal["max", "min"]
SPARSITIES = (0.5, 0.7, 0.8, 0.9, 0.95)

_ROUNDING = 1e-6  # a metric is often a float32


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """What a metric becomes when each tensor alone is pruned to each sparsity.

    Args:
        monitor: Name of the metric.
        mode: Whether ``"max"`` or ``"min"`` is good.
        dense: The metric of the model as it was.
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
        """The grid, rising."""
        return tuple(next(iter(self.metrics.values()), ()))

    def loss(self, name: str, sparsity: float) -> float:
        """Return by how much the metric is worse than the dense one; negative if it is better."""
        change = self.metrics[name][sparsity] - self.dense
        return -change if self.mode == "max" else change

    def targets(self, tolerance: float) -> dict[str, float | None]:
        """Return globs for ``sparsity``: what each tensor bears alone within a tolerance.

        Args:
            tolerance: By how much the metric may be worse than the dense one, in its own unit.

        Returns:
            By tensor name the largest sparsity of the grid within the tolerance; None if none is.
        """
        check_tolerance(tolerance)
        return {
            escape(name): max(
                (s for s in by_sparsity if self.loss(name, s) <= tolerance + _ROUNDING),
                default=None,
            )
            for name, by_sparsity in self.metrics.items()
        }

    def table(self, tolerance: float) -> Table:
        """Return a row a tensor, a column a sparsity, for a terminal; dim is beyond tolerance."""
        table = Table(
            title=f"{self.monitor} with one tensor pruned ({self.dense:.4f} with none)",
            title_justify="left",
        )
        table.add_column("tensor", overflow="fold")
        for sparsity in self.sparsities:
            table.add_column(f"{sparsity:g}", justify="right")
        table.add_column(f"within {tolerance:g}", justify="right", style="bold")
        targets = self.targets(tolerance)
        for name, by_sparsity in self.metrics.items():
            cells = [
                f"{metric:.4f}"
                if self.loss(name, sparsity) <= tolerance + _ROUNDING
                else f"[dim]{metric:.4f}[/dim]"
                for sparsity, metric in by_sparsity.items()
            ]
            target = targets[escape(name)]
            table.add_row(name, *cells, "null" if target is None else f"{target:g}")
        return table

    def figure(self, tolerance: float) -> "Figure":
        """Return the metric over the sparsity, a line a tensor; it needs matplotlib."""
        from matplotlib.figure import Figure

        check_tolerance(tolerance)
        figure = Figure(figsize=(8, max(4.5, 0.2 * len(self.metrics))), layout="constrained")
        axes = figure.subplots()
        worst = self.dense - tolerance if self.mode == "max" else self.dense + tolerance
        axes.axhspan(self.dense, worst, color="0.9", label=f"within {tolerance:g} of dense")
        axes.axhline(self.dense, color="black", linewidth=0.8)
        styles = ("-", "--", ":", "-.")
        for index, (name, by_sparsity) in enumerate(self.metrics.items()):
            axes.plot(
                [0.0, *by_sparsity],
                [self.dense, *by_sparsity.values()],
                color=f"C{index % 10}",
                linestyle=styles[index // 10 % len(styles)],
                marker=".",
                label=name,
            )
        axes.set(xlabel="sparsity of this tensor alone", ylabel=self.monitor, xlim=(0, 1))
        axes.spines[["top", "right"]].set_visible(False)
        figure.legend(loc="outside right upper", fontsize="small", frameon=False)
        return figure

    def write(self, folder: Path, tolerance: float, *, plot: bool = True) -> list[Path]:
        """Write ``sensitivity.csv``, ``.yaml`` and, if asked for, ``.png``; return their paths."""
        folder.mkdir(parents=True, exist_ok=True)
        kinds = ("csv", "yaml", "png") if plot else ("csv", "yaml")
        paths = [folder / f"sensitivity.{kind}" for kind in kinds]
        self._write_csv(paths[0])
        self._write_yaml(paths[1], tolerance)
        if plot:
            self.figure(tolerance).savefig(paths[2], dpi=150)
        return paths

    def _write_csv(self, path: Path) -> None:
        """Write a line for each tensor and sparsity; the dense model is at sparsity 0."""
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["tensor", "sparsity", self.monitor, "loss"])
            for name, by_sparsity in self.metrics.items():
                writer.writerow([name, 0, self.dense, 0])
                for sparsity, metric in by_sparsity.items():
                    writer.writerow([name, sparsity, metric, self.loss(name, sparsity)])

    def _write_yaml(self, path: Path, tolerance: float) -> None:
        """Write `targets` as the ``sparsity`` of a config."""
        lines = [
            f"# {self.monitor} stays within {tolerance:g} of {self.dense:.6g}, that of the dense "
            "model, if one tensor",
            "# alone is that sparse. Together they cost more: train on, or prune while training.",
            "sparsity:",
        ]
        for glob, sparsity in self.targets(tolerance).items():
            lines.append(f"  '{glob}': {as_yaml(sparsity)}")
        path.write_text("\n".join(lines) + "\n")


def measure_sensitivity(
    trainer: Trainer,
    model: LightningModule,
    datamodule: LightningDataModule | None = None,
    *,
    monitor: str,
    mode: Mode,
    ckpt_path: str | Path | None = None,
    sparsities: Sequence[float] = SPARSITIES,
    batches: int = BATCHES,
    train_mode: bool = False,
) -> Sensitivity:
    """Prune each tensor alone to each sparsity, and validate.

    Which tensors, by which criterion and in which pattern is taken from the Trainer's
    `PruningCallback`; its own sparsities and schedule only say what is pruned at all. The model is
    unchanged afterwards, bit for bit, and every validation sees the same random numbers.

    Args:
        trainer: With a `PruningCallback` and one device.
        model: Left as it was, with the weights of ``ckpt_path``.
        datamodule: Where batches come from; by default from the model.
        monitor: Name of the metric, as validation logs it.
        mode: Whether ``"max"`` or ``"min"`` of it is good.
        ckpt_path: The checkpoint with the weights; by default those of the model as it is.
        sparsities: The grid, in (0, 1], rising.
        batches: Number of training batches that the criterion is shown, as by `prune_once`.
        train_mode: Whether modules are in train mode then.

    Returns:
        The metric by tensor and sparsity.

    Raises:
        ValueError: If an argument is out of range, the grid does not fit the pattern, there is no
            `PruningCallback`, or validation does not log ``monitor``.
    """
    recipe = recipe_of(trainer).recipe
    check_batches(batches)
    if mode not in ("max", "min"):
        raise ValueError(f"need mode 'max' or 'min', got mode={mode!r}")
    grid = _checked_grid(sparsities)
    for sparsity in grid:
        recipe.pattern.check_sparsity(sparsity)
    logged = validated(trainer, model, datamodule, checked_checkpoint(ckpt_path))
    if monitor not in logged:
        names = ", ".join(f"'{name}'" for name in logged) or "nothing"
        raise ValueError(
            f"need a metric that validation logs, got monitor={monitor!r}; it logs {names}"
        )
    scores: dict[str, Tensor] = {}

    def keep_scores(pruner: Pruner, optimizers: Any) -> None:
        for group in pruner.groups:
            for tensor in group.members:
                if tensor.is_scored:
                    found = tensor.output_first(TensorScores(tensor, recipe.criterion).whole)
                    scores[tensor.name] = found.detach().to("cpu", copy=True)

    pruner = calibrate(
        trainer, model, datamodule, batches=batches, train_mode=train_mode, then=keep_scores
    )
    groups = pruner.groups
    metrics: dict[str, dict[float, float]] = {}
    worse = min if mode == "max" else max
    # What validation warns of has been said of the dense model.
    with unchanged(model), quiet(".*"), _progress(trainer, len(groups) * len(grid)) as (bar, task):
        for group in groups:
            for sparsity in grid:
                bar.update(task, description=f"{group.name} at {sparsity:g}")
                with _pruned_alone(group, scores, sparsity):
                    metric = validated(trainer, model, datamodule)[monitor]
                for name in group.producers:  # one can make channels of several groups
                    its = metrics.setdefault(name, {})
                    its[sparsity] = worse(metric, its.get(sparsity, metric))
                bar.advance(task)
    return Sensitivity(monitor=monitor, mode=mode, dense=logged[monitor], metrics=metrics)


def check_tolerance(tolerance: float) -> None:
    """Raise ValueError if a metric cannot be that much worse."""
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise ValueError(f"need a finite tolerance >= 0, got tolerance={tolerance}")


def check_plot() -> None:
    """Raise ValueError if nothing can be drawn here."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError(
            "need matplotlib, got plot=True without it; pip install 'lightning-prune[plots]', or "
            "set plot=False"
        )


def _checked_grid(sparsities: Sequence[float]) -> tuple[float, ...]:
    grid = tuple(float(sparsity) for sparsity in sparsities)
    if not grid or any(not 0 < sparsity <= 1 for sparsity in grid):
        raise ValueError(f"need at least one sparsity in (0, 1], got sparsities={list(sparsities)}")
    if sorted(set(grid)) != list(grid):
        raise ValueError(f"need rising sparsities, got sparsities={list(sparsities)}")
    return grid


@dataclass(frozen=True, kw_only=True)
class _KnownScores(Criterion):
    """Scores that another criterion has given."""

    scores: Mapping[str, Tensor]

    def score(self, tensor: PrunedTensor, state: dict[str, Tensor]) -> Tensor:
        """Return the scores of a tensor."""
        return self.scores[tensor.name]


@contextmanager
def _pruned_alone(group: Group, scores: Mapping[str, Tensor], sparsity: float) -> Iterator[None]:
    """Zero the worst weights of one group, and give them back."""
    members = tuple(
        replace(member, mask=Mask(member.mask.kept, member.weights.cpu()), sparsity=sparsity)
        for member in group.members
    )
    trial = replace(group, members=members)
    pool = Pool(groups=(trial,), allocation=UniformAllocation())
    prune_pool(pool, sparsity, _KnownScores(scores=scores))
    weights = [member.weights for member in members]
    saved = [weight.clone() for weight in weights]
    for weight, member in zip(weights, members, strict=True):
        member.mask.apply(weight)
    try:
        yield
    finally:
        for member, value in zip(members, saved, strict=True):
            member.weights.copy_(value)


@contextmanager
def _progress(trainer: Trainer, trials: int) -> Iterator[tuple[Progress, TaskID]]:
    """Show how many validations are done, in the place of the bar of each."""
    callbacks, shown = trainer.callbacks, trainer.progress_bar_callback is not None  # type: ignore[attr-defined]
    trainer.callbacks = [c for c in callbacks if not isinstance(c, ProgressBar)]  # type: ignore[attr-defined]
    try:
        with Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            transient=True,
            disable=not shown,
        ) as bar:
            yield bar, bar.add_task("", total=trials)
    finally:
        trainer.callbacks = callbacks  # type: ignore[attr-defined]
