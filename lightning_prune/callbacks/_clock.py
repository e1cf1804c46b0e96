"""How far the training of a Trainer has come, in the unit of a schedule."""

import math

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging

from lightning_prune.schedules import Clock, Schedule, planned_clock


def trainer_clock(trainer: Trainer, schedule: Schedule) -> Clock:
    """Return the clock of a Trainer; its last planned step serves the schedule's end.

    Steps are the owner's own count. Epochs and fractions are read off Lightning's progress: batches
    done over batches planned, or ``global_step / max_steps`` where that ends first.

    Args:
        trainer: The Trainer, at or after ``on_train_start``.
        schedule: The schedule whose unit is read.

    Raises:
        ValueError: If a fraction of an unknown plan is asked for, or the plan ends before ``end``.
    """
    # A ramp in any unit is squeezed into the few batches of a trial run.
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        return lambda done: schedule.end * _fraction(trainer)
    if schedule.unit == "step":
        return planned_clock(schedule, _planned_steps(trainer), None)
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


def steps_done(trainer: Trainer, schedule: Schedule) -> list[int]:
    """Return the steps that each optimizer has taken before pruning began.

    Args:
        trainer: The Trainer, at or after ``on_train_start``.
        schedule: The schedule whose unit is read.

    Raises:
        ValueError: If the schedule counts steps of which only the sum over optimizers is known.
    """
    optimizers = len(trainer.optimizers)
    if trainer.global_step and optimizers > 1:
        if schedule.unit == "step":
            raise ValueError(
                f"need the steps of each of the {optimizers} optimizers for unit='step', got a "
                f"checkpoint without pruning that knows their sum, {trainer.global_step}; count "
                "with unit='fraction' or unit='epoch'"
            )
        return [0] * optimizers
    return [trainer.global_step] * optimizers


def _fraction(trainer: Trainer) -> float:
    if _is_last(trainer):
        return 1.0
    by_epochs = _epochs(trainer) / _max_epochs(trainer)
    if trainer.max_steps > 0:  # both grow evenly: what ends first is ahead
        return max(trainer.global_step / trainer.max_steps, by_epochs)
    return by_epochs


def _epochs(trainer: Trainer) -> float:
    return trainer.current_epoch + trainer.fit_loop.batch_idx / trainer.num_training_batches


def _is_last(trainer: Trainer) -> bool:
    """Whether no optimizer steps again after the present batch."""
    last_batch = trainer.fit_loop.batch_idx + 1 >= trainer.num_training_batches
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


def _planned_steps(trainer: Trainer) -> int | None:
    """Return the steps that will be taken; None if Lightning cannot know."""
    steps = trainer.estimated_stepping_batches
    if not trainer.lightning_module.automatic_optimization or not 0 < steps < math.inf:
        return None
    return int(steps)
