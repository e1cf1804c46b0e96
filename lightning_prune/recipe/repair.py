"""Repair after one-shot pruning: the weights that are left make up for those that went."""

from dataclasses import dataclass

from lightning_prune.arguments.checks import check_fields


@dataclass(frozen=True, kw_only=True)
class Repair:
    r"""Give each layer the weights that best keep the outputs of the dense layer.

    For the inputs :math:`x` of training batches, a layer with weights :math:`W` gets the pruned
    weights :math:`\hat W` of

    .. math:: \min_{\hat W} \sum_x \lVert W x - \hat W x \rVert^2
        + \lambda \lVert W - \hat W \rVert^2

    This is the problem of the optimal brain surgeon, in the form of Frantar & Alistarh, "SparseGPT"
    (2023), https://arxiv.org/abs/2301.00774. The layers take turns in the order in which the model
    calls them. So each layer sees the inputs that its pruned predecessors make, and keeps the
    outputs that the dense model has on the same samples. Where no criterion gives the mask, mask
    and weights are searched together: Meng et al., "ALPS" (2024),
    https://arxiv.org/abs/2406.07831. Then conjugate gradients fit all kept weights of the layer.

    Args:
        damping: :math:`\lambda` as a part of the mean squared input, positive. More damping keeps
            weights nearer to the dense weights.
        rounds: Number of steps of conjugate gradients for each layer, at least 0. As many steps as
            the layer has inputs give the exact solution; 10 steps come near.

    Raises:
        ValueError: If an argument is out of range.
    """

    damping: float = 0.01
    rounds: int = 10

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.damping > 0:
            raise ValueError(f"need damping > 0, got damping={self.damping}")
        if self.rounds < 0:
            raise ValueError(f"need rounds >= 0, got rounds={self.rounds}")
