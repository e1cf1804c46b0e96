"""Patterns and criteria on shards: the masks are those of one process where shards cut no atom."""

import pytest
import torch

from lightning_prune import (
    BlockPattern,
    Criterion,
    ERKAllocation,
    GlobalAllocation,
    GradientCriterion,
    MovementCriterion,
    NMPattern,
    Pruner,
    Regrow,
    TaylorCriterion,
    UniformAllocation,
    UnstructuredPattern,
    WandaCriterion,
)
from tests.conftest import answers
from tests.engine.sharded import by_both, by_fsdp, by_styles, make_net, train

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("processes")]
SECTION = "Replicas and shards"
CRITERIA = [kind() for kind in answers(Criterion)]
ALLOCATIONS = [UniformAllocation(), ERKAllocation(), GlobalAllocation()]
PATTERNS = (
    (UnstructuredPattern(), {"*": 0.7}),
    (UnstructuredPattern(per_row=True), {"*": 0.7, "2": None}),
    (NMPattern(n=2, m=4), {"*": 0.5}),
    (BlockPattern(shape=(1, 4)), {"*": 0.7}),
    (BlockPattern(shape=(2, 4)), {"*": 0.7, "4": None}),
)
# Every pair of a pattern and a criterion, and of a pattern and an allocation.
RECIPES = [
    {
        "pattern": pattern,
        "sparsity": sparsity,
        "criterion": criterion,
        "allocation": ALLOCATIONS[(row + column) % len(ALLOCATIONS)],
    }
    for row, (pattern, sparsity) in enumerate(PATTERNS)
    for column, criterion in enumerate(CRITERIA)
] + [
    {"pattern": pattern, "sparsity": sparsity, "regrow": Regrow(criterion=GradientCriterion())}
    for pattern, sparsity in PATTERNS
]


# Tensor parallelism leaves the convolution whole; Wanda refuses to see the same inputs twice.
RECIPES_OF_MATRICES = [
    recipe | {"sparsity": {**recipe["sparsity"], "4": None}} for recipe in RECIPES
]


def masks_by_recipe(recipes, *layout):
    return [train(recipe, *layout)[0] for recipe in recipes]


def assert_same(recipe, ones, others):
    for one, other in zip(ones, others, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            assert torch.equal(one[name], other[name]), (recipe, name)


@pytest.mark.works_with(
    SECTION, "N:M, per row and blocks that shards leave whole: the masks of one process"
)
@pytest.mark.works_with(SECTION, "Taylor, Fisher, movement and Wanda: the masks of one process")
@pytest.mark.parametrize(
    ("world", "layout", "recipes"),
    [
        ("two", by_styles, RECIPES_OF_MATRICES),
        ("four", by_fsdp, RECIPES),
        ("four", by_both, RECIPES),
    ],
)
def test_shards_have_the_masks_of_one_process(world, layout, recipes, request):
    whole = masks_by_recipe(recipes)
    for found in request.getfixturevalue(world)(masks_by_recipe, recipes, layout):
        for recipe, masks, others in zip(recipes, whole, found, strict=True):
            assert_same(recipe, masks, others)


GATHERING = [
    {"criterion": TaylorCriterion(), "sparsity": {"*": 0.7, "4": None}},
    {
        "criterion": MovementCriterion(),
        "sparsity": {"*": 0.7, "4": None},
        "allocation": GlobalAllocation(),
    },
    {
        "criterion": WandaCriterion(),
        "sparsity": {"*": 0.5, "4": None},
        "pattern": NMPattern(n=2, m=4),
    },
]


def stop_in_between(layout):
    """Return weights and states after two steps; the second step has been gathered only."""
    return [train(recipe, layout, last=2)[1:] for recipe in GATHERING]


def go_on(stopped, *layout):
    return [
        train(recipe, *layout, first=2, weights=weights, state=state)[0]
        for recipe, (weights, state) in zip(GATHERING, stopped, strict=True)
    ]


@pytest.mark.works_with(SECTION, "Statistics that criteria gather, resumed on fewer processes")
def test_gathered_sums_go_on_in_other_processes(two, four):
    uninterrupted = [train(recipe)[0][2:] for recipe in GATHERING]
    stopped, *_ = four(stop_in_between, by_fsdp)
    assert all(gathered for _, state in stopped for gathered in state["observed"].values())
    for resumed in (go_on(stopped), *two(go_on, stopped, by_styles)):
        for recipe, masks, others in zip(GATHERING, uninterrupted, resumed, strict=True):
            assert_same(recipe, masks, others)


def errors_of_cut_atoms():
    """Return the errors of patterns whose atoms shards cut."""
    errors = []
    for layout, pattern in (
        (by_styles, NMPattern(n=2, m=8)),
        (by_styles, UnstructuredPattern(per_row=True)),
        (by_fsdp, BlockPattern(shape=(24, 1))),
    ):
        net, _ = layout(make_net())
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
        assert "for BlockPattern(shape=(24, 1)), got parts that begin at ((0, 12), (0,))" in blocks
        assert all("in '2.weight' of shape (24, 40)" in each for each in (inputs, rows, blocks))
