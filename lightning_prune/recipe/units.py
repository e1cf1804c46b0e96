"""Units of a schedule, and the points that they can count."""

import math
from typing import Literal

Unit = Literal["fraction", "step", "epoch"]

TOLERANCE = 1e-9
"""Absorbs the rounding of ``begin + i * every``: a point that is hit exactly counts as passed."""


def check_point(name: str, value: float, unit: Unit) -> None:
    """Raise ValueError if a schedule cannot reach the point.

    Args:
        name: Name of the argument, for the error.
        value: The point, in ``unit``.
        unit: Unit of the point.
    """
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"need a finite {name} >= 0, got {name}={value}")
    if unit == "fraction" and value > 1:
        raise ValueError(
            f"need {name} <= 1 with unit='fraction' (of the planned training), got {name}={value}; "
            "to count steps or epochs, set unit='step' or unit='epoch'"
        )
    if unit == "step" and value != int(value):
        raise ValueError(
            f"need a whole number of steps with unit='step', got {name}={value}; "
            "for a fraction of the planned training, set unit='fraction'"
        )
