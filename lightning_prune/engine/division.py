"""Division: how the groups share what budgets allow, in one update."""

from collections.abc import Iterator, Sequence

from lightning_prune.engine.choices import Choice
from lightning_prune.engine.groups import Group, Scores
from lightning_prune.engine.limits import Limits
from lightning_prune.engine.pools import Pool
from lightning_prune.recipe.allocations import Allocation, ERKAllocation


class Division:
    """The atoms that budgets let the pools keep in one update.

    Where an allocation needs scores, the pools are asked in turn: the pools that are still to come
    count with the number that `divide` gives them, and pools that were pruned with what they keep.

    Args:
        limits: The budgets.
        pools: All pools, also those of other optimizers.
        share: The share of the way that is due, in [0, 1].
        served: The pools that have already been pruned as far as this share asks.
    """

    def __init__(
        self,
        limits: Limits,
        pools: Sequence[Pool],
        share: float,
        served: Sequence[Pool],
    ) -> None:
        self._limits, self._share = limits, share
        self._kept = {group.name: group.atoms_kept for pool in pools for group in pool.groups}
        self.is_satisfied = limits.fits(self._kept, share)
        waiting = [pool for pool in pools if pool not in served]
        asks_at_once = len(waiting) == 1 and waiting[0].allocation.needs_scores
        if waiting and not self.is_satisfied and not asks_at_once:
            planned = divide(limits, pools, share)
            self._kept |= {group.name: planned[group.name] for p in waiting for group in p.groups}

    def choose(self, pool: Pool, scores: Scores) -> Iterator[tuple[Group, Choice]]:
        """Yield each group of a pool with the choice of the atoms that stay.

        Args:
            pool: A pool that was not served.
            scores: The scores of the members.
        """
        if not pool.allocation.needs_scores:
            yield from pool.choose_keeps(self._kept, scores)
            return
        keeps, choices = pool.choose_most(
            lambda keeps: self._limits.fits({**self._kept, **keeps}, self._share), scores
        )
        self._kept |= keeps
        yield from choices


def divide(limits: Limits, pools: Sequence[Pool], share: float) -> dict[str, int]:
    """Return the most atoms that each group can keep within the budgets.

    The same sparsity is due in all pools, as far as floors and present masks allow, and each pool
    divides atoms by the rule of the allocation. An allocation that needs scores is not asked:
    then all groups of a pool get the same sparsity. The result fits, and with the next atom it
    would not: the atoms of the earliest pools come first.

    Args:
        limits: The budgets.
        pools: All pools.
        share: The share of the way that is due, in [0, 1].

    Returns:
        Number of kept atoms by the name of the group, rounded as the pattern rounds.
    """
    shelves = [_Shelf(pool) for pool in pools]

    def fits(due: Sequence[int]) -> bool:
        return limits.fits(_merge(shelves, due), share)

    low, high = 0.0, 1.0  # the sparsity: too low, and high enough
    more, fewer = ([shelf.due(sparsity) for shelf in shelves] for sparsity in (low, high))
    if fits(more):
        return _merge(shelves, more)
    while sum(more) - sum(fewer) > 1 and low < (middle := (low + high) / 2) < high:
        due = [shelf.due(middle) for shelf in shelves]
        if fits(due):
            high, fewer = middle, due
        else:
            low, more = middle, due
    for index in range(len(shelves)):
        while fewer[index] < more[index]:
            tried = [*fewer[:index], fewer[index] + 1, *fewer[index + 1 :]]
            if not fits(tried):
                return _merge(shelves, fewer)
            fewer = tried
    return _merge(shelves, fewer)


class _Shelf:
    """The atoms of a pool without scores."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._atoms = pool.read_bounds()
        self._allocation: Allocation = pool.allocation
        if pool.allocation.needs_scores:
            self._allocation = ERKAllocation(scale=0)

    def due(self, sparsity: float) -> int:
        """Return the number of atoms that are due at a sparsity, between floors and caps."""
        return self._pool.clamp_due(self._atoms, sparsity)

    def keep(self, due: int) -> dict[str, int]:
        """Return the number of atoms that each group keeps where the pool may keep ``due``."""
        return self._pool.round_keeps(self._allocation.share_out(self._atoms, due), self._atoms)


def _merge(shelves: Sequence[_Shelf], due: Sequence[int]) -> dict[str, int]:
    kept: dict[str, int] = {}
    for shelf, number in zip(shelves, due, strict=True):
        kept |= shelf.keep(number)
    return kept
