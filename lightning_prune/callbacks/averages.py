"""Averaged copies of the weights, which other callbacks hold."""

from torch import nn

from lightning_prune.callbacks.namespace import Trainer


def find_averages(trainer: Trainer) -> list[nn.Module]:
    """Return the averaged copies of other callbacks."""
    averages = [getattr(each, "_average_model", None) for each in trainer.callbacks]  # type: ignore[union-attr]
    return [average for average in averages if average is not None]
