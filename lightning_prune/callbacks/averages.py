"""Averaged copies of the weights, which other callbacks hold."""

from collections.abc import Iterator

from torch import nn

from lightning_prune.callbacks.namespace import Trainer


def find_averages(trainer: Trainer) -> Iterator[nn.Module]:
    """Yield the averaged copies of other callbacks."""
    for callback in trainer.callbacks:  # type: ignore[union-attr]
        average = getattr(callback, "_average_model", None)
        if average is not None:
            yield average
