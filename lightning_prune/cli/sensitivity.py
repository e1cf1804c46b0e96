"""The subcommand ``sensitivity``."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import RenderableType

from lightning_prune.callbacks.namespace import LightningDataModule, LightningModule, Trainer
from lightning_prune.post_training.sensitivity import measure_sensitivity
from lightning_prune.post_training.sensitivity_report import (
    check_folder,
    check_plot,
    check_tolerance,
)


def measure_and_write(
    trainer: Trainer,
    model: LightningModule,
    datamodule: LightningDataModule | None,
    *,
    folder: Path,
    tolerance: float,
    plot: bool,
    say: Callable[[RenderableType], None],
    **options: Any,
) -> None:
    """Measure, print the table, and write the files.

    Args:
        trainer: Validates.
        model: The model of the config.
        datamodule: The data; None for those of the model.
        folder: The folder to write to.
        tolerance: Largest allowed loss, for the sparsities that are written.
        plot: Whether to draw the plot.
        say: Prints a text or a table.
        options: Further arguments of `measure_sensitivity`.
    """
    check_tolerance(tolerance)
    if plot:
        check_plot()
    check_folder(folder, plot=plot)
    sensitivity = measure_sensitivity(trainer, model, datamodule, **options)
    say(sensitivity.table(tolerance))
    written = sensitivity.write(folder, tolerance, plot=plot)
    say(f"written: {', '.join(map(str, written))}")
