"""Sparsity curves, plots and tables for all loggers of the Trainer."""

import warnings
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from rich.text import Text

from lightning_prune.arguments.checks import check_arguments
from lightning_prune.arguments.words import suggest
from lightning_prune.callbacks.beside import find_pruner
from lightning_prune.callbacks.charts import name_quality_chart, read_charts
from lightning_prune.callbacks.clock import read_logged_step
from lightning_prune.callbacks.displays import Display, find_displays, log_by_tensor
from lightning_prune.callbacks.namespace import LightningCallback, LightningModule, Trainer
from lightning_prune.callbacks.plots import plot_quality, refuse_missing_matplotlib
from lightning_prune.engine.overview import pruning_table
from lightning_prune.models.calls import refuse_missing_example
from lightning_prune.models.examples import CallRecorder
from lightning_prune.tables.sheet import Sheet
from lightning_prune.tables.table import Column, Table

if TYPE_CHECKING:
    from lightning_prune.reporting.records import Report


class SparsityMonitor(LightningCallback):
    """Logs the sparsity of a `PruningCallback` over the training, overall and by tensor.

    At each mask update the monitor logs ``sparsity/…``, ``sparsity_target/…`` and ``mask_change/…``
    (the fraction of the mask that the update changed) for every tensor and ``overall``. With
    channels, the monitor logs each group under the name of the first weight that makes the
    channels. TensorBoard, Weights & Biases and MLflow also get the recipe as YAML and weight
    histograms. When training ends, they get a table and a plot of the quality over the sparsity,
    and over each cost that a budget limits. In TensorBoard the page of custom scalars shows charts
    with a color for each curve: every curve is a run, in a folder inside of the logger's folder.

    Args:
        quality: Name of a metric that validation logs (without validation: training), such as
            ``"val_acc"``. The monitor records the metric at each sparsity. The plot needs the extra
            ``lightning-prune[plots]``.
        histograms_every: Number of epochs between weight histograms; null for no histograms. In
            MLflow they are pictures, which need the same extra.
        report: Whether to measure, when training ends, the size, multiplications, memory and
            latency that pruning has saved (see `lightning_prune.report`). The measurement takes
            seconds, or longer for a large model, and other processes wait. All loggers get scalars,
            and those that show texts get tables. The input is the model's ``example_input_array``;
            without it, a single sample of the first call of ``forward`` during validation.

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
        self._displays: list[Display] = []
        self._has_layout = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Start a new curve; refuse a Trainer without pruning, or a plot without matplotlib."""
        if stage != "fit":
            return
        find_pruner(self, trainer)
        self.quality_curve, self.cost_curves = [], {}
        self._recorder = None
        self._displays, self._has_layout = find_displays(trainer), False
        if self.quality and self._displays:
            refuse_missing_matplotlib("the plot", f"quality={self.quality!r}", "quality=null")
        if self.histograms_every and any(each.draws_histograms for each in self._displays):
            found = f"histograms_every={self.histograms_every} with MLflow"
            refuse_missing_matplotlib("histograms", found, "histograms_every=null")

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
        """Write the recipe."""
        self._logged_updates = 0
        step, recipe = read_logged_step(trainer), find_pruner(self, trainer).recipe
        for display in self._displays:
            display.write_text("recipe.yaml", recipe.to_yaml(), step)

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
        targets = pruner.targets
        for group in pruner.groups:
            scalars[f"sparsity/{group.name}"] = 1 - group.kept / group.size
            scalars[f"sparsity_target/{group.name}"] = targets[group.name]
            scalars[f"mask_change/{group.name}"] = pruner.changed.get(group.name, 0.0)
        for logger in trainer.loggers:
            log_by_tensor(logger, scalars, read_logged_step(trainer))
        self._draw_charts(trainer)

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
        step = read_logged_step(trainer)
        curves = {"sparsity": self.quality_curve, **self.cost_curves}
        for display in self._displays:
            display.write_table("sparsity", pruning_table(find_pruner(self, trainer)), step)
            for name, curve in curves.items():
                if self.quality and curve:
                    figure = plot_quality(self.quality, name, curve)
                    display.write_figure(f"{self.quality}_over_{name}", figure, step)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the report, after all other callbacks have changed the weights."""
        if self.report and trainer.is_global_zero:
            self._log_report(trainer, pl_module)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Stop recording the input, and write out the charts."""
        if self._recorder is not None:
            self._recorder.stop()
        self._close_displays()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write out the charts."""
        self._close_displays()

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
        for display in self._displays:
            display.write_text("report.md", measured.to_markdown(), read_logged_step(trainer))
        for logger in trainer.loggers:
            logger.log_metrics(_collect_scalars(measured), step=read_logged_step(trainer))

    def _draw_charts(self, trainer: Trainer) -> None:
        """Continue the curves of all charts, which are laid out once the layers are known."""
        if not self._displays:
            return
        charts = read_charts(find_pruner(self, trainer))
        tags = [name_quality_chart(self.quality)] if self.quality else []
        for display in self._displays:
            if not self._has_layout:
                display.lay_out([*tags, *charts])
            for tag, values in charts.items():
                display.draw(tag, values, read_logged_step(trainer))
        self._has_layout = True

    def _draw_histograms(self, trainer: Trainer) -> None:
        step = read_logged_step(trainer)
        scored = [tensor for tensor in find_pruner(self, trainer).tensors if tensor.is_scored]
        for display in self._displays if scored else ():
            kept = ((each.name, each.weights[each.mask.kept].float()) for each in scored)
            display.write_histograms("kept_weights", kept, step)

    def _close_displays(self) -> None:
        for display in self._displays:
            display.close()
        self._displays = []

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
            for display in self._displays:
                pair = {self.quality: value, "sparsity": pruner.sparsity}
                display.draw(name_quality_chart(self.quality), pair, read_logged_step(trainer))
            for expense in pruner.spending:
                self.cost_curves.setdefault(expense.unit, []).append((expense.share, value))


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
