"""A criterion of your own. `configs/digits_own_criterion.yaml` names it."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lightning_prune import Criterion, PrunedTensor


@dataclass(frozen=True, kw_only=True)
class IncreaseCriterion(Criterion):
    """Keep weights that have grown: Zhou et al. (2019), https://arxiv.org/abs/1905.01067."""

    has_signed_scores: ClassVar[bool] = True  # scores can be negative

    def observe(self, tensor: PrunedTensor, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Remember the magnitudes before the first step."""
        return state or {"before": tensor.weights.abs()}

    def score(self, tensor: PrunedTensor, state: dict[str, Tensor]) -> Tensor:
        """Return the growth of each magnitude."""
        return tensor.weights.abs() - state["before"]
