"""When something is due: each optimizer by its own completed steps."""

from collections.abc import Callable, Mapping
from typing import Any

from lightning_prune.recipe.schedules import Clock, Schedule


class Timetable:
    """Counts the steps of each optimizer and notes which due points it has been served.

    Args:
        schedule: When to prune.
        regrow: When to regrow; None for never.
    """

    def __init__(self, schedule: Schedule, regrow: Schedule | None) -> None:
        self.schedule, self.regrow = schedule, regrow
        self.steps: list[int] = []
        self.in_step: set[int] = set()  # between before_step() and the step
        self._clocks: tuple[Clock, Clock | None]
        self._served: dict[int, float] = {}  # last due point since begin()
        self._pruned: dict[int, float] = {}  # the same, a restored one included
        self._regrown: dict[int, float] = {}  # that of regrow

    def begin(
        self, clocks: Callable[[Schedule], Clock], state: Mapping[str, Any], optimizers: int
    ) -> None:
        """Start, from a restored state if there is one.

        Args:
            clocks: What makes a schedule's clock.
            state: An earlier `state_dict`; empty if there is none.
            optimizers: Their number.
        """
        self._clocks = clocks(self.schedule), clocks(self.regrow) if self.regrow else None
        self.steps = list(state.get("steps", []))[:optimizers]
        self._pruned = {int(index): point for index, point in state.get("due", {}).items()}
        self._regrown = {int(index): point for index, point in state.get("regrown", {}).items()}
        self.follow(optimizers)

    def follow(self, optimizers: int) -> None:
        """Go on with other optimizers, or more of them: what is due is looked up again."""
        self.steps += [0] * (optimizers - len(self.steps))
        self.in_step, self._served = set(), {}

    def look_again(self, index: int) -> None:
        """Serve the last due point once more: there is something that has not seen it."""
        self._served.pop(index, None)

    def state_dict(self) -> dict[str, Any]:
        """Return steps and last due points."""
        return {
            "steps": list(self.steps),
            "due": {str(index): point for index, point in self._pruned.items()},
            "regrown": {str(index): point for index, point in self._regrown.items()},
        }

    def to_prune(self, index: int) -> float | None:
        """Return the due point of an optimizer that has not been served since `begin`."""
        point = self.schedule.last_due(self._clocks[0](self.steps[index]))
        return None if point == self._served.get(index) else point

    def to_regrow(self, index: int) -> float | None:
        """Return the due point of regrow that has not been served, also before a resume."""
        if self.regrow is None or self._clocks[1] is None:
            return None
        point = self.regrow.last_due(self._clocks[1](self.steps[index]))
        return None if point == self._regrown.get(index) else point

    def note_pruned(self, index: int, point: float) -> bool:
        """Note a due point as served; return whether it was served before a resume already."""
        again = point == self._pruned.get(index)
        self._served[index] = self._pruned[index] = point
        return again

    def note_regrown(self, index: int, point: float) -> None:
        """Note a due point of regrow as served."""
        self._regrown[index] = point

    def last_pruned(self, index: int) -> float | None:
        """Return the last due point that was served."""
        return self._pruned.get(index)

    def is_over(self, index: int) -> bool:
        """Whether no later update is due."""
        regrown = self.regrow is None or self._regrown.get(index) == self.regrow.end
        return self._served.get(index) == self.schedule.end and regrown
