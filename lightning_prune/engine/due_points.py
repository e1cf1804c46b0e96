"""Due points: when an update is due, for each optimizer by its own completed steps."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_prune.recipe.clocks import Clock
from lightning_prune.recipe.schedules import Schedule


class DuePoints:
    """Counts the steps of each optimizer, and notes the due points that it was served.

    A fused optimizer is called also for a step that a gradient scaler skips. To ask at each step
    whether it is skipped would hold up the host. So these steps are counted at first. The number of
    skipped steps is read when the exact count matters: by the larger count, an update is due.

    Args:
        schedule: When to prune.
        regrow: When to regrow, or to change the phase; None for never.
        clocks: Makes the clock of a schedule; None before training, when nothing can be due.
        state: An earlier `state_dict`; empty if there is none.
        optimizers: Number of optimizers.
        may_go_back: Whether a training can go back to an earlier due point, so that none is the
            last.
        goes_on: Whether masks change after the last due point, too.
    """

    def __init__(
        self,
        schedule: Schedule,
        regrow: Schedule | None,
        *,
        clocks: Callable[[Schedule], Clock] | None = None,
        state: Mapping[str, Any] | None = None,
        optimizers: int = 0,
        may_go_back: bool = False,
        goes_on: bool = False,
    ) -> None:
        state = state or {}
        self.schedule, self.regrow, self.may_go_back = schedule, regrow, may_go_back
        self.goes_on = goes_on
        self.in_step: set[int] = set()  # between before_step() and the step
        self._clock = clocks(schedule) if clocks else None
        self._regrow_clock = clocks(regrow) if clocks and regrow else None
        self._steps: list[int] = list(state.get("steps", []))[:optimizers]
        self._steps += [0] * (optimizers - len(self._steps))
        self._skipped: dict[int, Tensor] = {}  # numbers of steps that are counted, on devices
        self._served: dict[int, float] = {}  # last due point since the start
        self._joined: set[int] = set()  # optimizers with new tensors that have not seen it
        self._pruned = _read_points(state.get("due", {}))
        self._regrown = _read_points(state.get("regrown", {}))

    @property
    def steps(self) -> list[int]:
        """The completed steps of each optimizer, those before a resume included."""
        for index in list(self._skipped):
            self._take_back_skipped(index)
        return list(self._steps)

    def follow(self, optimizers: int) -> None:
        """Continue with other or more optimizers: due points are looked up again."""
        self._steps += [0] * (optimizers - len(self._steps))
        self.in_step, self._served = set(), {}

    def go_back(self, state: Mapping[str, Any]) -> None:
        """Take over the last due points of an earlier `state_dict`; steps go on."""
        self._pruned, self._served = _read_points(state["due"]), {}

    def complete_step(self, index: int, found_infinity: Tensor | None) -> int:
        """Count a step of an optimizer, and return the count.

        Args:
            index: The index of the optimizer.
            found_infinity: A number that is not 0 if a scaler has skipped the step; None if the
                step was made.
        """
        self.in_step.remove(index)
        self._steps[index] += 1
        if found_infinity is not None:
            is_skipped = (found_infinity != 0).to(torch.int64)
            self._skipped[index] = self._skipped.get(index, 0) + is_skipped
        return self._steps[index]

    def look_again(self, index: int, *, has_joined: bool = False) -> None:
        """Serve the last due point once more: a new tensor has not seen it.

        Args:
            index: The index of an optimizer.
            has_joined: Whether tensors of this optimizer have a part to prune that is new.
        """
        self._served.pop(index, None)
        if has_joined:
            self._joined.add(index)

    def state_dict(self) -> dict[str, Any]:
        """Return steps and last due points."""
        return {
            "steps": self.steps,
            "due": {str(index): point for index, point in self._pruned.items()},
            "regrown": {str(index): point for index, point in self._regrown.items()},
        }

    def is_due(self, index: int) -> bool:
        """Whether a due point of an optimizer has passed that was not served."""
        if not self._seems_due(index):
            return False
        return not self._take_back_skipped(index) or self._seems_due(index)

    def next_pruning(self, index: int) -> float | None:
        """Return the due point of an optimizer that has not been served since the start."""
        assert self._clock is not None
        point = self.schedule.last_due(self._clock(self._steps[index]))
        return None if point == self._served.get(index) else point

    def next_regrowth(self, index: int) -> float | None:
        """Return the due point of regrowth that has not been served, also before a resume."""
        if self.regrow is None or self._regrow_clock is None:
            return None
        point = self.regrow.last_due(self._regrow_clock(self._steps[index]))
        return None if point == self._regrown.get(index) else point

    def was_pruned(self, index: int, point: float | None) -> bool:
        """Whether a due point was already served, before a resume or since."""
        return point is not None and point == self._pruned.get(index)

    def note_served(self, index: int, pruning: float | None, regrowth: float | None) -> None:
        """Note due points as served; None stands for none."""
        if pruning is not None:
            self._served[index] = self._pruned[index] = pruning
            self._joined.discard(index)
        if regrowth is not None:
            self._regrown[index] = regrowth

    def last_pruning(self, index: int) -> float | None:
        """Return the last due point that was served."""
        return self._pruned.get(index)

    def last_regrowth(self, index: int) -> float | None:
        """Return the last due point of regrowth, or of a phase, that was served."""
        return self._regrown.get(index)

    def share(self, index: int) -> float:
        """Return the fraction of the final sparsity that is due since the last due point."""
        point = self.last_pruning(index)
        return 0.0 if point is None else self.schedule(point)

    def share_of_all(self, index: int) -> float:
        """Return the fraction of the final sparsity that all tensors have been pruned to."""
        return 0.0 if index in self._joined else self.share(index)

    def is_over(self, index: int) -> bool:
        """Whether no later update is due."""
        if self.may_go_back or self.goes_on:
            return False
        regrown = self.regrow is None or self._regrown.get(index) == self.regrow.end
        return self._served.get(index) == self.schedule.end and regrown

    def _seems_due(self, index: int) -> bool:
        """Whether an update is due if no scaler has skipped a step since the last look."""
        if self.is_over(index):
            return False
        return self.next_pruning(index) is not None or self.next_regrowth(index) is not None

    def _take_back_skipped(self, index: int) -> bool:
        """Read how many of the counted steps were skipped, and whether there were any."""
        skipped = int(self._skipped.pop(index, 0))
        self._steps[index] -= skipped
        return skipped > 0


def _read_points(saved: Mapping[str, float]) -> dict[int, float]:
    return {int(index): point for index, point in saved.items()}
