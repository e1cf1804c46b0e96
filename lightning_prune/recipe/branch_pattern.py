"""Whole residual branches: depth pruning."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lightning_prune.recipe.allocations import Allocation, GlobalAllocation
from lightning_prune.recipe.patterns import Pattern
from lightning_prune.tensors.ranking import choose_best


@dataclass(frozen=True, kw_only=True)
class BranchPattern(Pattern):
    r"""Whole residual branches :math:`f` of :math:`x + f(x)`: depth pruning.

    Such are the convolutions of a residual block, or the attention or the feed-forward layers of a
    transformer. Pruning sets all parameters of the branch to zero, normalizations inside the branch
    included. So :math:`f(x) = 0`, and only the stream :math:`x` is left. `shrink` leaves the branch
    out, with the same outputs: Huang et al., "Deep Networks with Stochastic Depth" (2016),
    https://arxiv.org/abs/1603.09382, found that networks do without branches.

    A trace of the model finds the branches; it needs an example of the input. The stream must have
    the shape of the result, so a block that changes the shape stays dense. The branch must be
    computed in modules of its own. What cannot be left out exactly, which is tried on a copy, stays
    dense, and the table says why. The score of a branch is the mean over all weights of the branch.

    Branches that are made alike share a group. A group may lose all its branches. So branches
    compete in one ranking by default, `GlobalAllocation`, and the ``sparsity`` is a fraction of all
    branches.

    Examples:
        >>> import torch
        >>> BranchPattern()(torch.tensor([4.0, 3.0, 1.0, 2.0]), keep=2).tolist()
        [True, True, False, False]
    """

    couples_tensors: ClassVar[bool] = True
    spans_branches: ClassVar[bool] = True

    def default_allocation(self) -> Allocation:
        """Return one ranking of all branches."""
        return GlobalAllocation()

    def __call__(self, scores: Tensor, keep: int) -> Tensor:
        """Return a bool mask of the branches that keeps exactly ``keep``."""
        return choose_best(scores, keep)
