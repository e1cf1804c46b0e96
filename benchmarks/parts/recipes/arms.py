"""The arms that `recipes.py` compares, with the timings that are tried."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lightning_prune import (
    CosineSchedule,
    ERKAllocation,
    GlobalAllocation,
    OneShotSchedule,
    Phases,
    PolynomialSchedule,
    RandomCriterion,
    Regrow,
    StraightThrough,
    UniformAllocation,
)

DENSE, GRADUAL = "dense", "gradual magnitude"
ERK = "ERK"
ALLOCATIONS = {
    ERK: ERKAllocation(),
    "uniform": UniformAllocation(),
    "global": GlobalAllocation(),
}
Answers = Callable[[int], dict[str, Any]]
"""Returns arguments of `PruningCallback` for a seed."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A way to prune, but for sparsity and allocation.

    Args:
        name: Names the arm.
        timings: The answers to the question *when?* that are tried, by name.
    """

    name: str
    timings: Mapping[str, Answers]


def ramp(begin: float, end: float, **others: Any) -> Answers:
    """Return a cubic ramp with further answers; without them, this is gradual magnitude."""
    return lambda seed: {"schedule": PolynomialSchedule(begin=begin, end=end), **others}


def try_ramps(**others: Any) -> Mapping[str, Answers]:
    """Return a short ramp, the default ramp and a long ramp with further answers."""
    points = ((0.0, 0.3), (0.1, 0.5), (0.2, 0.8))
    return {f"ramp from {begin:g} to {end:g}": ramp(begin, end, **others) for begin, end in points}


def alternate(end: float, rounds: int) -> Answers:
    """Return AC/DC: dense and sparse phases up to ``end``, each sparse phase at the target."""
    phases = Phases(begin=0.1, end=end, rounds=rounds)
    return lambda seed: {"schedule": OneShotSchedule(end=0), "phases": phases}


def regrow(end: float, every: float) -> Answers:
    """Return RigL: a random mask from the first step on, with exchanges up to ``end``."""
    return lambda seed: {
        "schedule": OneShotSchedule(end=0),
        "regrow": Regrow(
            schedule=CosineSchedule(begin=0.0, end=end, every=every),
            first=RandomCriterion(seed=seed),
        ),
    }


ARMS = {
    arm.name: arm
    for arm in (
        Arm(name=DENSE, timings={"": lambda seed: {}}),
        Arm(name=GRADUAL, timings=try_ramps()),
        Arm(name="straight-through", timings=try_ramps(straight_through=StraightThrough())),
        Arm(
            name="AC/DC",
            timings={
                "4 rounds to 0.5": alternate(0.5, 4),
                "3 rounds to 0.7": alternate(0.7, 3),
                "7 rounds to 0.85": alternate(0.85, 7),
            },
        ),
        Arm(
            name="RigL",
            timings={
                "each 0.01 to 0.75": regrow(0.75, 0.01),
                "each 0.03 to 0.75": regrow(0.75, 0.03),
                "each 0.03 to 0.9": regrow(0.9, 0.03),
            },
        ),
    )
}
