"""The engine attached to the model and the optimizers of a Trainer."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from lightning_prune.callbacks.chosen_steering import choose_steering
from lightning_prune.callbacks.clock import make_trainer_clock
from lightning_prune.callbacks.cost_check import CostCheck
from lightning_prune.callbacks.namespace import LightningModule, Trainer
from lightning_prune.callbacks.printing import shows_progress
from lightning_prune.callbacks.saved_steps import warn_of_saves_at_epoch_ends
from lightning_prune.callbacks.skipped_steps import make_trial_check
from lightning_prune.callbacks.steering import Steering
from lightning_prune.engine.pruner import Pruner
from lightning_prune.recipe.clocks import Clock
from lightning_prune.recipe.schedules import Schedule


def attach_to_trainer(
    pruner: Pruner,
    trainer: Trainer,
    model: LightningModule,
    *,
    callback: object,
    example: Any,
    state: Mapping[str, Any] | None,
) -> tuple[Steering | None, CostCheck]:
    """Attach the engine with the clocks of a Trainer, and the state of a checkpoint.

    Args:
        pruner: The engine.
        trainer: The Trainer, at ``on_train_start`` or in the first step.
        model: The model.
        callback: The callback that prunes.
        example: The arguments of ``forward``; None for the ``example_input_array``.
        state: The restored state of the callback; empty or None for a new training.

    Returns:
        The steering that the recipe asks for, if it asks for steering, and the check of costs.
    """
    clocks: Callable[[Schedule], Clock]
    clocks = partial(make_trainer_clock, trainer, is_resumed=bool(state))
    steering = choose_steering(pruner, trainer, state)
    if steering is not None:
        clocks = steering.make_clock
    if state:
        pruner.load_state_dict(state)
    costs = CostCheck(pruner, trainer, model, example)
    pruner.attach(
        model,
        trainer.optimizers,
        clocks=clocks,
        is_trial_step=make_trial_check(callback, trainer),
        example=example,
        latencies=costs.find_table,
        progress=shows_progress(trainer),
    )
    if steering is not None:
        steering.begin()
    warn_of_saves_at_epoch_ends(trainer)
    return steering, costs
