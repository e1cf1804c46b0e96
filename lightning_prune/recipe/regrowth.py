"""Dynamic sparse training: what is dropped grows back elsewhere."""

from dataclasses import dataclass

from lightning_prune.recipe.criteria import Criterion, GradientCriterion, RandomCriterion
from lightning_prune.recipe.schedules import CosineSchedule, Schedule


@dataclass(frozen=True, kw_only=True)
class Regrow:
    r"""Go on looking for better weights: drop the worst of the kept, grow as many of the pruned.

    At each due point :math:`t` of ``schedule``, of the :math:`k` atoms that a tensor keeps the

    .. math:: n = \mathrm{round}(k \, \alpha \, (1 - f(t)))

    with the lowest scores of the `Pruner`'s criterion are pruned, and as many of the others grow by
    the scores of ``criterion``: those that were pruned before, inside the pattern. The number kept
    is the same to the atom. What grows starts at 0, with an optimizer state of zeros.

    With `GradientCriterion` this is RigL: Evci et al., "Rigging the Lottery" (2020),
    https://arxiv.org/abs/1911.11134; with `RandomCriterion` it is SET: Mocanu et al., "Scalable
    Training of Artificial Neural Networks with Adaptive Sparse Connectivity" (2018),
    https://arxiv.org/abs/1707.04780. Both start from a random mask: ``OneShotSchedule(end=0)`` and
    `ERKAllocation`.

    Args:
        criterion: What grows: the highest scores. The gradients are those of the pruned network
            for all its weights. It must not gather anything over the steps.
        share: Fraction :math:`\alpha` of the kept atoms that is exchanged at first, in (0, 1].
        schedule: When; it rises from 0 to 1 while the share falls to 0. By default a cosine over
            the first three quarters of the training.
        first: Which weights a pool keeps in its first update, while none is pruned; None for the
            `Pruner`'s criterion.

    Raises:
        ValueError: If ``share`` is out of range or ``criterion`` gathers something.

    Examples:
        >>> regrow = Regrow(schedule=CosineSchedule(begin=0, end=100, every=10, unit="step"))
        >>> [round(regrow.share_at(step), 3) for step in (0, 50, 100)]
        [0.3, 0.15, 0.0]
    """

    criterion: Criterion = GradientCriterion()
    share: float = 0.3
    schedule: Schedule = CosineSchedule(begin=0.0, end=0.75)
    first: Criterion | None = RandomCriterion()

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"need 0 < share <= 1, got share={self.share}")
        for name, criterion in (("criterion", self.criterion), ("first", self.first)):
            if criterion is not None and criterion.gathers:
                raise ValueError(
                    f"need a criterion that gathers nothing over the steps, got {name}="
                    f"{criterion}; use GradientCriterion, RandomCriterion or MagnitudeCriterion"
                )

    def share_at(self, t: float) -> float:
        """Return the share that is exchanged at ``t``, in the unit of the schedule."""
        return self.share * (1 - self.schedule(t))
