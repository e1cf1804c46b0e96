"""Dense and sparse phases in turns."""

from dataclasses import dataclass
from functools import cached_property

from lightning_prune.arguments.checks import check_fields
from lightning_prune.recipe.schedules import MultiStepSchedule, Schedule
from lightning_prune.recipe.units import Unit, check_point


@dataclass(frozen=True, kw_only=True)
class Phases:
    r"""Train sparse and dense in turns (AC/DC); the last phase is sparse.

    Training is dense before ``begin``. From there to ``end``, sparse and dense phases of the same
    length follow each other, ``rounds`` times. From ``end`` on, training is sparse. Each sparse
    phase begins with new masks, chosen among all weights at the present target. Each dense phase
    lets the pruned weights grow again from 0, with an optimizer state of zeros.

    This is the method of Peste et al., "AC/DC: Alternating Compressed/DeCompressed Training of Deep
    Neural Networks" (2021), https://arxiv.org/abs/2106.12379, who prune to the final sparsity in
    each sparse phase: ``OneShotSchedule(end=0)``. The defaults are close to theirs: of 100 epochs,
    10 are a dense warm-up, and the last 15 are sparse.

    The target of the schedule goes on rising in a dense phase. The logged ``sparsity`` is 0 there.

    Args:
        begin: Start of the first sparse phase, in ``unit``.
        end: Start of the last sparse phase, in ``unit``.
        rounds: Number of times that a sparse phase and a dense phase follow each other.
        unit: Unit of ``begin`` and ``end``: a ``"fraction"`` of the planned training, in [0, 1],
            or optimizer ``"step"``s or ``"epoch"``s, both 0-based.

    Raises:
        ValueError: If an argument is out of range, or ``end`` is not after ``begin``.

    Examples:
        >>> phases = Phases(begin=10, end=50, rounds=2, unit="step")
        >>> [phases.is_dense(phases.turns.last_due(step)) for step in (9, 10, 20, 30, 40, 50)]
        [True, False, True, False, True, False]
    """

    begin: float = 0.1
    end: float = 0.85
    rounds: int = 7
    unit: Unit = "fraction"

    def __post_init__(self) -> None:
        check_fields(self)
        check_point("begin", self.begin, self.unit)
        check_point("end", self.end, self.unit)
        if self.rounds < 1:
            raise ValueError(f"need rounds >= 1, got rounds={self.rounds}")
        least = 2 * self.rounds if self.unit == "step" else 0
        if self.end - self.begin < least or self.end == self.begin:
            needed = f"end >= begin + {least} steps" if least else f"end > begin={self.begin}"
            raise ValueError(f"need {needed}, got end={self.end} with rounds={self.rounds}")

    @cached_property
    def turns(self) -> Schedule:
        """The schedule of the moments when a phase begins."""
        half = (self.end - self.begin) / (2 * self.rounds)
        moments = [self.begin + turn * half for turn in range(2 * self.rounds)] + [self.end]
        if self.unit == "step":
            moments = [round(moment) for moment in moments]
        return MultiStepSchedule(milestones=tuple(moments), unit=self.unit)

    def is_dense(self, turn: float | None) -> bool:
        """Whether the phase that began at a moment of `turns` is dense; None is the warm-up."""
        if turn is None:
            return True
        half = (self.end - self.begin) / (2 * self.rounds)
        return round((turn - self.begin) / half) % 2 == 1
