"""Tallies: numbers on devices that the host reads all at once."""

from collections.abc import Callable

from torch import Tensor

from lightning_prune.tensors.shards import Shard, sum_by_tensor

Counted = tuple[Tensor, Shard | None, Callable[..., None]]
"""The arguments of `Tally.add`."""


class Tally:
    """Numbers on devices that wait for the host: it reads all of them in a single wait."""

    def __init__(self) -> None:
        self._counts: list[tuple[Tensor, Shard | None]] = []
        self._takers: list[tuple[int, Callable[..., None]]] = []

    def add(self, count: Tensor, shard: Shard | None, take: Callable[..., None]) -> None:
        """Let a number, or several, wait.

        Args:
            count: The number, or numbers, of the local part of a tensor.
            shard: Place of the local part in the tensor; None for a whole tensor.
            take: Called with the numbers of the whole tensor.
        """
        numbers = count.reshape(-1).unbind()
        self._counts += [(number, shard) for number in numbers]
        self._takers.append((len(numbers), take))

    def read(self) -> None:
        """Read all numbers, and hand them over in the order in which they came.

        If a taker raises, no later taker is called. Processes with shards must read together.
        """
        if not self._counts:
            return
        numbers = iter(sum_by_tensor(self._counts).tolist())
        takers, self._counts, self._takers = self._takers, [], []
        for length, take in takers:
            take(*(next(numbers) for _ in range(length)))
