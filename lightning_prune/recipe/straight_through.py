"""Straight-through training: pruned weights go on learning behind the mask."""

from dataclasses import dataclass

from lightning_prune.arguments.checks import check_fields


@dataclass(frozen=True, kw_only=True)
class StraightThrough:
    r"""Let pruned weights go on learning, and choose the masks anew after each step.

    The forward pass sees the masked weights :math:`m \odot w`. The optimizer then moves all weights
    by the gradient of the masked network, which is scaled by :math:`\theta` for pruned weights.
    With plain SGD of learning rate :math:`\eta` this is

    .. math::
        w \leftarrow w - \eta \, (m + \theta (1 - m)) \odot \frac{\partial L}{\partial (m \odot w)}

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
        gradient_scale: The factor :math:`\theta` on the gradients of pruned weights, in (0, 1], as
            in Feather. Below 1, fewer pruned weights return by chance. SGD needs this at high
            sparsities. With Adam, 1.0 kept more accuracy.

    Raises:
        ValueError: If ``every`` is less than 1, or ``gradient_scale`` is not in (0, 1].
    """

    every: int = 1
    gradient_scale: float = 0.25

    def __post_init__(self) -> None:
        check_fields(self)
        if self.every < 1:
            raise ValueError(f"need every >= 1, got every={self.every}")
        if not 0 < self.gradient_scale <= 1:
            raise ValueError(
                f"need gradient_scale in (0, 1], got gradient_scale={self.gradient_scale}"
            )
