"""A criterion of your own: see `configs/digits_own_criterion.yaml`, which names it."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lightning_prune import Criterion, PrunedTensor


@dataclass(frozen=True, kw_only=True)
class IncreaseCriterion(Criterion):
    """Keep what training has made larger: Zhou et al. (2019), https://arxiv.org/abs/1905.01067."""

    has_signed_scores: ClassVar[bool] = True  # scores can be negative

    def observe(self, tensor: PrunedTensor, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Remember what the first step began with."""
        return state or {"before": tensor.weights.abs()}

    def score(self, tensor: PrunedTensor, state: dict[str, Tensor]) -> Tensor:
        """Return by how much each magnitude has grown."""
        return tensor.weights.abs() - state["before"]
