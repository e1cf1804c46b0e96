"""The memory of the new masks on a CPU, which wait until all masks of an update are chosen."""

from functools import partial
from unittest.mock import patch

import pytest
import torch
from torch import nn

from benchmarks.kit.memory import record
from benchmarks.parts.memory.updates import HALF_THEN_ALL, SquareCriterion, watch_numpy
from lightning_prune import (
    BlockPattern,
    NMPattern,
    Pruner,
    UniformAllocation,
    UnstructuredPattern,
)
from lightning_prune.engine import choices
from lightning_prune.tensors.batches import mark_best
from lightning_prune.tensors.parts import SIZES
from tests.accelerators import as_on_an_accelerator

SHAPE, FEW, MANY = (512, 256), 2, 6


def measure_update(tensors, recipe):
    """Return the peak of an update of so many tensors, beside what is held before or after."""
    of_numpy = []

    def run(device):
        net = nn.ParameterDict({f"weight{i}": torch.randn(SHAPE) for i in range(tensors)})
        optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
        pruner = Pruner(
            schedule=HALF_THEN_ALL, allocation=UniformAllocation(), sparsity=0.5, **recipe
        )
        pruner.attach(net, optimizer, steps=2)
        for _ in range(2):
            with watch_numpy(of_numpy, f"update {len(of_numpy)}"):
                pruner.before_step(optimizer)
            optimizer.step()
        assert pruner.sparsity == 0.5

    recording = record(run, torch.device("cpu"))
    return max(map(recording.find_excess, ("update 0", "update 1"))) + max(of_numpy)


@pytest.mark.slow
@pytest.mark.parametrize(
    "recipe",
    [
        {"criterion": SquareCriterion()},
        {"pattern": NMPattern(n=2, m=4)},
        {"pattern": UnstructuredPattern(per_row=True)},
        {"pattern": BlockPattern(shape=(1, 2))},
    ],
    ids=["held scores", "2:4", "rows", "blocks"],
)
def test_a_new_mask_waits_in_a_bit_for_each_weight(recipe):
    measure = partial(measure_update, recipe=recipe)
    weights = (MANY - FEW) * SHAPE[0] * SHAPE[1]
    more = (measure(MANY) - measure(FEW)) / weights
    assert more <= 1 / 4  # with the Python objects of a tensor


@pytest.mark.parametrize(("chunk", "searches"), [(1 << 23, 1), (64, 2)])
def test_held_scores_are_ranked_together_up_to_a_number_of_chunks(chunk, searches):
    net = nn.ParameterDict({f"weight{i}": torch.randn(16, 16) for i in range(3)})
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    pruner = Pruner(sparsity=0.5, criterion=SquareCriterion(), allocation=UniformAllocation())
    lengths = []

    def mark_and_count(parts, *arguments):
        lengths.append(len(parts))
        return mark_best(parts, *arguments)

    with (
        as_on_an_accelerator(),
        patch.dict(vars(SIZES), {"launch": chunk}),
        patch.object(choices, "mark_best", mark_and_count),
    ):
        pruner.attach(net, optimizer, steps=1)
        pruner.before_step(optimizer)
        pruner.detach()
    assert len(lengths) == searches
    assert sum(lengths) == 3
