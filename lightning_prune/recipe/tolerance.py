"""How much, as accuracy: the loss of a metric that pruning may cost."""

import math
import re
from dataclasses import dataclass
from typing import Literal

from lightning_prune.arguments.checks import check_fields
from lightning_prune.recipe.schedules import PolynomialSchedule, Schedule

SHARES = PolynomialSchedule(begin=0, end=1, every=2.0**-20, power=1)
"""The schedule under a tolerance: each moment is the share of the final sparsity itself."""

MOST_TRIED = 0.99
"""The final sparsity under a tolerance where a user gives none."""

_ROUNDING = 1e-6  # metrics are in single precision


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    r"""Prune on in rounds while a metric of the validation stays within a tolerance.

    A round prunes, trains, and looks at the metric at each validation. If the metric is within the
    tolerance, the round holds, and the next round begins. If it is not within the tolerance after
    all validations of the round, the training goes back to the last model that held, and tries half
    of the step. The ``sparsity`` of the recipe, 0.99 by default, is the most that is tried. For a
    final sparsity :math:`s`, the i-th of the n rounds that remove a ``share`` :math:`q` each asks
    for

    .. math:: 1 - (1 - s)^{i/n}, \quad n = \lceil \ln(1 - s) / \ln(1 - q) \rceil

    A number of validations is a number of epochs, unless the Trainer validates more or less often.

    Args:
        monitor: Name of a metric that validation logs, such as ``"val_acc"``.
        tolerance: Largest allowed loss of the metric against the dense model, in the unit of the
            metric, at least 0.
        mode: Whether ``"max"`` or ``"min"`` of the metric is good.
        dense: The metric of the dense model; by default it is measured before the first round. If
            the number is given, the training stays dense until the metric is within the tolerance.
        begin: Number of validations before the first round. With 0 the dense model is the model as
            training starts, which is validated then: a trained model.
        share: Share of the weights left that each round removes, in (0, 1).
        recovery: Number of validations in a round before the metric counts, at least 1.
        patience: Number of further validations that a round gets to come back within the tolerance.
        halvings: Number of times that the step is halved, after the first round that does not hold.

    Raises:
        ValueError: If an argument is out of range, or the metric is a loss whose ``"max"`` is good.

    Examples:
        >>> within = Tolerance(monitor="val_acc", tolerance=0.01)
        >>> within.allows(0.965, dense=0.97), within.allows(0.955, dense=0.97)
        (True, False)
        >>> within.count_rounds(0.99), within.count_validations(0.99)
        (7, 31)
    """

    monitor: str
    tolerance: float = 0.01
    mode: Literal["max", "min"] = "max"
    dense: float | None = None
    begin: int = 0
    share: float = 0.5
    recovery: int = 1
    patience: int = 2
    halvings: int = 3

    def __post_init__(self) -> None:
        check_fields(self)
        if not (math.isfinite(self.tolerance) and self.tolerance >= 0):
            raise ValueError(f"need a finite tolerance >= 0, got tolerance={self.tolerance}")
        if self.dense is not None and not math.isfinite(self.dense):
            raise ValueError(f"need a finite metric of the dense model, got dense={self.dense}")
        if not 0 < self.share < 1:
            raise ValueError(f"need 0 < share < 1, got share={self.share}")
        for name, least in (("begin", 0), ("recovery", 1), ("patience", 0), ("halvings", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"need {name} >= {least}, got {name}={getattr(self, name)}")
        if self.mode == "max" and "loss" in re.split(r"[^a-z]+", self.monitor.lower()):
            raise ValueError(
                f"need mode='min' for a loss, got mode='max' with monitor='{self.monitor}'"
            )

    def find_worst(self, dense: float) -> float:
        """Return the worst metric that is within the tolerance of a dense model's."""
        return dense - self.tolerance if self.mode == "max" else dense + self.tolerance

    def allows(self, metric: float, *, dense: float) -> bool:
        """Whether a metric is within the tolerance of the dense model's, up to rounding."""
        slack = _ROUNDING * max(1.0, abs(dense))
        loss = dense - metric if self.mode == "max" else metric - dense
        return loss <= self.tolerance + slack

    def is_better(self, metric: float, than: float) -> bool:
        """Whether a metric is better than another metric."""
        return metric > than if self.mode == "max" else metric < than

    def count_rounds(self, sparsity: float) -> int:
        """Return the number of rounds to a final sparsity, if all of them hold."""
        return max(1, math.ceil(math.log(find_left(sparsity)) / math.log(1 - self.share) - 1e-9))

    def count_validations(self, sparsity: float) -> int:
        """Return the largest number of validations from the start to the end of the last round."""
        rounds = self.count_rounds(sparsity) + self.halvings
        return 1 + self.begin + rounds * (self.recovery + self.patience)

    def choose_schedule(self, schedule: Schedule) -> Schedule:
        """Return the schedule of the engine, in place of the default of a recipe.

        Raises:
            ValueError: If the user has given another schedule.
        """
        if schedule not in (PolynomialSchedule(), SHARES):
            raise ValueError(
                "need either tolerance or a schedule, got both, with schedule="
                f"{type(schedule).__name__}: the rounds of the tolerance say when to prune; leave "
                "schedule out"
            )
        return SHARES


def find_left(sparsity: float) -> float:
    """Return the share of the weights that a final sparsity leaves, at least 1e-4."""
    return max(1 - sparsity, 1e-4)
