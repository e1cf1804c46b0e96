"""The subcommand ``prune``."""

from collections.abc import Callable
from typing import Any

from rich.console import RenderableType

from lightning_prune.callbacks.namespace import LightningDataModule, LightningModule, Trainer
from lightning_prune.cli.loading import choose_output
from lightning_prune.post_training.calibration import check_batches
from lightning_prune.post_training.one_shot import prune_once


def prune_and_write(
    trainer: Trainer,
    model: LightningModule,
    datamodule: LightningDataModule | None,
    *,
    ckpt_path: str,
    output: str | None,
    say: Callable[[RenderableType], None],
    batches: int,
    **options: Any,
) -> None:
    """Prune in one update, validate before and after, and write a checkpoint.

    Args:
        trainer: Validates.
        model: The model of the config.
        datamodule: The data; None for those of the model.
        ckpt_path: The checkpoint.
        output: The checkpoint to write; None for a file beside the other.
        say: Prints a text or a table.
        batches: Number of training batches.
        options: Further arguments of `prune_once`.
    """
    check_batches(batches)
    target = choose_output(ckpt_path, output, "prune")
    prune_once(
        trainer, model, datamodule, ckpt_path=ckpt_path, output=target, batches=batches, **options
    )
    say(f"written: {target}")
