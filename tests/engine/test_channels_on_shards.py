"""Channels on shards: the masks are those of one process, to the entry."""

import pytest
import torch

from lightning_prune import (
    ChannelPattern,
    Criterion,
    GlobalAllocation,
    GrowingPenalty,
    LAMPAllocation,
    MacsBudget,
    MagnitudeCriterion,
    OneShotSchedule,
    ParameterBudget,
    Pruner,
    TaylorCriterion,
    UniformAllocation,
)
from lightning_prune.models.torch_floors import TorchFloor
from tests.conftest import answers
from tests.engine.channels import Attention, Net, Residual
from tests.engine.cut_nets import masks_of
from tests.engine.sharded import by_both, by_fsdp, by_styles, train, whole
from tests.versions import refused_before

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("processes")]
SECTION = "Replicas and shards"
EACH = ChannelPattern(round_to=1)
ALLOCATIONS = [
    UniformAllocation(),
    GlobalAllocation(),
    GlobalAllocation(per="macs"),
    GlobalAllocation(isomorphic=True),
    LAMPAllocation(),
]
CRITERIA = [kind() for kind in answers(Criterion)]
# Every criterion, and every allocation with magnitudes. Costs and LAMP divide scores.
RECIPES = [
    {"criterion": criterion, "allocation": ALLOCATIONS[index % 2]}
    for index, criterion in enumerate(CRITERIA)
] + [{"allocation": allocation} for allocation in ALLOCATIONS]
RECIPES = [{"pattern": EACH, "sparsity": 0.6} | recipe for recipe in RECIPES] + [
    {"pattern": EACH, "budget": ParameterBudget(keep=0.5)},
    {"pattern": EACH, "budget": MacsBudget(keep=0.5), "allocation": GlobalAllocation()},
    {"pattern": EACH, "sparsity": 0.6, "penalty": GrowingPenalty(largest=0.5, ahead=0.5)},
    {"pattern": EACH, "sparsity": 0.6, "keep_zeros": True},
    {"pattern": ChannelPattern(), "sparsity": 0.7},
]


def prune(recipe, *layout):
    """Return the masks and the weights at the end."""
    return train(recipe, *layout)[:2]


def assert_same(recipe, ones, others):
    for one, other in zip(ones, others, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            assert torch.equal(one[name], other[name]), (recipe, name)


@pytest.mark.works_with(SECTION, "Channels on shards: the masks of one process")
@pytest.mark.parametrize(
    ("world", "layout"),
    [
        ("two", by_fsdp),
        ("two", by_styles),
        pytest.param("four", by_fsdp, marks=pytest.mark.rare),
        pytest.param(
            *("four", by_both),
            marks=[pytest.mark.rare, refused_before(TorchFloor.UNEVEN_SHARDS)],
        ),
    ],
)
def test_shards_have_the_channels_of_one_process(world, layout, request):
    run = request.getfixturevalue(world)
    for recipe in RECIPES:
        masks = prune(recipe)
        for found in run(prune, recipe, layout):
            assert_same(recipe, masks, found)
