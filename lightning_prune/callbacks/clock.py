"""How far the training of a Trainer has come, in the unit of a schedule."""

import math

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging

from lightning_prune.recipe.clocks import Clock, make_clock
from lightning_prune.recipe.schedules import Schedule


def trainer_clock(trainer: Trainer, schedule: Schedule, *, resumed: bool) -> Clock:
    """Return the clock of a Trainer; its last planned step serves the schedule's end.

    Steps are the owner's own count. Epochs and fractions are read off Lightning's progress: batches
    done over batches planned, or ``global_step / max_steps`` where that ends first.

    Args:
        trainer: The Trainer, at or after ``on_train_start``.
        schedule: The schedule whose unit is read.
        resumed: Whether the owner's count goes on from a checkpoint; else it starts at 0.

    Raises:
        ValueError: If a fraction of an unknown plan is asked for, or the plan ends before ``end``.
    """
    # A ramp in any unit is squeezed into the few batches of a trial run.
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        return lambda done: schedule.end * _fraction(trainer)
    if schedule.unit == "step":
        planned_steps = _planned_steps(trainer, resumed=resumed)
        by_steps = make_clock(schedule, planned_steps, None)
        if planned_steps is None:
            return by_steps
        # With steps that a scaler has skipped, the last one has a lower number than planned.
        return lambda done: schedule.end if _is_last(trainer) else by_steps(done)
    if schedule.unit == "epoch":
        planned = _planned_epochs(trainer)
        if schedule.end > planned:
            raise ValueError(
                f"need end within the {planned:g} planned epochs, got end={schedule.end} with "
                "unit='epoch'"
            )
        return lambda done: schedule.end if _is_last(trainer) else _epochs(trainer)
    if not _has_known_end(trainer):
        raise ValueError(
            "need a known end of training for a schedule with unit='fraction', got "
            f"max_epochs={trainer.max_epochs}, max_steps={trainer.max_steps} and "
            f"{trainer.num_training_batches} batches an epoch; set max_steps (or max_epochs, for "
            "data with a length), or count in steps: "
            "PolynomialSchedule(begin=1000, end=8000, unit='step')"
        )
    return lambda done: _fraction(trainer)


def planned_moment(trainer: Trainer, schedule: Schedule, step: int, done: int) -> float | None:
    """Return the moment at which a later step is planned; None if Lightning cannot know.

    Args:
        trainer: The Trainer, at ``on_train_start``.
        schedule: The schedule in whose unit the moment is.
        step: The step of the owner.
        done: Those completed now.
    """
    if trainer.fast_dev_run or not trainer.lightning_module.automatic_optimization:  # type: ignore[attr-defined]
        return None
    if schedule.unit == "step":
        return float(step)
    at, batches = trainer.global_step + step - done, trainer.num_training_batches
    epochs = 0.0
    if not math.isinf(batches):
        epochs = at / math.ceil(batches / trainer.accumulate_grad_batches)
    if schedule.unit == "epoch":
        return epochs
    by_steps = at / trainer.max_steps if trainer.max_steps > 0 else 0.0
    return max(epochs / _max_epochs(trainer), by_steps)


def _fraction(trainer: Trainer) -> float:
    if _is_last(trainer):
        return 1.0
    by_epochs = _epochs(trainer) / _max_epochs(trainer)
    if trainer.max_steps > 0:  # both grow evenly: what ends first is ahead
        return max(trainer.global_step / trainer.max_steps, by_epochs)
    return by_epochs


def _epochs(trainer: Trainer) -> float:
    batches = trainer.fit_loop.batch_idx
    if trainer.lightning_module.automatic_optimization:  # as they were at the last step
        batches -= batches % trainer.accumulate_grad_batches
    return trainer.current_epoch + batches / trainer.num_training_batches


def _is_last(trainer: Trainer) -> bool:
    """Whether no optimizer steps again after the present batch."""
    last_batch = trainer.is_last_batch  # known also of data without a length
    last_batch |= trainer.fit_loop.batch_idx + 1 >= trainer.num_training_batches
    if last_batch and trainer.current_epoch + 1 >= _max_epochs(trainer):
        return True
    return 0 < trainer.max_steps <= trainer.global_step + len(trainer.optimizers)


def _max_epochs(trainer: Trainer) -> float:
    epochs = math.inf if trainer.max_epochs in (None, -1) else float(trainer.max_epochs or 0)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        # Its extra epoch only gathers statistics.
        if isinstance(callback, StochasticWeightAveraging):
            return min(epochs, callback.swa_end + 1)
    return epochs


def _has_known_end(trainer: Trainer) -> bool:
    by_epochs = math.isfinite(_max_epochs(trainer) * trainer.num_training_batches)
    return by_epochs or trainer.max_steps > 0


def _planned_epochs(trainer: Trainer) -> float:
    """Return the most epochs that can be trained, as far as Lightning knows."""
    batches = trainer.num_training_batches
    automatic = trainer.lightning_module.automatic_optimization
    if trainer.max_steps <= 0 or not automatic or math.isinf(batches):
        return _max_epochs(trainer)
    steps_an_epoch = math.ceil(batches / trainer.accumulate_grad_batches)
    return min(_max_epochs(trainer), trainer.max_steps / steps_an_epoch)


def _planned_steps(trainer: Trainer, *, resumed: bool) -> int | None:
    """Return up to where the owner will count; None if Lightning cannot know."""
    steps = trainer.estimated_stepping_batches
    if not trainer.lightning_module.automatic_optimization or not 0 < steps < math.inf:
        return None
    return int(steps) if resumed else int(steps) - trainer.global_step
