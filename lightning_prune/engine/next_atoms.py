"""The atoms that go next, which a growing penalty shrinks before they go."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
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
from lightning_prune.recipe.tensor import PrunedTensor
from lightning_prune.recipe.units import TOLERANCE
from lightning_prune.tensors.shards import gather_whole

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
        # How far the penalty has grown at the last look, in (0, 1]; 0 for atoms that stay.
        self._levels: dict[str, Tensor] = {}
        self._restored: dict[str, Tensor] = dict(saved["levels"])  # of whole groups
        self._looked = {int(index): float(moment) for index, moment in saved["looked"].items()}
        self._now: dict[int, float] = {}  # the moments of the steps that are being made
        self._strengths: dict[int, _Strengths] = {}

    def state_dict(self, groups: Iterable[Group]) -> dict[str, Any]:
        """Return how far the penalty on each atom has grown, and the moments of the last looks.

        Args:
            groups: All groups; if their tensors are sharded, all processes must call this together.
        """
        if self._recipe.penalty is None:
            return {}
        shards = {group.name: group.shard for group in groups}
        levels = {
            name: gather_whole(level, shards.get(name))
            for name, level in sorted(self._levels.items())
        }
        looked = {str(index): moment for index, moment in self._looked.items()}
        return {"penalty": {"levels": self._restored | levels, "looked": looked}}

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

    def take(self, found: Mapping[str, Tensor] | None, index: int, groups: Sequence[Group]) -> None:
        """Take over a result of `find`: the penalty on atoms that no longer go next ends.

        Args:
            found: The atoms of each group that go next; None to leave all as it is.
            index: The index of the optimizer.
            groups: All groups.
        """
        if found is None:
            return
        self._take_restored(groups)
        now = self._now[index]
        passed = (now - self._looked.get(index, now)) / self._window
        others = {group.name for group in groups if group.optimizer != index}
        self._levels = {name: self._levels[name] for name in self._levels.keys() & others} | {
            name: self._grow(name, atoms, passed) for name, atoms in found.items()
        }
        self._looked[index] = now
        self._strengths = {}

    def shrink(self, optimizer: Optimizer, index: int, groups: Sequence[Group]) -> None:
        """Shrink the weights of the atoms that go next, as a decoupled weight decay does.

        Args:
            optimizer: The optimizer that has just stepped.
            index: The index of the optimizer.
            groups: All groups.
        """
        self._take_restored(groups)
        if not self._levels:
            return
        known = self._strengths.get(index)
        if known is None or known.groups is not groups or known.optimizer is not optimizer:
            known = self._strengths[index] = self._spread(optimizer, index, groups)
        for member, strength, options in known.of_weights:
            rate, weights = float(options["lr"]), member.weights
            if rate * known.largest > 1:  # no weight changes the sign
                strength = strength.clamp(max=1 / rate)
            weights.addcmul_(strength.to(weights.device), weights, value=-rate)

    def _take_restored(self, groups: Iterable[Group]) -> None:
        """Give the groups the local part of the levels that a state has restored."""
        for group in groups if self._restored else ():
            if group.name in self._restored:
                level, shard = self._restored.pop(group.name), group.shard
                fits = shard is not None and level.shape == shard.shape
                self._levels[group.name] = shard.cut(level) if shard and fits else level

    def _spread(self, optimizer: Optimizer, index: int, groups: Sequence[Group]) -> "_Strengths":
        """Return the present strength on each weight that the optimizer trains."""
        assert self._recipe.penalty is not None
        largest = self._recipe.penalty.largest
        options = {id(p): each for each in optimizer.param_groups for p in each["params"]}
        found = []
        for group in groups:
            level = self._levels.get(group.name)
            if group.optimizer != index or level is None or level.shape != group.alive().shape:
                continue
            for member, left in group.spread(1 - level.to(group.members[0].mask.device)):
                if id(member.parameter) in options:  # it does not train frozen weights
                    strength = (largest * (1 - left)).to(member.weights.dtype)
                    found.append((member, strength, options[id(member.parameter)]))
        return _Strengths(
            groups=groups, optimizer=optimizer, largest=largest, of_weights=tuple(found)
        )

    @property
    def _window(self) -> float:
        """The time that the penalty takes to grow, in the unit of the schedule."""
        assert self._recipe.penalty is not None
        return self._recipe.penalty.ahead * self._recipe.schedule.end

    def _grow(self, name: str, atoms: Tensor, passed: float) -> Tensor:
        """Return how far the penalty on some atoms has grown, in (0, 1]; 0 for the others."""
        level = self._levels.get(name)
        if level is None or level.shape != atoms.shape:
            level = torch.zeros_like(atoms, dtype=torch.float32)
        level = level.to(atoms.device)
        grown = torch.where(level > 0, level + passed, 1 / _LOOKS).clamp(max=1)
        return grown * atoms


@dataclass(frozen=True, kw_only=True, eq=False)
class _Strengths:
    """The strengths of the penalty until the next look.

    Args:
        groups: The groups that they hold for.
        optimizer: The optimizer of the groups.
        largest: The largest strength.
        of_weights: Tensors, with a strength that spreads over the weights, and with the options of
            the optimizer for these weights.
    """

    groups: Sequence[Group]
    optimizer: Optimizer
    largest: float
    of_weights: tuple[tuple[PrunedTensor, Tensor, Mapping[str, Any]], ...]
