"""Going back to an early step: where each round of a schedule goes back to."""

from dataclasses import dataclass
from typing import Literal

from lightning_prune.recipe.schedules import Schedule


@dataclass(frozen=True, kw_only=True)
class Rewind:
    """Each time the masks have changed, go back to an early step and train again under them.

    Rewinding the weights to step 0 finds the tickets of Frankle & Carbin, "The Lottery Ticket
    Hypothesis" (2019), https://arxiv.org/abs/1803.03635; to a step ``to`` those of Frankle et al.,
    "Linear Mode Connectivity and the Lottery Ticket Hypothesis" (2020),
    https://arxiv.org/abs/1912.05671. The learning rate alone: Renda et al., "Comparing Rewinding
    and Fine-tuning in Neural Network Pruning" (2020), https://arxiv.org/abs/2003.02389.

    Data, random numbers, epochs and the scale of a gradient scaler go on.

    Args:
        to: Completed optimizer steps to go back to, 0-based; before the first update of the masks.
        what: ``"weights"`` goes back with parameters, buffers and learning rate;
            ``"learning_rate"`` only with the learning-rate schedulers and the optimizer's
            hyperparameters, and leaves the weights as trained.
        optimizer: What the optimizer has gathered, such as momentum, is afterwards as it was at
            step ``to`` (``"rewind"``) or when the training began (``"reset"``).

    Raises:
        ValueError: If an argument is out of range.
    """

    to: int = 0
    what: Literal["weights", "learning_rate"] = "weights"
    optimizer: Literal["rewind", "reset"] = "rewind"

    def __post_init__(self) -> None:
        if isinstance(self.to, bool) or self.to != int(self.to) or self.to < 0:
            raise ValueError(f"need a whole number of steps to >= 0, got to={self.to}")
        if self.what not in ("weights", "learning_rate"):
            raise ValueError(f"need what 'weights' or 'learning_rate', got what={self.what!r}")
        if self.optimizer not in ("rewind", "reset"):
            raise ValueError(
                f"need optimizer 'rewind' or 'reset', got optimizer={self.optimizer!r}"
            )

    def check_schedule(self, schedule: Schedule) -> None:
        """Raise ValueError if the schedule has no rounds, or nothing is trained after the last."""
        if not schedule.has_rounds:
            name = type(schedule).__name__
            raise ValueError(
                "need a schedule with rounds for rewind, as each update of the masks rewinds, got "
                f"{name}; use MultiStepSchedule(milestones=...) or {name}(every=...)"
            )
        if schedule.unit == "fraction" and schedule.end == 1:
            raise ValueError(
                "need training after the last round for rewind, got a schedule with end=1.0"
            )
