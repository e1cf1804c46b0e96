"""The recipes that `mnist.py` compares, with their bars."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lightning_prune import (
    Allocation,
    Criterion,
    ERKAllocation,
    GlobalAllocation,
    GradientCriterion,
    LAMPAllocation,
    OneShotSchedule,
    PolynomialSchedule,
    RandomCriterion,
    Regrow,
    StraightThrough,
    TaylorCriterion,
    UniformAllocation,
)

DENSE, RANDOM = "dense", "static random, ERK"


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of the table: the answers to the five questions, and the expected accuracy.

    Args:
        arguments: Returns the arguments of `PruningCallback` for a seed, but for the sparsity.
        by_hand: Accuracies of a training loop that was written by hand, by sparsity.
        bars: The least mean accuracy, in points, by sparsity.
        above_random: The least gain over a static random mask, in points, by sparsity.
    """

    arguments: Callable[[int], dict[str, Any]] = lambda seed: {}
    by_hand: Mapping[float, str] = field(default_factory=dict)
    bars: Mapping[float, float] = field(default_factory=dict)
    above_random: Mapping[float, float] = field(default_factory=dict)


def ramp(allocation: Allocation, end: float = 0.7) -> Callable[[int], dict[str, Any]]:
    """Return the cubic ramp that begins at 10 % of the steps."""
    schedule = PolynomialSchedule(begin=0.1, end=end)
    return lambda seed: {"schedule": schedule, "allocation": allocation}


def regrow(criterion: Callable[[int], Criterion]) -> Callable[[int], dict[str, Any]]:
    """Return a random mask from the first step on; each update moves a share of the weights.

    Args:
        criterion: Returns the criterion of the weights that grow, for a seed.
    """
    return lambda seed: {
        "schedule": OneShotSchedule(end=0),
        "allocation": ERKAllocation(),
        "regrow": Regrow(criterion=criterion(seed), first=RandomCriterion(seed=seed)),
    }


ROWS = {
    DENSE: Row(by_hand={0.0: "98.28 ± 0.05"}),
    "gradual, uniform": Row(arguments=ramp(UniformAllocation())),
    "gradual, global": Row(
        arguments=ramp(GlobalAllocation()),
        by_hand={0.95: "97.71 ± 0.09", 0.98: "96.33 ± 0.14"},
        bars={0.95: 97.40, 0.98: 95.95},
    ),
    "gradual, ERK": Row(
        arguments=ramp(ERKAllocation()),
        by_hand={0.95: "97.73 ± 0.10", 0.98: "96.23 ± 0.12"},
        bars={0.95: 97.40, 0.98: 95.85},
    ),
    "the default": Row(),
    "gradual to 75 %, ERK": Row(arguments=ramp(ERKAllocation(), end=0.75)),
    "gradual, LAMP": Row(
        arguments=ramp(LAMPAllocation()),
        by_hand={0.95: "97.69 ± 0.16", 0.98: "96.42 ± 0.19"},
        bars={0.95: 97.35, 0.98: 96.05},
    ),
    "straight-through, ERK": Row(
        arguments=lambda seed: {
            "allocation": ERKAllocation(),
            "straight_through": StraightThrough(gradient_scale=1.0),
        },
        bars={0.98: 97.60, 0.99: 96.90},
    ),
    "straight-through with scaled gradients, ERK": Row(
        arguments=lambda seed: {
            "allocation": ERKAllocation(),
            "straight_through": StraightThrough(),
        },
    ),
    "one-shot in the middle, global": Row(
        arguments=lambda seed: {
            "schedule": OneShotSchedule(end=0.4),  # the middle of the gradual ramps
            "allocation": GlobalAllocation(),
        },
        by_hand={0.95: "97.13 ± 0.14", 0.98: "94.95 ± 0.12"},
        bars={0.95: 96.80, 0.98: 94.60},
    ),
    "SNIP": Row(
        arguments=lambda seed: {
            "schedule": OneShotSchedule(end=0),
            "allocation": GlobalAllocation(),
            "criterion": TaylorCriterion(),
        },
        bars={0.95: 96.15, 0.98: 93.10},
    ),
    RANDOM: Row(
        arguments=lambda seed: {
            "schedule": OneShotSchedule(end=0),
            "allocation": ERKAllocation(),
            "criterion": RandomCriterion(seed=seed),
        },
    ),
    "SET": Row(
        arguments=regrow(lambda seed: RandomCriterion(seed=seed)),
        bars={0.98: 93.00},
        above_random={0.98: 0.25},
    ),
    "RigL": Row(
        arguments=regrow(lambda seed: GradientCriterion()),
        bars={0.98: 93.30},
        above_random={0.98: 0.5},
    ),
}
