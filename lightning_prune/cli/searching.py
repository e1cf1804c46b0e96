"""The subcommand ``search``."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import RenderableType

from lightning_prune.callbacks.namespace import LightningDataModule, LightningModule, Trainer
from lightning_prune.cli.example import find_example
from lightning_prune.post_training.calibration import find_pruning_callback
from lightning_prune.post_training.search_report import CHECKPOINT, check_search_folder
from lightning_prune.post_training.searching import search_sparsities
from lightning_prune.post_training.sensitivity_report import check_plot
from lightning_prune.recipe.budgets import Budget


def search_and_write(
    trainer: Trainer,
    model: LightningModule,
    datamodule: LightningDataModule | None,
    *,
    folder: Path,
    plot: bool,
    say: Callable[[RenderableType], None],
    budget: Budget | None,
    **options: Any,
) -> None:
    """Search, print the result, and write the files.

    Args:
        trainer: Validates.
        model: The model of the config.
        datamodule: The data; None for those of the model.
        folder: The folder to write to.
        plot: Whether to draw the plot.
        say: Prints a text or a table.
        budget: The budget of the user.
        options: Further arguments of `search_sparsities`.
    """
    if plot:
        check_plot()
    check_search_folder(folder, plot=plot)
    example = find_pruning_callback(trainer).example
    if example is None and budget is not None and budget.needs_example:
        example = find_example(trainer, model, datamodule, 1)
    found = search_sparsities(
        trainer,
        model,
        datamodule,
        budget=budget,
        folder=folder,
        output=folder / CHECKPOINT,
        example=example,
        **options,
    )
    say(found.table())
    written = [*found.write(folder, plot=plot), folder / CHECKPOINT]
    say(f"written: {', '.join(map(str, written))}")
