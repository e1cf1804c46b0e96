"""The progress of a Trainer, in the unit of a schedule."""

import math

from lightning_prune.callbacks.namespace import Trainer, is_lightning
from lightning_prune.engine.host import Progress, make_host_clock
from lightning_prune.recipe.clocks import Clock
from lightning_prune.recipe.schedules import Schedule


def make_trainer_clock(trainer: Trainer, schedule: Schedule, *, is_resumed: bool) -> Clock:
    """Return the clock of a Trainer; at the last planned step it returns the schedule's end.

    The clock returns the completed steps that it is called with. It derives epochs and fractions
    from Lightning's progress: completed batches over planned batches, or
    ``global_step / max_steps`` where ``max_steps`` ends training first.

    Args:
        trainer: The Trainer, at or after ``on_train_start``.
        schedule: The schedule whose unit is read.
        is_resumed: Whether the optimizer's count continues from a checkpoint; else it starts at 0.

    Raises:
        ValueError: If the unit is a fraction and the end of training is unknown, or the plan ends
            before ``end``.
    """
    # A trial run compresses the ramp, in any unit, into a few batches.
    if trainer.fast_dev_run:  # type: ignore[union-attr]
        return lambda done: schedule.end * _measure_fraction(trainer)
    return make_host_clock(TrainerProgress(trainer, is_resumed=is_resumed), schedule)


class TrainerProgress(Progress):
    """The progress of a Trainer of Lightning.

    Args:
        trainer: The Trainer, at or after ``on_train_start``.
        is_resumed: Whether the optimizer's count continues from a checkpoint; else it starts at 0.
    """

    def __init__(self, trainer: Trainer, *, is_resumed: bool) -> None:
        self._trainer = trainer
        self._planned_steps = _predict_steps(trainer, is_resumed=is_resumed)

    @property
    def is_last(self) -> bool:
        """Whether no optimizer steps again after the present batch."""
        return _is_last(self._trainer)

    @property
    def fraction(self) -> float:
        """Completed batches over planned batches, or ``global_step / max_steps``."""
        return _measure_fraction(self._trainer)

    @property
    def epochs(self) -> float:
        """The epochs that are done."""
        return _count_epochs(self._trainer)

    @property
    def planned_epochs(self) -> float:
        """The largest number of epochs that the limits of the Trainer allow."""
        return _predict_epochs(self._trainer)

    @property
    def planned_steps(self) -> int | None:
        """The final step count of the optimizer."""
        return self._planned_steps

    @property
    def unknown_end(self) -> str:
        """The limits of the Trainer, if they leave the end unknown."""
        trainer = self._trainer
        if _has_known_end(trainer):
            return ""
        return (
            f"max_epochs={trainer.max_epochs}, max_steps={trainer.max_steps} and "
            f"{trainer.num_training_batches} batches an epoch; set max_steps (or max_epochs, for "
            "data with a length)"
        )


def predict_moment(trainer: Trainer, schedule: Schedule, step: int, done: int) -> float | None:
    """Return the planned moment of a later step; None if Lightning cannot know it.

    Args:
        trainer: The Trainer, at ``on_train_start``.
        schedule: The schedule whose unit the moment has.
        step: The step of the optimizer.
        done: Number of completed steps of the optimizer.
    """
    if trainer.fast_dev_run or not trainer.lightning_module.automatic_optimization:  # type: ignore[union-attr]
        return None
    if schedule.unit == "step":
        return float(step)
    global_step, batches = trainer.global_step + step - done, trainer.num_training_batches
    epochs = 0.0
    if not math.isinf(batches):
        epochs = global_step / math.ceil(batches / trainer.accumulate_grad_batches)
    if schedule.unit == "epoch":
        return epochs
    by_steps = global_step / trainer.max_steps if trainer.max_steps > 0 else 0.0
    return max(epochs / _find_max_epochs(trainer), by_steps)


def read_logged_step(trainer: Trainer) -> int:
    """Return the step that Lightning writes beside a logged metric."""
    return trainer.fit_loop.epoch_loop._batches_that_stepped


def _measure_fraction(trainer: Trainer) -> float:
    if _is_last(trainer):
        return 1.0
    by_epochs = _count_epochs(trainer) / _find_max_epochs(trainer)
    if trainer.max_steps > 0:  # Both grow evenly; the larger fraction ends first.
        return max(trainer.global_step / trainer.max_steps, by_epochs)
    return by_epochs


def _count_epochs(trainer: Trainer) -> float:
    batches = trainer.fit_loop.batch_idx
    if trainer.lightning_module.automatic_optimization:  # The count at the last step.
        batches -= batches % trainer.accumulate_grad_batches
    return trainer.current_epoch + batches / trainer.num_training_batches


def _is_last(trainer: Trainer) -> bool:
    """Whether no optimizer steps again after the present batch."""
    last_batch = trainer.is_last_batch  # Known also for data without a length.
    last_batch |= trainer.fit_loop.batch_idx + 1 >= trainer.num_training_batches
    if last_batch and trainer.current_epoch + 1 >= _find_max_epochs(trainer):
        return True
    return 0 < trainer.max_steps <= trainer.global_step + len(trainer.optimizers)


def _find_max_epochs(trainer: Trainer) -> float:
    epochs = math.inf if trainer.max_epochs in (None, -1) else float(trainer.max_epochs or 0)
    for callback in trainer.callbacks:  # type: ignore[union-attr]
        # The extra epoch of this callback only updates batch normalization.
        if is_lightning(callback, "StochasticWeightAveraging"):
            return min(epochs, float(callback.swa_end + 1))
    return epochs


def _has_known_end(trainer: Trainer) -> bool:
    by_epochs = math.isfinite(_find_max_epochs(trainer) * trainer.num_training_batches)
    return by_epochs or trainer.max_steps > 0


def _predict_epochs(trainer: Trainer) -> float:
    """Return the largest number of epochs that the limits of the Trainer allow."""
    batches = trainer.num_training_batches
    is_automatic = trainer.lightning_module.automatic_optimization
    if trainer.max_steps <= 0 or not is_automatic or math.isinf(batches):
        return _find_max_epochs(trainer)
    steps_an_epoch = math.ceil(batches / trainer.accumulate_grad_batches)
    return min(_find_max_epochs(trainer), trainer.max_steps / steps_an_epoch)


def _predict_steps(trainer: Trainer, *, is_resumed: bool) -> int | None:
    """Return the final step count of the optimizer; None if Lightning cannot know it."""
    steps = trainer.estimated_stepping_batches
    if not trainer.lightning_module.automatic_optimization or not 0 < steps < math.inf:
        return None
    return int(steps) if is_resumed else int(steps) - trainer.global_step
