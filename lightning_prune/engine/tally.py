"""Tallies: numbers on devices that the host reads all at once."""

from collections.abc import Callable

from torch import Tensor

from lightning_prune.tensors.counting import Masked, count_kept
from lightning_prune.tensors.shards import Shard, sum_by_tensor

Counted = tuple[Tensor | Masked, Shard | None, Callable[..., None]]
"""The arguments of `Tally.add`."""


class Tally:
    """Numbers on devices that wait for the host: it reads all of them in a single wait."""

    def __init__(self) -> None:
        self._waiting: list[Counted] = []

    def add(self, count: Tensor | Masked, shard: Shard | None, take: Callable[..., None]) -> None:
        """Let a number, or several, wait.

        Args:
            count: The number, or numbers, of the local part of a tensor; or a mask and what a bool
                tensor keeps. Then the weights that both keep are counted: when the host reads, if
                that is faster for many tensors together, or else at once.
            shard: Place of the local part in the tensor; None for a whole tensor.
            take: Called with the numbers of the whole tensor.
        """
        if isinstance(count, Masked) and not count.shares_launch:
            (count,) = count_kept([count])  # and the bool tensor can be let go
        self._waiting.append((count, shard, take))

    def read(self) -> None:
        """Read all numbers, and hand them over in the order in which they came.

        If a taker raises, no later taker is called. Processes with shards must read together.
        """
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        kept = iter(count_kept([count for count, _, _ in waiting if isinstance(count, Masked)]))
        rows = [
            (next(kept) if isinstance(count, Masked) else count).reshape(-1)
            for count, _, _ in waiting
        ]
        shards = (shard for _, shard, _ in waiting)
        found = [
            (number, shard)
            for row, shard in zip(rows, shards, strict=True)
            for number in row.unbind()
        ]
        numbers = iter(sum_by_tensor(found).tolist())
        for row, (_, _, take) in zip(rows, waiting, strict=True):
            take(*(next(numbers) for _ in range(len(row))))
