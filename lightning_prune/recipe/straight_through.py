"""Straight-through training: pruned weights go on learning behind the mask."""

from dataclasses import dataclass

from lightning_prune.arguments.checks import check_fields


@dataclass(frozen=True, kw_only=True)
class StraightThrough:
    r"""Let pruned weights go on learning, and choose the masks anew after each step.

    The forward pass sees the masked weights :math:`m \odot w`. The optimizer then moves all weights
    by the gradient of the masked network, as if the mask were not there:

    .. math:: w \leftarrow w - \eta \, \frac{\partial L}{\partial (m \odot w)}

    This is the straight-through estimator of Bengio et al. (2013), https://arxiv.org/abs/1308.3432.
    A weight that was pruned by mistake returns as soon as its score is high enough. Between steps
    the pruned weights are exactly 0 in the model. Their values are in the state of the pruner.

    Vanderschueren & De Vleeschouwer, "Are Straight-Through gradients and Soft-Thresholding all you
    need for Sparse Training?" (ST-3, 2023), https://arxiv.org/abs/2212.01076, and Glentis
    Georgoulakis et al., "Feather" (2023), https://arxiv.org/abs/2310.02448, train this way along a
    ramp. ST-3 also moves each kept weight toward 0 by the size of the largest pruned weight, and
    Feather by less. Here the kept weights stay as they are.

    Args:
        every: Number of optimizer steps from a choice of the masks to the next. Due points of the
            schedule choose, too.

    Raises:
        ValueError: If ``every`` is less than 1.
    """

    every: int = 1

    def __post_init__(self) -> None:
        check_fields(self)
        if self.every < 1:
            raise ValueError(f"need every >= 1, got every={self.every}")
