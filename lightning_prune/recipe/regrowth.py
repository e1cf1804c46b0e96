"""Dynamic sparse training: dropped weights grow back elsewhere."""

from dataclasses import dataclass

from lightning_prune.arguments.checks import check_fields
from lightning_prune.recipe.criteria import Criterion, GradientCriterion, RandomCriterion
from lightning_prune.recipe.schedules import CosineSchedule, Schedule


@dataclass(frozen=True, kw_only=True)
class Regrow:
    r"""Search for better weights: drop the worst kept weights, grow as many pruned weights.

    At each due point :math:`t` of ``schedule``, a tensor that keeps :math:`k` atoms exchanges

    .. math:: n = \mathrm{round}(k \, \alpha \, (1 - f(t)))

    atoms. The tensor drops the :math:`n` kept atoms with the lowest scores of the `Pruner`'s
    criterion. From the atoms that were pruned before, the :math:`n` atoms with the highest scores
    of ``criterion`` grow, inside the pattern. The tensor then keeps exactly :math:`k` atoms again.
    A grown weight starts at 0, with an optimizer state of zeros.

    With `GradientCriterion` this is RigL: Evci et al., "Rigging the Lottery" (2020),
    https://arxiv.org/abs/1911.11134; with `RandomCriterion` it is SET: Mocanu et al., "Scalable
    Training of Artificial Neural Networks with Adaptive Sparse Connectivity" (2018),
    https://arxiv.org/abs/1707.04780. Both start from a random mask: ``OneShotSchedule(end=0)`` and
    `ERKAllocation`.

    Args:
        criterion: The criterion for growth: the atoms with the highest scores grow. It sees the
            gradients of all weights, pruned weights included. It must gather nothing over the
            steps.
        share: Fraction :math:`\alpha` of the kept atoms that the first exchange drops, in (0, 1].
        schedule: When; it rises from 0 to 1 while the share falls to 0. By default a cosine over
            the first three quarters of the training.
        first: The criterion for the first update of a pool, when all weights are still kept; None
            for the `Pruner`'s criterion.

    Raises:
        ValueError: If ``share`` is out of range, or if ``criterion`` or ``first`` gathers a state.

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
        check_fields(self)
        if not 0 < self.share <= 1:
            raise ValueError(f"need 0 < share <= 1, got share={self.share}")
        for name, criterion in (("criterion", self.criterion), ("first", self.first)):
            if criterion is not None and criterion.gathers:
                raise ValueError(
                    f"need a criterion that gathers nothing over the steps, got {name}="
                    f"{criterion}; use GradientCriterion, RandomCriterion or MagnitudeCriterion"
                )

    def share_at(self, t: float) -> float:
        """Return the share that an exchange at ``t`` drops; ``t`` is in the schedule's unit."""
        return self.share * (1 - self.schedule(t))
