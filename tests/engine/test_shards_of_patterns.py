"""Patterns with bounds on shards: the masks are those of one process where shards cut no atom."""

import itertools

import pytest
import torch
from torch import nn

from lightning_prune import (
    BlockPattern,
    ERKAllocation,
    GlobalAllocation,
    GradientCriterion,
    MagnitudeCriterion,
    NMPattern,
    PolynomialSchedule,
    Pruner,
    RandomCriterion,
    Regrow,
    UniformAllocation,
    UnstructuredPattern,
)
from tests.engine.test_shards import SECTION, by_both, by_fsdp, by_tensor, masks_of

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("processes")]
PATTERNS = (
    (NMPattern(n=2, m=4), {"*": 0.5}),
    (UnstructuredPattern(per_row=True), {"*": 0.7, "2": None}),
    (BlockPattern(shape=(1, 4)), {"*": 0.7}),
    (BlockPattern(shape=(2, 4)), {"*": 0.7, "3": None}),
)
RECIPES = [
    {"pattern": pattern, "sparsity": sparsity, "allocation": allocation, "criterion": criterion}
    for (pattern, sparsity), allocation, criterion in itertools.product(
        PATTERNS,
        (UniformAllocation(), ERKAllocation(), GlobalAllocation()),
        (MagnitudeCriterion(), RandomCriterion()),
    )
] + [
    {"pattern": pattern, "sparsity": sparsity, "regrow": Regrow(criterion=GradientCriterion())}
    for pattern, sparsity in PATTERNS
]


def make_net():
    """Return a net full of ties; of 5 rows four processes hold 2, 2, 1 and 0."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(12, 40), nn.ReLU(), nn.Linear(40, 8, bias=False), nn.Conv1d(8, 5, 3)
    )
    for parameter in net.parameters():
        parameter.data = (parameter.data * 8).round() / 8
    return net


def masks_of_two_updates(recipe, layout=lambda net: net):
    """Return the masks after a first update that ends between, and after a last one."""
    net = layout(make_net())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.25)
    schedule = PolynomialSchedule(begin=0, end=1, every=1, unit="step", initial=0.5, power=1)
    pruner = Pruner(schedule=schedule, keep_zeros=True, **recipe)
    pruner.attach(net, optimizer, steps=2)
    found = []
    for step in range(2):
        for parameter in net.parameters():
            parameter.grad = (parameter.detach() * 8 + step).remainder(5) / 4
        pruner.before_step(optimizer)
        optimizer.step()
        found.append(masks_of(pruner))
    pruner.detach()
    return found


def masks_by_recipe(layout=lambda net: net):
    return [masks_of_two_updates(recipe, layout) for recipe in RECIPES]


@pytest.mark.works_with(
    SECTION, "N:M, per row and blocks where shards cut none: the same masks as in one process"
)
@pytest.mark.parametrize(
    ("world", "layout"),
    [("two", by_fsdp), ("two", by_tensor), ("four", by_fsdp), ("four", by_both)],
)
def test_shards_have_the_masks_of_one_process(world, layout, request):
    whole = masks_by_recipe()
    for found in request.getfixturevalue(world)(masks_by_recipe, layout):
        for recipe, updates, others in zip(RECIPES, whole, found, strict=True):
            for one, other in zip(updates, others, strict=True):
                assert one.keys() == other.keys()
                for name in one:
                    assert torch.equal(one[name], other[name]), (recipe, name)


def errors_of_cut_atoms():
    """Return the errors of patterns whose atoms shards cut."""
    errors = []
    for layout, pattern in (
        (by_tensor, NMPattern(n=2, m=8)),
        (by_tensor, UnstructuredPattern(per_row=True)),
        (by_fsdp, BlockPattern(shape=(8, 1))),
    ):
        net = layout(make_net())
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        with pytest.raises(ValueError, match="to leave that dense") as caught:
            Pruner(pattern=pattern, sparsity={"2": 0.75}).attach(net, optimizer, steps=1)
        errors.append(str(caught.value))
    return errors


@pytest.mark.works_with(SECTION, "N:M, per row and blocks that shards cut", refused=True)
def test_atoms_that_shards_cut_are_refused_by_name(two):
    for inputs, rows, blocks in two(errors_of_cut_atoms):
        assert "NMPattern(n=2, m=8), got parts that begin at the input channels (0, 20)" in inputs
        assert "need rows that shards leave whole for UnstructuredPattern(per_row=True)" in rows
        assert "for BlockPattern(shape=(8, 1)), got parts that begin at ((0, 4), (0,))" in blocks
        assert all("in '2.weight' of shape (8, 40)" in each for each in (inputs, rows, blocks))
