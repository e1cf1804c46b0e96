"""The subcommand ``reestimate``."""

from collections.abc import Callable

from rich.console import RenderableType
from torch import Tensor

from lightning_prune.callbacks.namespace import LightningDataModule, LightningModule, Trainer
from lightning_prune.cli.loading import choose_output, load_weights
from lightning_prune.cli.validation import validate_if_possible
from lightning_prune.deploy.checkpoints import read_lightning_checkpoint, write_checkpoint
from lightning_prune.models.statistics import find_statistics
from lightning_prune.post_training.statistics import reestimate_statistics
from lightning_prune.reporting.pruning import change_table


def reestimate_and_write(
    trainer: Trainer,
    model: LightningModule,
    datamodule: LightningDataModule | None,
    *,
    ckpt_path: str,
    output: str | None,
    say: Callable[[RenderableType], None],
    statistics: int,
    train_mode: bool,
) -> None:
    """Measure new statistics, and write a checkpoint that differs in nothing else.

    Args:
        trainer: Validates before and after.
        model: The model of the config.
        datamodule: The data; None for those of the model.
        ckpt_path: The checkpoint.
        output: The checkpoint to write; None for a file beside the other.
        say: Prints a text or a table.
        statistics: Largest number of training batches.
        train_mode: Whether all modules are in train mode during these batches.
    """
    target = choose_output(ckpt_path, output, "reestimate")
    load_weights(model, ckpt_path)
    _refuse_other_models(model)
    before = validate_if_possible(trainer, model, datamodule)
    found = reestimate_statistics(
        trainer, model, datamodule, statistics=statistics, train_mode=train_mode
    )
    checkpoint = read_lightning_checkpoint(ckpt_path)
    state = {**checkpoint["state_dict"], **_find_buffers(model)}
    write_checkpoint(checkpoint | {"state_dict": state}, target)
    say(str(found))
    if before:
        after = validate_if_possible(trainer, model, datamodule)
        say(change_table(before, after, "reestimated"))
    say(f"written: {target}")


def _refuse_other_models(model: LightningModule) -> None:
    if not find_statistics(model):
        raise ValueError(
            "need batch normalizations with running statistics, got none in "
            f"{type(model).__name__}; other models need no new statistics"
        )


def _find_buffers(model: LightningModule) -> dict[str, Tensor]:
    """Return the running statistics under each name that a state gives them."""
    norms = set(find_statistics(model))
    return {
        f"{name}.{key}": value.cpu()
        for name, module in model.named_modules(remove_duplicate=False)
        if module in norms
        for key, value in module.named_buffers(recurse=False)
    }
