"""The memory of an update on an accelerator, in bytes for each weight more."""

from unittest.mock import patch

import pytest
import torch
from torch import nn

from benchmarks.kit.memory import record, span
from benchmarks.parts.memory.updates import SquareCriterion
from lightning_prune import (
    GlobalAllocation,
    GradientCriterion,
    LAMPAllocation,
    PolynomialSchedule,
    Pruner,
    Regrow,
    StraightThrough,
    UniformAllocation,
)
from lightning_prune.tensors import parts
from tests.accelerators import as_on_an_accelerator

TWO_UPDATES = PolynomialSchedule(begin=0, end=1, every=1, unit="step", initial=8 / 9)
CHUNKS = {"launch": 1 << 13, "piece": 1 << 13}
"""So small that both models have more weights; then their memory cancels out."""

TENSORS, SIDES = 4, (128, 256)


def measure_update(side, recipe):
    """Return the peak of an update of masks that exist, less what is held before or after."""

    def run(device):
        shape = (side, side)
        net = nn.ParameterDict({f"weight{i}": torch.randn(shape) for i in range(TENSORS)})
        optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
        for parameter in net.parameters():
            parameter.grad = torch.randn_like(parameter)
        pruner = Pruner(schedule=TWO_UPDATES, **recipe)
        pruner.attach(net, optimizer, steps=2)
        pruner.before_step(optimizer)
        optimizer.step()
        with span("update"):
            pruner.before_step(optimizer)
            optimizer.step()  # with straight-through, masks change here
        assert pruner.updates == 2

    with as_on_an_accelerator(), patch.dict(vars(parts.SIZES), CHUNKS):
        return record(run, torch.device("cpu")).find_excess("update")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "most"),
    [
        ({"allocation": UniformAllocation()}, 1),
        ({}, 1),
        ({"allocation": GlobalAllocation()}, 1),
        ({"allocation": LAMPAllocation()}, 2),
        ({"criterion": SquareCriterion(), "allocation": GlobalAllocation()}, 1 + 4),
        ({"regrow": Regrow(criterion=GradientCriterion(), schedule=TWO_UPDATES)}, 3),
        ({"straight_through": StraightThrough()}, 1),
    ],
    ids=["uniform", "ERK", "global", "LAMP", "held scores", "RigL", "straight-through"],
)
def test_an_update_takes_at_most_a_byte_for_each_weight_beside_held_scores(recipe, most):
    few, many = (measure_update(side, recipe) for side in SIDES)
    weights = TENSORS * (SIDES[1] ** 2 - SIDES[0] ** 2)
    assert (many - few) / weights <= most + 0.02
