"""Rewinding: each round of a schedule ends with a return to an early step."""

from dataclasses import dataclass
from typing import Literal

from lightning_prune.arguments.checks import check_fields
from lightning_prune.recipe.schedules import Schedule


@dataclass(frozen=True, kw_only=True)
class Rewind:
    """Go back to an early step after each change of the masks, and train again with these masks.

    Rewinding the weights to step 0 finds the tickets of Frankle & Carbin, "The Lottery Ticket
    Hypothesis" (2019), https://arxiv.org/abs/1803.03635. Rewinding to a later step ``to`` finds the
    tickets of Frankle et al., "Linear Mode Connectivity and the Lottery Ticket Hypothesis" (2020),
    https://arxiv.org/abs/1912.05671. Rewinding only the learning rate: Renda et al., "Comparing
    Rewinding and Fine-tuning in Neural Network Pruning" (2020), https://arxiv.org/abs/2003.02389.

    Rewinding does not change data, random numbers, epochs and the scale of a gradient scaler.

    Args:
        to: Number of completed optimizer steps at the snapshot, 0-based; before the first update of
            the masks.
        what: ``"weights"`` rewinds parameters, buffers, learning-rate schedulers and the
            optimizer's hyperparameters. ``"learning_rate"`` rewinds only the schedulers and the
            hyperparameters, and leaves the weights as trained.
        optimizer: The state that the optimizer gets, such as momentum: the state at step ``to``
            (``"rewind"``) or at the start of training (``"reset"``).

    Raises:
        ValueError: If an argument is out of range.
    """

    to: int = 0
    what: Literal["weights", "learning_rate"] = "weights"
    optimizer: Literal["rewind", "reset"] = "rewind"

    def __post_init__(self) -> None:
        check_fields(self)
        if self.to < 0:
            raise ValueError(f"need a number of steps to >= 0, got to={self.to}")

    def check_schedule(self, schedule: Schedule) -> None:
        """Raise ValueError if the schedule has no rounds, or ends with the training."""
        if not schedule.has_rounds:
            name = type(schedule).__name__
            raise ValueError(
                "need a schedule with rounds for rewind, since each update of the masks rewinds, "
                f"got {name}; use MultiStepSchedule(milestones=...) or {name}(every=...)"
            )
        if schedule.unit == "fraction" and schedule.end == 1:
            raise ValueError(
                "need training after the last round for rewind, got a schedule with end=1.0; "
                "lower end"
            )
