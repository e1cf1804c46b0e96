"""When: the fraction of the final sparsity that is due at a moment of the training."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from lightning_prune.arguments.checks import check_fields
from lightning_prune.recipe.units import TOLERANCE, Unit, check_point


class Schedule(ABC):
    r"""The answer to *when?*, a pure function of the moment :math:`t`.

    A subclass is a frozen dataclass with a default for every field. ``schedule(t)`` is the
    fraction of the final sparsity that is due at ``t``: in [0, 1], never falling, 0 before the
    first due point and 1 from ``end`` on. The target of a tensor is the final sparsity of the
    tensor times ``schedule(t)``. So a single schedule serves tensors with different sparsities.
    """

    def __post_init__(self) -> None:
        """Raise TypeError if a field has the wrong type; a subclass calls this method first."""
        check_fields(self)

    @property
    @abstractmethod
    def unit(self) -> Unit:
        """Unit of ``t``: a ``"fraction"`` of the planned training, ``"step"`` or ``"epoch"``."""

    @property
    @abstractmethod
    def end(self) -> float:
        """Moment when the last update is due, in ``unit``."""

    @property
    def has_rounds(self) -> bool:
        """Whether the user has placed the updates as rounds, with training between the rounds."""
        return True

    @abstractmethod
    def __call__(self, t: float) -> float:
        """Return the fraction of the final sparsity that is due at ``t``, in [0, 1]."""

    @abstractmethod
    def last_due(self, t: float) -> float | None:
        """Return the last moment up to ``t`` when an update is due; None before the first."""


@dataclass(frozen=True, kw_only=True)
class Ramp(Schedule):
    """A schedule that climbs from ``begin`` to ``end``, with an update after each ``every``.

    A subclass defines only `climb`.

    Args:
        begin: Start of the ramp, in ``unit``; nothing is due before.
        end: End of the ramp, in ``unit``; everything is due from ``end`` on.
        every: Distance between updates, in ``unit``; None for a hundredth of the ramp.
        unit: Unit of ``begin``, ``end`` and ``every``: a ``"fraction"`` of the planned training,
            in [0, 1], optimizer ``"step"``s or ``"epoch"``s, both 0-based.

    Raises:
        ValueError: If an argument is out of range, or ``end`` is before ``begin``.
    """

    begin: float = 0.1
    end: float = 0.5
    every: float | None = None
    unit: Unit = "fraction"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_point("begin", self.begin, self.unit)
        check_point("end", self.end, self.unit)
        if self.end < self.begin:
            raise ValueError(f"need end >= begin={self.begin}, got end={self.end}")
        if self.every is not None:
            check_point("every", self.every, self.unit)
            if self.every == 0:
                raise ValueError("need every > 0 (or null: a hundredth of the ramp), got every=0")

    @property
    def has_rounds(self) -> bool:
        """Whether the user has set ``every``, the distance between updates."""
        return self.every is not None

    def __call__(self, t: float) -> float:
        """Return the fraction of the final sparsity that is due at ``t``, in [0, 1]."""
        if t < self.begin:
            return 0.0
        if t >= self.end:
            return 1.0
        return self.climb((t - self.begin) / (self.end - self.begin))

    def last_due(self, t: float) -> float | None:
        """Return the last of ``begin, begin + every, ..., end`` up to ``t``; None before all."""
        if t >= self.end - TOLERANCE:
            return self.end
        if t < self.begin - TOLERANCE:
            return None
        every = (self.end - self.begin) / 100 if self.every is None else self.every
        return self.begin + math.floor((t - self.begin) / every + TOLERANCE) * every

    @abstractmethod
    def climb(self, p: float) -> float:
        """Return the height of the ramp, in [0, 1], after a share ``p`` of the ramp, in [0, 1)."""


@dataclass(frozen=True, kw_only=True)
class PolynomialSchedule(Ramp):
    r"""Prune fast while weights are redundant, slowly as they run out.

    .. math:: r(t) = 1 - (1 - r_0)(1 - p)^k, \quad p = (t - t_0) / (t_1 - t_0)

    Multiplied by the final sparsity, and with ``power=3``, this is eq. 1 of Zhu & Gupta,
    "To prune, or not to prune" (2017), https://arxiv.org/abs/1710.01878.

    Args:
        begin: Start of the ramp, in ``unit``; nothing is due before.
        end: End of the ramp, in ``unit``; everything is due from ``end`` on.
        every: Distance between updates, in ``unit``; a hundredth of the ramp by default.
        unit: Unit of ``begin``, ``end`` and ``every``: a ``"fraction"`` of the planned training,
            in [0, 1], or optimizer ``"step"``s or ``"epoch"``s, both 0-based.
        initial: Fraction :math:`r_0` of the final sparsity due at ``begin``, in [0, 1].
        power: Exponent :math:`k`, positive; 1 is linear.

    Raises:
        ValueError: If not ``0 <= begin <= end``, or another argument is out of range.

    Examples:
        >>> schedule = PolynomialSchedule(begin=100, end=200, unit="step")
        >>> [schedule(step) for step in (99, 100, 150, 200, 999)]
        [0.0, 0.0, 0.875, 1.0, 1.0]
    """

    initial: float = 0.0
    power: float = 3.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.initial <= 1:
            raise ValueError(f"need 0 <= initial <= 1, got initial={self.initial}")
        if not (self.power > 0 and math.isfinite(self.power)):
            raise ValueError(f"need a finite power > 0, got power={self.power}")

    def climb(self, p: float) -> float:
        """Return the height of the ramp after a share ``p`` of the ramp."""
        return 1 - float((1 - self.initial) * (1 - p) ** self.power)


@dataclass(frozen=True, kw_only=True)
class CosineSchedule(Ramp):
    r"""Prune slowly at both ends of the ramp and fastest in the middle.

    .. math:: r(t) = (1 - \cos(\pi p)) / 2, \quad p = (t - t_0) / (t_1 - t_0)

    This is half a period of the cosine of Loshchilov & Hutter, "SGDR" (2017),
    https://arxiv.org/abs/1608.03983, used for a sparsity instead of a learning rate.

    Args:
        begin: Start of the ramp, in ``unit``; nothing is due before.
        end: End of the ramp, in ``unit``; everything is due from ``end`` on.
        every: Distance between updates, in ``unit``; a hundredth of the ramp by default.
        unit: Unit of ``begin``, ``end`` and ``every``: a ``"fraction"`` of the planned training,
            in [0, 1], or optimizer ``"step"``s or ``"epoch"``s, both 0-based.

    Raises:
        ValueError: If not ``0 <= begin <= end``, or another argument is out of range.

    Examples:
        >>> schedule = CosineSchedule(begin=0, end=2, unit="epoch")
        >>> [round(schedule(epoch), 3) for epoch in (0, 0.5, 1, 2)]
        [0.0, 0.146, 0.5, 1.0]
    """

    def climb(self, p: float) -> float:
        """Return the height of the ramp after a share ``p`` of the ramp."""
        return (1 - math.cos(math.pi * p)) / 2


@dataclass(frozen=True, kw_only=True)
class ExponentialSchedule(Ramp):
    r"""Remove a constant share of the weights left at each update.

    .. math:: r(t) = \frac{1 - e^{-\lambda p}}{1 - e^{-\lambda}}, \quad p = (t - t_0) / (t_1 - t_0)

    With :math:`\lambda = -\ln(1 - s)` for the final sparsity :math:`s`, the number of weights left
    shrinks by the same factor at each update. This is the continuous form of iterative magnitude
    pruning: Han et al., "Learning both Weights and Connections" (2015),
    https://arxiv.org/abs/1506.02626.

    Args:
        begin: Start of the ramp, in ``unit``; nothing is due before.
        end: End of the ramp, in ``unit``; everything is due from ``end`` on.
        every: Distance between updates, in ``unit``; a hundredth of the ramp by default.
        unit: Unit of ``begin``, ``end`` and ``every``: a ``"fraction"`` of the planned training,
            in [0, 1], or optimizer ``"step"``s or ``"epoch"``s, both 0-based.
        rate: :math:`\lambda`, positive; the default, ln 10, suits a final sparsity of 0.9.

    Raises:
        ValueError: If not ``0 <= begin <= end``, or another argument is out of range.

    Examples:
        >>> schedule = ExponentialSchedule(begin=0, end=2, unit="step", rate=-math.log(1 - 0.75))
        >>> [round(0.75 * schedule(step), 6) for step in (0, 1, 2)]
        [0.0, 0.5, 0.75]
    """

    rate: float = math.log(10)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.rate > 0 and math.isfinite(self.rate)):
            raise ValueError(f"need a finite rate > 0, got rate={self.rate}")

    def climb(self, p: float) -> float:
        """Return the height of the ramp after a share ``p`` of the ramp."""
        return math.expm1(-self.rate * p) / math.expm1(-self.rate)


@dataclass(frozen=True, kw_only=True)
class OneShotSchedule(Schedule):
    """Prune everything in a single update, then train on.

    Args:
        end: Moment when the update is due, in ``unit``.
        unit: Unit of ``end``: a ``"fraction"`` of the planned training, in [0, 1], or optimizer
            ``"step"``s or ``"epoch"``s, both 0-based.

    Raises:
        ValueError: If ``end`` is negative, or greater than 1 as a fraction.

    Examples:
        >>> schedule = OneShotSchedule(end=100, unit="step")
        >>> [schedule(step) for step in (99, 100)]
        [0.0, 1.0]
    """

    end: float = 0.5
    unit: Unit = "fraction"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_point("end", self.end, self.unit)

    def __call__(self, t: float) -> float:
        """Return 0 before ``end`` and 1 from ``end`` on."""
        return 1.0 if t >= self.end else 0.0

    def last_due(self, t: float) -> float | None:
        """Return ``end`` from ``end`` on; None before."""
        return self.end if t >= self.end - TOLERANCE else None


@dataclass(frozen=True, kw_only=True)
class MultiStepSchedule(Schedule):
    r"""Prune in rounds, with training between them.

    With n rounds and a ``share`` :math:`q`, the i-th round asks for this fraction of the final
    sparsity:

    .. math:: r_i = \frac{1 - (1 - q)^i}{1 - (1 - q)^n}

    If the final sparsity is :math:`1 - (1 - q)^n`, each round removes the share q of the weights
    left. With q = 0.2 this is the iterative pruning of Frankle & Carbin, "The Lottery Ticket
    Hypothesis" (2019), https://arxiv.org/abs/1803.03635.

    Args:
        milestones: Moments when the rounds are due, rising, in ``unit``.
        fractions: Fraction of the final sparsity due at each milestone, never falling; the last
            fraction is 1. By default each round adds the same fraction.
        share: Instead of ``fractions``, the share of the weights left that each round removes, in
            (0, 1).
        unit: Unit of the milestones: a ``"fraction"`` of the planned training, in [0, 1], or
            optimizer ``"step"``s or ``"epoch"``s, both 0-based.

    Raises:
        ValueError: If the milestones do not rise, the fractions do not fit the milestones, or the
            user gives both fractions and a share.

    Examples:
        >>> schedule = MultiStepSchedule(milestones=(3, 6, 9), share=0.2, unit="epoch")
        >>> [round((1 - 0.8**3) * schedule(epoch), 6) for epoch in (0, 3, 6, 9)]
        [0.0, 0.2, 0.36, 0.488]
        >>> schedule = MultiStepSchedule(milestones=(1, 2), fractions=(0.8, 1), unit="epoch")
        >>> [schedule(epoch) for epoch in (0, 1, 2)]
        [0.0, 0.8, 1.0]
    """

    milestones: tuple[float, ...] = (0.25, 0.5, 0.75)
    fractions: tuple[float, ...] | None = None
    share: float | None = None
    unit: Unit = "fraction"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.milestones or any(
            later <= earlier
            for earlier, later in zip(self.milestones, self.milestones[1:], strict=False)
        ):
            raise ValueError(f"need rising milestones, got milestones={self.milestones}")
        for milestone in self.milestones:
            check_point("milestones", milestone, self.unit)
        if self.fractions is not None and not (
            len(self.fractions) == len(self.milestones)
            and self.fractions[-1] == 1
            and all(0 <= fraction <= 1 for fraction in self.fractions)
            and sorted(self.fractions) == list(self.fractions)
        ):
            raise ValueError(
                "need a fraction in [0, 1] for each milestone, never falling, the last 1, "
                f"got fractions={self.fractions}"
            )
        if self.share is not None and not 0 < self.share < 1:
            raise ValueError(f"need 0 < share < 1, got share={self.share}")
        if self.share is not None and self.fractions is not None:
            raise ValueError(
                f"need either fractions or a share, got fractions={self.fractions} and "
                f"share={self.share}"
            )

    @property
    def end(self) -> float:
        """The last milestone, in ``unit``."""
        return self.milestones[-1]

    def __call__(self, t: float) -> float:
        """Return the fraction due at the last milestone up to ``t``; 0 before the first."""
        passed = sum(milestone <= t for milestone in self.milestones)
        if passed == 0:
            return 0.0
        if self.fractions is not None:
            return float(self.fractions[passed - 1])
        if self.share is not None:
            left = 1 - self.share
            return (1 - left**passed) / (1 - left ** len(self.milestones))
        return passed / len(self.milestones)

    def last_due(self, t: float) -> float | None:
        """Return the last milestone up to ``t``; None before the first."""
        passed = [point for point in self.milestones if t >= point - TOLERANCE]
        return passed[-1] if passed else None
