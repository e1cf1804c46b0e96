"""Which steering a recipe asks for."""

from collections.abc import Mapping
from typing import Any

from lightning_prune.callbacks.namespace import Trainer
from lightning_prune.callbacks.rewinding import Rewinder
from lightning_prune.callbacks.steering import Steering
from lightning_prune.callbacks.tolerating import ToleranceKeeper
from lightning_prune.engine.pruner import Pruner


def choose_steering(
    pruner: Pruner, trainer: Trainer, state: Mapping[str, Any] | None
) -> Steering | None:
    """Return the steering of a training; None if the schedule alone says when to prune.

    Args:
        pruner: The engine, not yet attached.
        trainer: The Trainer, at ``on_train_start``.
        state: The restored state of the `PruningCallback`; empty or None for a new training.

    Raises:
        ValueError: If the training does not fit the recipe.
    """
    rewind, tolerance = pruner.recipe.rewind, pruner.recipe.tolerance
    if rewind is not None:
        saved = (state or {}).get(Rewinder.key, {})
        return Rewinder(rewind, pruner, trainer, state=saved, is_resumed=bool(state))
    if tolerance is not None:
        saved = (state or {}).get(ToleranceKeeper.key, {})
        return ToleranceKeeper(tolerance, pruner, trainer, state=saved)
    return None
