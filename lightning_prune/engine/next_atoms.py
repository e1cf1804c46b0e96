"""The atoms that go next, which a growing penalty shrinks before they go."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_prune.engine.due_points import DuePoints
from lightning_prune.engine.enrolment import Enrolment
from lightning_prune.engine.groups import Group
from lightning_prune.engine.update import Due, find_next
from lightning_prune.recipe.clocks import Clock
from lightning_prune.recipe.recipe import Recipe
from lightning_prune.recipe.schedules import Schedule
from lightning_prune.recipe.units import TOLERANCE

_LOOKS = 10
"""Number of times that the atoms that go next are chosen anew while the penalty grows."""


class NextAtoms:
    """The atoms that the schedule takes next, and how far the penalty on them has grown.

    Without a penalty in the recipe nothing happens.

    Args:
        recipe: The answers.
        clocks: Makes the clock of a schedule; None before training.
        state: An earlier `state_dict`; None for none.
    """

    def __init__(
        self,
        recipe: Recipe,
        clocks: Callable[[Schedule], Clock] | None = None,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        self._recipe = recipe
        has_clock = clocks is not None and recipe.penalty is not None
        self._clock = clocks(recipe.schedule) if clocks and has_clock else None
        saved = (state or {}).get("penalty", {"levels": {}, "looked": {}})
        # How far the penalty has grown at the last look: 0 to 1, or -inf for atoms that stay.
        self._levels: dict[str, Tensor] = dict(saved["levels"])
        self._looked = {int(index): float(moment) for index, moment in saved["looked"].items()}
        self._now: dict[int, float] = {}  # the moments of the steps that are being made

    def state_dict(self) -> dict[str, Any]:
        """Return how far the penalty on each atom has grown, and the moments of the last looks."""
        if self._recipe.penalty is None:
            return {}
        looked = {str(index): moment for index, moment in self._looked.items()}
        return {"penalty": {"levels": dict(self._levels), "looked": looked}}

    def find(
        self, index: int, enrolment: Enrolment, points: DuePoints
    ) -> Mapping[str, Tensor] | None:
        """Return which atoms of each group go next, by name; None if the last choice is not old.

        Args:
            index: The index of the optimizer that steps next.
            enrolment: The tensors under pruning.
            points: The completed steps and the served due points.
        """
        schedule = self._recipe.schedule
        if self._clock is None:
            return None
        now = self._now[index] = self._clock(points.steps[index])
        last = self._looked.get(index)
        if last is not None and 0 <= now - last < self._window / _LOOKS - TOLERANCE:
            return None
        share = schedule(min(now + self._window, schedule.end))
        if share <= points.share_of_all(index):
            return {}
        pools = [pool for pool in enrolment.pools if pool.optimizer == index]
        division = enrolment.divide(share, index, points.share_of_all)
        return find_next(self._recipe, pools, Due(pruned=share, division=division))

    def take(self, found: Mapping[str, Tensor] | None, index: int, groups: Iterable[Group]) -> None:
        """Take over a result of `find`: the penalty on atoms that no longer go next ends.

        Args:
            found: The atoms of each group that go next; None to leave all as it is.
            index: The index of the optimizer.
            groups: All groups.
        """
        if found is None:
            return
        others = {group.name for group in groups if group.optimizer != index}
        self._levels = {name: self._levels[name] for name in self._levels.keys() & others} | {
            name: torch.where(atoms, self._grow(name, atoms, index), -math.inf)
            for name, atoms in found.items()
        }
        self._looked[index] = self._now[index]

    def shrink(self, optimizer: Optimizer, index: int, groups: Iterable[Group]) -> None:
        """Shrink the weights of the atoms that go next, as a decoupled weight decay does.

        Args:
            optimizer: The optimizer that has just stepped.
            index: The index of the optimizer.
            groups: All groups.
        """
        penalty = self._recipe.penalty
        if penalty is None or not self._levels:
            return
        rates = {id(p): each["lr"] for each in optimizer.param_groups for p in each["params"]}
        for group in groups:
            if group.optimizer != index or group.name not in self._levels:
                continue
            left = 1 - self._grow(group.name, group.alive(), index)
            for member, of_weights in group.spread(left):  # 1 where the penalty is 0
                rate = rates.get(id(member.parameter))
                if rate is not None:  # the optimizer does not train frozen weights
                    strength = penalty.largest * (1 - of_weights)
                    member.weights.mul_((1 - rate * strength).clamp(min=0))

    @property
    def _window(self) -> float:
        """The time that the penalty takes to grow, in the unit of the schedule."""
        assert self._recipe.penalty is not None
        return self._recipe.penalty.ahead * self._recipe.schedule.end

    def _grow(self, name: str, atoms: Tensor, index: int) -> Tensor:
        """Return how far the penalty on the atoms of a group has grown until now, 0 to 1."""
        level = self._levels.get(name)
        if level is None or level.shape != atoms.shape:
            return torch.zeros_like(atoms, dtype=torch.float32)
        passed = (self._now[index] - self._looked.get(index, 0.0)) / self._window
        return (level.to(atoms.device) + passed).clamp(0, 1)
