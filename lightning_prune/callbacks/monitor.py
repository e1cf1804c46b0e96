"""Sparsity curves, plots and tables for all loggers of the Trainer."""

import importlib.util
import warnings
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from rich.text import Text

from lightning_prune.arguments.checks import check_arguments
from lightning_prune.arguments.words import suggest
from lightning_prune.callbacks.beside import find_pruner
from lightning_prune.callbacks.clock import read_logged_step
from lightning_prune.callbacks.namespace import (
    LightningCallback,
    LightningModule,
    Trainer,
    is_lightning,
)
from lightning_prune.engine.overview import pruning_table
from lightning_prune.models.calls import refuse_missing_example
from lightning_prune.models.examples import CallRecorder
from lightning_prune.tables.sheet import Sheet
from lightning_prune.tables.table import Column, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lightning_prune.reporting.records import Report


class SparsityMonitor(LightningCallback):
    """Logs the sparsity of a `PruningCallback` over the training, overall and by tensor.

    At each mask update the monitor logs ``sparsity/…``, ``sparsity_target/…`` and ``mask_change/…``
    (the fraction of the mask that the update changed) for every tensor and ``overall``. With
    channels, the monitor logs each group under the name of the first weight that makes the
    channels. TensorBoard also gets the recipe as YAML, weight histograms and a Custom Scalars
    layout. When training ends, it gets a table and a plot of the quality over the sparsity, and
    over each cost that a budget limits.

    Args:
        quality: Name of a metric that validation logs (without validation: training), such as
            ``"val_acc"``. The monitor records the metric at each sparsity. The plot needs the extra
            ``lightning-prune[plots]``.
        histograms_every: Number of epochs between weight histograms; null for no histograms.
        report: Whether to measure, when training ends, the size, multiplications, memory and
            latency that pruning has saved (see `lightning_prune.report`). The measurement takes
            seconds, or longer for a large model, and other processes wait. All loggers get scalars,
            and TensorBoard's text page gets tables. The input is the model's
            ``example_input_array``; without it, a single sample of the first call of ``forward``
            during validation.

    Attributes:
        quality_curve: The pairs of sparsity and quality, in the order of recording.
        cost_curves: The pairs of cost and quality by unit, for each budget; a cost is a fraction of
            the dense cost.

    Raises:
        ValueError: If ``histograms_every`` is less than 1.
    """

    @check_arguments
    def __init__(
        self,
        quality: str | None = None,
        histograms_every: int | None = 5,
        report: bool = False,
    ) -> None:
        if histograms_every is not None and histograms_every < 1:
            raise ValueError(
                f"need histograms_every >= 1 or null, got histograms_every={histograms_every}"
            )
        self.quality = quality
        self.histograms_every = histograms_every
        self.report = report
        self.quality_curve: list[tuple[float, float]] = []
        self.cost_curves: dict[str, list[tuple[float, float]]] = {}
        self._logged_updates = 0
        self._recorder: CallRecorder | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Start a new curve; refuse a Trainer without pruning, or a plot without matplotlib."""
        if stage != "fit":
            return
        find_pruner(self, trainer)
        self.quality_curve, self.cost_curves = [], {}
        self._recorder = None
        if (
            self.quality
            and _find_boards(trainer)
            and importlib.util.find_spec("matplotlib") is None
        ):
            raise ModuleNotFoundError(
                f"need matplotlib to draw the plot in TensorBoard, got quality={self.quality!r} "
                "without matplotlib; run pip install 'lightning-prune[plots]'"
            )

    def state_dict(self) -> dict[str, Any]:
        """Return the recorded qualities."""
        return {
            "quality_curve": [list(point) for point in self.quality_curve],
            "cost_curves": {
                unit: [list(point) for point in curve] for unit, curve in self.cost_curves.items()
            },
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the recorded qualities."""
        self.quality_curve = _read_points(state_dict["quality_curve"])
        curves = state_dict.get("cost_curves", {})
        self.cost_curves = {unit: _read_points(points) for unit, points in curves.items()}

    def _repr_html_(self) -> str:
        curves = {"sparsity": self.quality_curve, **self.cost_curves}
        if self.quality is None or not self.quality_curve:
            return Sheet([Text("No quality was recorded.")]).to_html()
        tables = [
            Table(
                title=f"{self.quality} over {name}",
                columns=[Column(heading=name), Column(heading=self.quality)],
                rows=[[f"{value:.4f}" for value in point] for point in curve],
            )
            for name, curve in curves.items()
        ]
        return Sheet(tables).to_html()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lay out the Custom Scalars page, and write the recipe."""
        self._logged_updates = 0
        recipe = find_pruner(self, trainer).recipe
        quality = f"^{self.quality}$" if self.quality else ".*acc.*"
        charts = {
            "target and achieved": ["Multiline", ["^sparsity$", "^sparsity_target$"]],
            "per layer": ["Multiline", ["^sparsity/(?!overall$)"]],
            "accuracy and sparsity": ["Multiline", [quality, "^sparsity$"]],
        }
        for budget in recipe.budgets:
            unit = budget.unit
            charts[f"{unit} and target"] = ["Multiline", [f"^{unit}$", f"^{unit}_target$"]]
        for board in _find_boards(trainer):
            board.experiment.add_custom_scalars({"pruning": charts})
            text = f"```yaml\n{recipe.to_yaml()}```"
            board.experiment.add_text("recipe", text, read_logged_step(trainer))

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Log the sparsity of each tensor, or channel group, after each update of the masks."""
        pruner = find_pruner(self, trainer)
        if pruner.updates == self._logged_updates:
            return
        self._logged_updates = pruner.updates
        size = sum(group.size for group in pruner.groups)
        changed = sum(pruner.changed.get(group.name, 0.0) * group.size for group in pruner.groups)
        scalars = {
            "sparsity/overall": pruner.sparsity,
            "sparsity_target/overall": pruner.sparsity_target,
            "mask_change/overall": changed / size,
        }
        for group in pruner.groups:
            scalars[f"sparsity/{group.name}"] = 1 - group.kept / group.size
            scalars[f"sparsity_target/{group.name}"] = pruner.target(group)
            scalars[f"mask_change/{group.name}"] = pruner.changed.get(group.name, 0.0)
        for logger in trainer.loggers:
            logger.log_metrics(scalars, step=read_logged_step(trainer))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the first call of the model, as an example for the report."""
        needs_example = self.report and trainer.is_global_zero and trainer.state.fn == "fit"
        if needs_example and pl_module.example_input_array is None and self._recorder is None:
            self._recorder = CallRecorder(pl_module, limit=1, samples=1)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the quality at the validated sparsity."""
        self._record_quality(trainer, is_validated=True)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw histograms if an epoch needs them; record the quality if no validation runs."""
        if not trainer.enable_validation:
            self._record_quality(trainer, is_validated=False)
        if self.histograms_every and (trainer.current_epoch + 1) % self.histograms_every == 0:
            self._draw_histograms(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the table and the plot."""
        for board in _find_boards(trainer):
            step = read_logged_step(trainer)
            board.experiment.add_text(
                "sparsity", pruning_table(find_pruner(self, trainer)).to_markdown(), step
            )
            if self.quality and self.quality_curve:
                curves = {"sparsity": self.quality_curve, **self.cost_curves}
                for name, curve in curves.items():
                    figure = _plot_quality(self.quality, name, curve)
                    board.experiment.add_figure(f"{self.quality}_over_{name}", figure, step)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the report, after all other callbacks have changed the weights."""
        if self.report and trainer.is_global_zero:
            self._log_report(trainer, pl_module)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Stop recording the input."""
        if self._recorder is not None:
            self._recorder.stop()

    def _log_report(self, trainer: Trainer, pl_module: LightningModule) -> None:
        from lightning_prune.reporting.report import report

        example = pl_module.example_input_array
        if self._recorder is not None:
            self._recorder.stop()
            example = next(iter(self._recorder.calls), None)
            self._recorder = None
        try:
            if example is None:
                refuse_missing_example(pl_module, "no call of forward in validation_step")
            measured = report(pl_module, example, progress=False)
        except Exception as error:  # A failing report must not end the training.
            warnings.warn(f"no report: {error}", stacklevel=2)
            return
        for board in _find_boards(trainer):
            board.experiment.add_text("report", measured.to_markdown(), read_logged_step(trainer))
        for logger in trainer.loggers:
            logger.log_metrics(_collect_scalars(measured), step=read_logged_step(trainer))

    def _draw_histograms(self, trainer: Trainer) -> None:
        for board in _find_boards(trainer):
            for tensor in find_pruner(self, trainer).tensors:
                if tensor.is_scored:
                    kept = tensor.weights[tensor.mask.kept].float()
                    board.experiment.add_histogram(
                        f"kept_weights/{tensor.name}", kept, read_logged_step(trainer)
                    )

    def _record_quality(self, trainer: Trainer, *, is_validated: bool) -> None:
        if self.quality is None or trainer.state.fn != "fit":
            return
        if self.quality not in trainer.callback_metrics:
            when = "validation" if is_validated else "training"
            raise ValueError(
                f"need the name of a metric that {when} logs, got quality={self.quality!r}; "
                f"{when} logs {sorted(trainer.callback_metrics)}"
                f"{suggest(self.quality, trainer.callback_metrics)}"
            )
        if not trainer.sanity_checking:
            value = float(trainer.callback_metrics[self.quality])
            pruner = find_pruner(self, trainer)
            self.quality_curve.append((pruner.sparsity, value))
            for expense in pruner.spending:
                self.cost_curves.setdefault(expense.unit, []).append((expense.share, value))


