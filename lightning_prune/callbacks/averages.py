"""Averaged copies of the weights, which other callbacks hold."""

from lightning.pytorch import Trainer
from torch import nn


def find_averages(trainer: Trainer) -> list[nn.Module]:
    """Return the averaged copies of other callbacks."""
    averages = [getattr(each, "_average_model", None) for each in trainer.callbacks]  # type: ignore[attr-defined]
    return [average for average in averages if average is not None]
