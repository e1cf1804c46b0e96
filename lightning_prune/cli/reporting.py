"""The subcommand ``report``."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

from rich.console import RenderableType

from lightning_prune.callbacks.namespace import LightningDataModule, LightningModule, Trainer
from lightning_prune.callbacks.printing import shows_progress
from lightning_prune.cli.example import find_example
from lightning_prune.cli.loading import load_weights
from lightning_prune.deploy.checkpoints import read_lightning_checkpoint
from lightning_prune.post_training.calibration import check_one_process
from lightning_prune.reporting.records import check_output
from lightning_prune.reporting.report import report


def report_and_write(
    trainer: Trainer,
    model: LightningModule,
    datamodule: LightningDataModule | None,
    *,
    ckpt_path: str,
    batch_size: int,
    output: Path | None,
    say: Callable[[RenderableType], None],
    **options: Any,
) -> None:
    """Measure what pruning has saved, print the report, and write it.

    Args:
        trainer: Gives the device, and validates where the model has no example.
        model: The model of the config.
        datamodule: The data; None for those of the model.
        ckpt_path: The checkpoint.
        batch_size: Number of samples of a validation batch.
        output: The file or folder to write to; None for no file.
        say: Prints a text or a table.
        options: Further arguments of `report`.
    """
    if batch_size < 1:
        raise ValueError(f"need batch_size >= 1, got batch_size={batch_size}")
    if output is not None:
        check_output(output)
    check_one_process(trainer, "to report")
    read_lightning_checkpoint(ckpt_path)
    dense = deepcopy(model)
    is_shrunk = load_weights(model, ckpt_path)
    example = find_example(trainer, model, datamodule, batch_size)
    found = report(
        model.to(trainer.strategy.root_device),
        example,
        dense=dense if is_shrunk else None,
        progress=shows_progress(trainer),
        **options,
    )
    say(found.table())
    if output is not None:
        say(f"written: {', '.join(map(str, found.write(output)))}")
