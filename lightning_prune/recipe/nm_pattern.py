"""N:M: which of each m weights in a row may stay."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_prune.recipe.allocations import Allocation, UniformAllocation
from lightning_prune.recipe.patterns import Pattern
from lightning_prune.tensors.parts import slice_pieces
from lightning_prune.tensors.ranking import choose_best, choose_best_of_groups
from lightning_prune.tensors.shards import Shard


@dataclass(frozen=True, kw_only=True)
class NMPattern(Pattern):
    """At most n of every m consecutive input channels, for each output and kernel position.

    Sparse tensor cores run 2:4: Mishra et al., "Accelerating Sparse Deep Neural Networks" (2021),
    https://arxiv.org/abs/2104.08378. While a tensor keeps more than n/m, the n best of each m are
    protected and the other weights compete freely. So the ramp is exact and ends in N:M.

    Args:
        n: Number of weights kept in each group of ``m``, in [1, m - 1].
        m: Number of consecutive input channels in a group, at least 2; must divide the number of
            input channels.

    Raises:
        ValueError: If not ``1 <= n < m``.

    Examples:
        >>> NMPattern(n=1, m=2).bounds(
        ...     torch.tensor([[3.0, 4.0, 7.0, 6.0]]), torch.ones(1, 4, dtype=torch.bool), due=3
        ... )[0].tolist()
        [[False, True, True, False]]
    """

    fixes_sparsity: ClassVar[bool] = True
    n: int = 2
    m: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.n < self.m:
            raise ValueError(f"need 1 <= n < m, got n={self.n}, m={self.m}")

    def default_allocation(self) -> Allocation:
        """Return `UniformAllocation`: every tensor ends in N:M, at the same sparsity."""
        return UniformAllocation()

    def check_sparsity(self, sparsity: float) -> None:
        """Raise ValueError if N:M alone is sparser than the target."""
        least = 1 - self.n / self.m
        if 0 < sparsity < least - 1e-9:
            raise ValueError(
                f"need sparsity 0 or at least 1 - n/m = {least:g} for {self.n}:{self.m}, "
                f"got sparsity={sparsity}"
            )

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raise ValueError if m does not divide the input channels."""
        if len(shape) < 2 or shape[1] % self.m:
            inputs = shape[1] if len(shape) > 1 else "no"
            raise ValueError(
                f"need input channels in multiples of m={self.m} for {self.n}:{self.m}, "
                f"got {inputs} input channels"
            )

    @property
    def works_on_shards(self) -> bool:
        """Whether a mask made from shards equals that of the whole tensor: if no group is cut."""
        return True

    def find_atoms(self, shard: Shard) -> Shard:
        """Return the place of the weights; raise ValueError if shards cut m inputs of a group."""
        if shard.is_cut(1, self.m):
            raise ValueError(
                f"need shards that leave each m={self.m} input channels whole for {self}, got "
                f"parts that begin at the input channels {shard.starts[1]}"
            )
        return shard

    def keeps_slices(self, axis: int) -> bool:
        """Whether each index of an axis can keep a weight: but for inputs, which a group spans."""
        return axis != 1

    def bounds(self, scores: Tensor, alive: Tensor, due: float) -> tuple[Tensor, Tensor]:
        """Protect the n best of each m down to n/m; from n/m on, allow no other atoms."""
        n_best = torch.empty_like(alive)
        for rows in slice_pieces(scores):
            inputs_last = scores[rows].masked_fill(~alive[rows], -math.inf).movedim(1, -1)
            best = choose_best_of_groups(inputs_last.reshape(-1, self.m), self.n)
            n_best[rows] = best.view(inputs_last.shape).movedim(-1, 1)
        n_best &= alive
        if due * self.m > scores.numel() * self.n:
            return n_best, alive
        if due * self.m == scores.numel() * self.n:
            return n_best, n_best
        return torch.zeros_like(alive), n_best

    def count_fitting(self, alive: Tensor) -> Tensor:
        """Return how many atoms stay if each group keeps at most n, as a tensor."""
        groups = alive.movedim(1, -1).reshape(-1, self.m)
        dtype = torch.uint8 if self.m < 256 else torch.int64  # torch copies into this dtype
        return groups.sum(1, dtype=dtype).clamp_(max=self.n).sum()

    def count_bounds(
        self, total: int, alive: int, fitting: int, due: float
    ) -> tuple[int, int] | None:
        """Return how many atoms are protected and allowed, as `bounds` chooses them."""
        if type(self).bounds is not NMPattern.bounds:  # a subclass may have others
            return None
        held = fitting if due * self.m >= total * self.n else 0
        return held, alive if due * self.m > total * self.n else fitting

    def is_satisfied(self, alive: Tensor, due: float) -> bool:
        """Whether at most n of each m are alive, or more than n/m are due."""
        groups = alive.movedim(1, -1).reshape(-1, self.m).sum(1)
        return due * self.m > alive.numel() * self.n or bool((groups <= self.n).all())

    def __call__(self, scores: Tensor, keep: int) -> Tensor:
        """Return a bool mask shaped as ``scores`` that keeps exactly ``keep`` weights."""
        return choose_best(scores, keep)
