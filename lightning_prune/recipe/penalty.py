"""A growing penalty: what goes next shrinks before it goes."""

from dataclasses import dataclass

from lightning_prune.arguments.checks import check_fields
from lightning_prune.recipe.schedules import Schedule


@dataclass(frozen=True, kw_only=True)
class GrowingPenalty:
    r"""Shrink the weights that go next, more and more, so that the network learns to do without.

    The penalty looks ahead on the schedule. It acts on the atoms (channels, blocks or weights) that
    the schedule would take within the next ``ahead``, by the present scores. It looks ten times
    within ``ahead``. The penalty on an atom starts with :math:`\lambda / 10`, and grows at each
    look at which the atom is among these, up to :math:`\lambda`; else it ends. After each optimizer
    step at the learning rate :math:`\eta`

    .. math:: w \leftarrow w - \eta \lambda \min(0.1 + t / a, 1) \, w

    where :math:`t` is the time since the atom was chosen, up to the last look, and :math:`a` the
    time ``ahead``. All weights of a channel shrink: also the bias, the normalization and the inputs
    of the layers that read the channel. So little is left when the channel goes.

    The growth is that of Wang et al., "Neural Pruning via Growing Regularization" (2021),
    https://arxiv.org/abs/2012.09243. The penalty on all weights that go together is that of Fang et
    al., "DepGraph: Towards Any Structural Pruning" (2023), https://arxiv.org/abs/2301.12900. Both
    add :math:`\lambda w` to the gradient. Here the weights shrink apart from the gradient, as by
    the weight decay of AdamW. So adaptive optimizers do not divide the penalty away, gradients are
    clipped without it, and criteria see the gradients of the loss alone.

    The weights shrink by the fraction :math:`\eta \lambda` a step at most. So a small learning rate
    needs a large strength. Whether a penalty helps depends on the network: measure it. To compare
    arms with and without a penalty, run ``benchmarks/growing_penalty.py``.

    Args:
        largest: The largest strength :math:`\lambda`, positive. The default suits SGD at learning
            rates near 0.1; for AdamW at 0.005, try 30.
        ahead: The time that the strength takes to grow, as a share of the time from the start of
            the training to the schedule's end, in (0, 1].

    Raises:
        ValueError: If an argument is out of range.
    """

    largest: float = 3.0
    ahead: float = 0.2

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.largest > 0:
            raise ValueError(f"need largest > 0, got largest={self.largest}")
        if not 0 < self.ahead <= 1:
            raise ValueError(f"need 0 < ahead <= 1, got ahead={self.ahead}")

    def check_schedule(self, schedule: Schedule) -> None:
        """Raise ValueError if the schedule leaves no time before the end."""
        if schedule.end == 0:
            raise ValueError(
                "need training before the end of the schedule for penalty, got end=0; raise end"
            )
