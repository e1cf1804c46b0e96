"""Which sparsity each group gets: knapsacks over costs that need not add up over groups."""

import math
from collections.abc import Sequence

from lightning_prune.engine.costs import Cost
from lightning_prune.post_training.curves import Curve
from lightning_prune.post_training.knapsack import Levels, choose_levels

_REPEATS = 12
_EVEN = 1e-4  # the worth of an even division, in the largest loss


class Solver:
    """Combines curves so that the sum of the losses, or the cost, is least.

    A knapsack needs a cost for each group. The cost of removed channels is a product, so each
    group's part is taken at the present choice, with all other groups as they are. This is repeated
    at the new choice until the choice stays, and the cost itself is checked.

    Args:
        curves: The curves.
        cost: The cost of all groups.
    """

    def __init__(self, curves: Sequence[Curve], cost: Cost) -> None:
        self.curves, self.cost = curves, cost
        self.dense: Levels = (0,) * len(curves)
        self._losses = [curve.rising for curve in curves]
        self._even = self._divide_evenly()

    @property
    def sparsest(self) -> Levels:
        """The highest level of each curve."""
        return self.level_all(max(len(curve.losses) for curve in self.curves))

    def level_all(self, level: int) -> Levels:
        """Return a level for all curves, or the next lower level that a curve can have."""
        return tuple(
            max(n for n, loss in enumerate(curve.losses[: level + 1]) if math.isfinite(loss))
            for curve in self.curves
        )

    def count_cost(self, levels: Levels) -> float:
        """Return the cost of a choice."""
        kept: dict[str, int] = {}
        for curve, level in zip(self.curves, levels, strict=True):
            kept |= curve.kept[level]
        return self.cost(kept)

    def sum_losses(self, levels: Levels) -> float:
        """Return the sum of the losses of a choice."""
        return _total(self._losses, levels)

    def find_cheapest(self, tolerance: float) -> Levels:
        """Return the choice of least cost whose losses sum up to a tolerance at most.

        Args:
            tolerance: The largest sum of the losses, at least 0.
        """
        levels = self.dense
        for _ in range(_REPEATS):
            costs = self._linearize(levels)
            found = choose_levels(costs, self._losses, tolerance)
            assert found is not None  # all losses at level 0 are 0
            if self.count_cost(found) >= self.count_cost(levels):
                break
            levels = found
        return levels

    def find_best(self, limit: float, *, power: float = 1.0) -> Levels | None:
        """Return the choice with the least sum of losses whose cost is within a limit.

        Of choices with equal sums, a choice that prunes all groups evenly is best.

        Args:
            limit: The largest cost.
            power: Exponent of the losses before they are summed; above 1, few large losses count
                more.

        Returns:
            The choice; None if no choice was found within the limit.
        """
        values = [
            [loss**power + even for loss, even in zip(*pair, strict=True)]
            for pair in zip(self._losses, self._even, strict=True)
        ]
        levels, fitting = self.dense, []
        for _ in range(_REPEATS):
            cost, costs = self.count_cost(levels), self._linearize(levels)
            found = choose_levels(values, costs, limit - cost) or self.sparsest
            predicted, levels = cost + _total(costs, found), found
            cost = self.count_cost(levels)
            fitting += [levels] if cost <= limit else []
            if math.isclose(cost, predicted, rel_tol=1e-12) or fitting.count(levels) > 1:
                break
        fitting = fitting or self._prune_until(limit, levels, values)
        return min(fitting, key=lambda each: _total(values, each), default=None)

    def _prune_until(
        self, limit: float, levels: Levels, values: Sequence[Sequence[float]]
    ) -> list[Levels]:
        """Raise one level after another, the least value for the cost first, until the cost fits.

        Returns:
            The choice; nothing if no level can be raised and the cost still does not fit.
        """
        cost = self.count_cost(levels)
        while cost > limit:
            moves = [
                (*levels[:place], higher, *levels[place + 1 :])
                for place, curve in enumerate(self.curves)
                for higher in range(levels[place] + 1, len(curve.losses))
                if math.isfinite(curve.losses[higher])
            ]
            before = _total(values, levels)
            priced = [
                ((_total(values, move) - before) / saved, move)
                for move in moves
                if (saved := cost - self.count_cost(move)) > 0
            ]
            if not priced:
                return []
            levels = min(priced)[1]
            cost = self.count_cost(levels)
        return [levels]

    def _linearize(self, levels: Levels) -> list[list[float]]:
        """Return how each level of each curve, alone, would change the cost of a choice."""
        cost = self.count_cost(levels)
        return [
            [
                self.count_cost((*levels[:place], level, *levels[place + 1 :])) - cost
                for level in range(len(curve.losses))
            ]
            for place, curve in enumerate(self.curves)
        ]

    def _divide_evenly(self) -> list[list[float]]:
        r"""Return a small worth for each level; the sum is least for an even division.

        It is proportional to :math:`c_i s^2`, where :math:`c_i` is the cost that a group can save.
        By Jensen's inequality, equal sparsities make the sum least among choices of one cost.
        """
        savings = [
            max(-saved for saved, loss in zip(*pair, strict=True) if math.isfinite(loss))
            for pair in zip(self._linearize(self.dense), self._losses, strict=True)
        ]
        largest = max((loss for losses in self._losses for loss in losses if loss > 0), default=1.0)
        worth = _EVEN * largest / (sum(savings) or 1.0)
        return [
            [worth * saving * sparsity**2 for sparsity in curve.sparsities]
            for curve, saving in zip(self.curves, savings, strict=True)
        ]


def _total(table: Sequence[Sequence[float]], levels: Levels) -> float:
    return math.fsum(row[level] for row, level in zip(table, levels, strict=True))
