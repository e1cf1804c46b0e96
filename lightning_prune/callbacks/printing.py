"""The table of a pruning and the bars of long work, in the terminal of a Trainer."""

from lightning_prune.callbacks.namespace import Trainer, is_lightning
from lightning_prune.engine.pruner import Pruner
from lightning_prune.reporting.pruning import TableSize, print_pruning_table


def shows_progress(trainer: Trainer) -> bool:
    """Whether a Trainer shows progress bars, so that ours are welcome, too."""
    return trainer.progress_bar_callback is not None


def print_table(trainer: Trainer, pruner: Pruner, title: str, size: TableSize) -> None:
    """Print the table on the first rank, unless the Trainer prints no summary of the model.

    Args:
        trainer: The Trainer.
        pruner: An attached engine.
        title: The line above the table.
        size: How much of the table is printed.
    """
    summaries = [each for each in trainer.callbacks if is_lightning(each, "ModelSummary")]  # type: ignore[union-attr]
    if summaries:
        print_pruning_table(pruner, title, size, is_first=trainer.is_global_zero)
