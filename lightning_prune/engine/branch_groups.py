"""Alike residual branches, in all tensors that they hold."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from lightning_prune.engine.coupled_groups import CoupledGroup, read_scores, slice_member
from lightning_prune.engine.extents import Extent
from lightning_prune.engine.groups import Scores
from lightning_prune.models.sharding import find_class
from lightning_prune.recipe.tensor import PrunedTensor
from lightning_prune.tensors.ranking import compute_keep
from lightning_prune.tensors.slices import Slices, find_any_of_slices, sum_slices


@dataclass(kw_only=True, eq=False)
class BranchGroup(CoupledGroup):
    """Residual branches that are made alike; an atom is a branch, with all its parameters.

    Args:
        branch_of: The number of the branch, in the order of the model, by the name of the member.
    """

    branch_of: Mapping[str, int]

    @property
    def name(self) -> str:
        """The name of the first weight of the first branch."""
        return self.members[0].name

    @property
    def kind(self) -> str:
        """The classes of the layers of a branch, as a sorted list.

        Examples:
            ``"LayerNorm Linear Linear in branches"``
        """
        owners = {
            id(each.owner): find_class(each.owner).__name__
            for each in self.members
            if self.branch_of[each.name] == 0
        }
        return " ".join(sorted(owners.values())) + " in branches"

    @property
    def producers(self) -> tuple[str, ...]:
        """Names of the members that are scored."""
        return tuple(member.name for member in self.members if member.is_scored)

    @property
    def weights_per_atom(self) -> float:
        """Number of scored weights in a branch."""
        return sum(each.total for each in self.members if each.is_scored) / self.total

    @property
    def total(self) -> int:
        """Number of branches, pruned ones included."""
        return max(self.branch_of.values()) + 1

    @property
    def floor(self) -> int:
        """Least number of branches that stay: none, but for a cap, since the stream goes on."""
        return compute_keep(self.total, self.members[0].most)

    def extents(self) -> Iterator[Extent]:
        """Yield all members: of equally large branches, each kept one keeps its share."""
        for member in self.members:
            yield Extent(
                parameter=member.name, axis=None, covered=self.total, width=1, length=self.total
            )

    def round_keep(self, due: int) -> int:
        """Return the number of branches that are kept where an allocation gives ``due``."""
        return self.pattern.round_kept(due, self.total, width=1)

    def rank(self, scores: Scores) -> Tensor:
        """Return one score a branch: the mean over its weights that are scored."""
        device = self.members[0].mask.device
        sums = torch.zeros(self.total, dtype=torch.float64, device=device)
        weights = torch.zeros_like(sums)
        scored = [member for member in self.members if member.name in scores]
        slices = [
            slice_member(member, 0, partial(read_scores, member, scores)) for member in scored
        ]
        for member, of_row in zip(scored, sum_slices(slices), strict=True):
            branch = self.branch_of[member.name]
            sums[branch] += _sum_rows(of_row).to(device)
            weights[branch] += member.total
        return sums / weights

    def spread(self, atoms: Tensor) -> Iterator[tuple[PrunedTensor, Tensor]]:
        """Yield each member with the value of its branch, which spreads over all its weights."""
        for member in self.members:
            value = atoms[self.branch_of[member.name]]
            shape = [1] * len(member.mask.shape)
            yield member, value.view(shape).to(member.mask.device)

    def find_any(self, weights: Callable[[PrunedTensor], Tensor]) -> Tensor:
        """Return which branches have a weight for which a bool tensor of a member is true."""
        found = torch.zeros(self.total, dtype=torch.bool, device=self.members[0].mask.device)
        slices = [slice_member(member, 0, partial(weights, member)) for member in self.members]
        for member, of_row in zip(self.members, find_any_of_slices(slices), strict=True):
            found[self.branch_of[member.name]] |= of_row.any().to(found.device)
        return found


def _sum_rows(of_row: Tensor) -> Tensor:
    """Return the sum of the rows, the same to the bit with any number of threads."""
    whole = Slices(read=lambda: of_row[None], axis=0, shard=None, size=len(of_row))
    return sum_slices([whole])[0][0]
