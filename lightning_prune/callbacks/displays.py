"""Displays: loggers that show more than numbers, each by the types of the library behind it."""

import html
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from torch import Tensor

from lightning_prune.callbacks.charts import arrange
from lightning_prune.callbacks.namespace import Trainer, is_lightning
from lightning_prune.callbacks.plots import plot_histograms
from lightning_prune.tables.table import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BINS = 64  # the default of wandb

Weights = Iterable[tuple[str, Tensor]]


class Display(ABC):
    """A logger of Lightning that shows tables and pictures.

    Args:
        logger: The logger; its methods are called in the first process only.

    Attributes:
        kind: Name of the class of the logger.
        draws_histograms: Whether histograms are pictures, which need matplotlib.
    """

    kind: ClassVar[str]
    draws_histograms: ClassVar[bool] = False

    def __init__(self, logger: Any) -> None:
        self.logger = logger

    @abstractmethod
    def write_text(self, name: str, text: str, step: int) -> None:
        """Write a text.

        Args:
            name: Name with the ending of a file: ``.md`` or ``.yaml``.
            text: The text.
            step: The step of the logger.
        """

    @abstractmethod
    def write_table(self, name: str, table: Table, step: int) -> None:
        """Write a table."""

    @abstractmethod
    def write_figure(self, name: str, figure: "Figure", step: int) -> None:
        """Write a picture."""

    @abstractmethod
    def write_histograms(self, name: str, weights: Weights, step: int) -> None:
        """Write a histogram for each tensor.

        Args:
            name: The name of all histograms together.
            weights: Names and weights of at least one tensor, each made when it is asked for.
            step: The step of the logger.
        """

    def lay_out(self, tags: list[str]) -> None:  # noqa: B027
        """Arrange charts on a page, if the logger has no charts with a color for each curve."""

    def draw(self, tag: str, values: Mapping[str, float], step: int) -> None:  # noqa: B027
        """Continue the curves of a chart, if the logger has no charts of that kind."""

    def close(self) -> None:  # noqa: B027
        """Write out what still waits."""


class TensorBoardDisplay(Display):
    """TensorBoard, which gives each run a color: so each curve of a chart is a run.

    The runs lie in folders inside of the logger's folder. Curves of the same name share a run.
    """

    kind = "TensorBoardLogger"

    def __init__(self, logger: Any) -> None:
        super().__init__(logger)
        self._writers: dict[str, Any] = {}

    def write_text(self, name: str, text: str, step: int) -> None:
        """Write to the page of texts."""
        is_yaml = name.endswith(".yaml")
        shown = f"```yaml\n{text}```" if is_yaml else text
        self.logger.experiment.add_text(PurePath(name).stem, shown, step)

    def write_table(self, name: str, table: Table, step: int) -> None:
        """Write to the page of texts."""
        self.write_text(f"{name}.md", table.to_markdown(), step)

    def write_figure(self, name: str, figure: "Figure", step: int) -> None:
        """Write to the page of images."""
        self.logger.experiment.add_figure(name, figure, step)

    def write_histograms(self, name: str, weights: Weights, step: int) -> None:
        """Write to the page of histograms."""
        for tensor, values in weights:
            self.logger.experiment.add_histogram(f"{name}/{tensor}", values, step)

    def lay_out(self, tags: list[str]) -> None:
        """Arrange the page of custom scalars."""
        page = {
            heading: {
                title: ["Multiline", [f"^{re.escape(tag)}$"]] for title, tag in charts.items()
            }
            for heading, charts in arrange(tags).items()
        }
        self.logger.experiment.add_custom_scalars(page)

    def draw(self, tag: str, values: Mapping[str, float], step: int) -> None:
        """Continue the curves, each in a run."""
        for curve, value in values.items():
            if curve not in self._writers:
                folder = os.path.join(self.logger.log_dir, curve)
                self._writers[curve] = type(self.logger.experiment)(folder)
            self._writers[curve].add_scalar(tag, value, step)

    def close(self) -> None:
        """Close the runs of the curves."""
        for writer in self._writers.values():
            writer.close()
        self._writers = {}


class WandbDisplay(Display):
    """Weights & Biases: tables, images and histograms are media of the run."""

    kind = "WandbLogger"

    def write_text(self, name: str, text: str, step: int) -> None:
        """Log the text as a panel of HTML."""
        from wandb import Html

        panel = Html(f"<pre>{html.escape(text)}</pre>")
        self.logger.log_metrics({PurePath(name).stem: panel}, step)

    def write_table(self, name: str, table: Table, step: int) -> None:
        """Log a table."""
        columns = [column.heading for column in table.columns]
        rows = [[str(cell) for cell in row] for row in table.rows]
        self.logger.log_table(name, columns=columns, data=rows, step=step)

    def write_figure(self, name: str, figure: "Figure", step: int) -> None:
        """Log an image."""
        self.logger.log_image(name, [figure], step=step)

    def write_histograms(self, name: str, weights: Weights, step: int) -> None:
        """Log the histograms of all tensors at once."""
        from wandb import Histogram

        counts = ((tensor, np.histogram(v.cpu().numpy(), bins=_BINS)) for tensor, v in weights)
        logged = {f"{name}/{tensor}": Histogram(np_histogram=count) for tensor, count in counts}
        self.logger.log_metrics(logged, step)


class MlflowDisplay(Display):
    """MLflow: texts, tables and figures are artifacts of the run.

    A table is a file of CSV, which the page of artifacts shows as a table. MLflow has no
    histograms. A figure holds those of all tensors.
    """

    kind = "MLFlowLogger"
    draws_histograms = True

    def write_text(self, name: str, text: str, step: int) -> None:
        """Log the text as a file."""
        self.logger.experiment.log_text(self.logger.run_id, text, name)

    def write_table(self, name: str, table: Table, step: int) -> None:
        """Log the table as a file."""
        self.write_text(f"{name}.csv", table.to_csv(), step)

    def write_figure(self, name: str, figure: "Figure", step: int) -> None:
        """Log a figure."""
        self.logger.experiment.log_figure(self.logger.run_id, figure, f"{name}.png")

    def write_histograms(self, name: str, weights: Weights, step: int) -> None:
        """Log a figure of all histograms, named by the step."""
        self.write_figure(f"{name}/{step:08d}", plot_histograms(weights), step)


_KINDS: tuple[type[Display], ...] = (TensorBoardDisplay, WandbDisplay, MlflowDisplay)


def log_by_tensor(logger: Any, scalars: Mapping[str, float], step: int) -> None:
    """Log the scalars of tensors, as ``sparsity/net.0.weight``, beside ``sparsity``.

    MLflow can keep a metric in a file, and then no folder may have the name of a metric. So the
    names begin with ``pruning/`` there.

    Args:
        logger: Any logger.
        scalars: The values by name.
        step: The step of the logger.
    """
    folder = "pruning/" if is_lightning(logger, MlflowDisplay.kind) else ""
    logger.log_metrics({f"{folder}{name}": value for name, value in scalars.items()}, step=step)


def find_displays(trainer: Trainer) -> list[Display]:
    """Return the loggers that show tables and pictures; in other processes than the first, none."""
    if not trainer.is_global_zero:
        return []
    return [
        kind(logger)
        for logger in trainer.loggers
        for kind in _KINDS
        if is_lightning(logger, kind.kind)
    ]