def _find_boards(trainer: Trainer) -> list[Any]:
    """Return the TensorBoard loggers; ranks other than the first get an empty list."""
    if not trainer.is_global_zero:
        return []
    return [logger for logger in trainer.loggers if is_lightning(logger, "TensorBoardLogger")]


def _collect_scalars(measured: "Report") -> dict[str, float]:
    """Return the costs as fractions of the costs of the dense model, and the speedups."""
    total = measured.total
    scalars = {"report/compressed_bytes": total.compressed_bytes / max(total.dense_bytes, 1)}
    if total.dense_macs:
        scalars["report/effective_macs"] = total.effective_macs / total.dense_macs
    for latency in measured.latencies:
        name = latency.runtime.lower().replace(" ", "_")
        scalars[f"report/speedup_{name}"] = latency.speedup
    return scalars


def _read_points(points: Iterable[Sequence[float]]) -> list[tuple[float, float]]:
    return [(point[0], point[1]) for point in points]


def _plot_quality(quality: str, name: str, curve: list[tuple[float, float]]) -> "Figure":
    """Return a plot over the sparsity, or over a cost as a fraction of the dense cost."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(*zip(*curve, strict=True), marker="o", markersize=4)
    axes.set(xlabel=name, ylabel=quality, title=f"{quality} over {name}", xlim=(0, 1))
    axes.grid(alpha=0.3)
    return figure
