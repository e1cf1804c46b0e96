"""Clocks: the moment that a training has reached, in the unit of a schedule."""

from collections.abc import Callable

from lightning_prune.recipe.schedules import Schedule

Clock = Callable[[int], float]
"""Maps completed steps to the moment in the unit of a schedule."""


def make_clock(schedule: Schedule, steps: int | None, steps_per_epoch: int | None) -> Clock:
    """Return the clock of a plain loop; the last planned step reaches the end of the schedule.

    Args:
        schedule: The schedule that sets the unit.
        steps: Planned optimizer steps; None if unknown.
        steps_per_epoch: Optimizer steps in an epoch; None if unknown.

    Raises:
        ValueError: If the unit needs a number that is missing, a number is less than 1, or the plan
            ends before ``end``.
    """
    for argument, number in (("steps", steps), ("steps_per_epoch", steps_per_epoch)):
        if number is not None and number < 1:
            raise ValueError(f"need {argument} >= 1, got {argument}={number}")
    per_unit = {"step": 1, "epoch": steps_per_epoch, "fraction": steps}[schedule.unit]
    if per_unit is None:
        argument = {"epoch": "steps_per_epoch", "fraction": "steps"}[schedule.unit]
        raise ValueError(
            f"need {argument} with unit='{schedule.unit}', got {argument}={per_unit}; pass it, or "
            "count in steps: PolynomialSchedule(begin=..., end=..., unit='step')"
        )
    if steps is not None and schedule.end * per_unit > steps:
        raise ValueError(
            f"need end within the {steps} planned steps, got end={schedule.end} with "
            f"unit='{schedule.unit}'"
        )

    def clock(done: int) -> float:
        last = steps is not None and done + 1 >= steps
        return max(done / per_unit, schedule.end) if last else done / per_unit

    return clock
