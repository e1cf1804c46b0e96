"""Patterns and criteria on shards: the masks are those of one process where shards cut no atom."""

import pytest
import torch
from torch import nn

from lightning_prune import (
    BlockPattern,
    Criterion,
    ERKAllocation,
    GlobalAllocation,
    GradientCriterion,
    GrowingPenalty,
    LAMPAllocation,
    MacsBudget,
    MovementCriterion,
    NMPattern,
    OneShotSchedule,
    Phases,
    Pruner,
    Regrow,
    StraightThrough,
    TaylorCriterion,
    UniformAllocation,
    UnstructuredPattern,
    WandaCriterion,
)
from tests.conftest import answers
from tests.engine.cut_nets import masks_of
from tests.engine.sharded import by_both, by_fsdp, by_styles, make_net, train
from tests.models.mixtures import Experts

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("processes")]
SECTION = "Replicas and shards"
CRITERIA = [kind() for kind in answers(Criterion)]
ALLOCATIONS = [UniformAllocation(), ERKAllocation(), GlobalAllocation(), LAMPAllocation()]
PATTERNS = (
    (UnstructuredPattern(), {"*": 0.7}),
    (UnstructuredPattern(per_row=True), {"*": 0.7, "2": None}),
    (NMPattern(n=2, m=4), {"*": 0.5}),
    (BlockPattern(shape=(1, 4)), {"*": 0.7}),
    (BlockPattern(shape=(2, 4)), {"*": 0.7, "4": None}),
)
NM = {"pattern": NMPattern(n=2, m=4), "sparsity": {"*": 0.5}}
# Every pair of a pattern and a criterion, and of a pattern and an allocation. LAMP squares scores.
RECIPES = (
    [
        {
            "pattern": pattern,
            "sparsity": sparsity,
            "criterion": criterion,
            "allocation": ALLOCATIONS[(row + column) % len(ALLOCATIONS)],
        }
        for row, (pattern, sparsity) in enumerate(PATTERNS)
        for column, criterion in enumerate(CRITERIA)
        if not (criterion.has_signed_scores and (row + column) % len(ALLOCATIONS) == 3)
    ]
    + [
        {"pattern": pattern, "sparsity": sparsity, "regrow": Regrow(criterion=GradientCriterion())}
        for pattern, sparsity in PATTERNS
    ]
    + [
        {"allocation": LAMPAllocation(), "keep_zeros": True, "sparsity": {"*": 0.8}},
        {"pattern": BlockPattern(shape=(1, 4)), "keep_zeros": True, "sparsity": {"*": 0.7}},
        {"straight_through": StraightThrough(), **NM},
        {"phases": Phases(begin=1, end=3, rounds=1, unit="step"), **NM},
        {"budget": MacsBudget(keep=0.3), "sparsity": {"*": 0.9}},
        {"allocation": GlobalAllocation(per="macs"), "sparsity": {"*": 0.7}},
    ]
)


# Tensor parallelism leaves the convolution whole; Wanda refuses to see the same inputs twice.
RECIPES_OF_MATRICES = [
    recipe | {"sparsity": {**recipe["sparsity"], "4": None}} for recipe in RECIPES
]


def prune(recipe, *layout):
    """Return the masks and the weights at the end."""
    return train(recipe, *layout)[:2]


def assert_same(recipe, ones, others):
    for one, other in zip(ones, others, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            assert torch.equal(one[name], other[name]), (recipe, name)


@pytest.mark.works_with(
    SECTION, "N:M, per row and blocks that shards leave whole: the masks of one process"
)
@pytest.mark.works_with(SECTION, "Taylor, Fisher, movement and Wanda: the masks of one process")
@pytest.mark.works_with(SECTION, "LAMP on shards: the masks of one process")
@pytest.mark.works_with(SECTION, "Multiply-adds of shards, as a budget and with `per`")
@pytest.mark.works_with(SECTION, "`phases` and `straight_through` on shards: as in one process")
@pytest.mark.parametrize(
    ("world", "layout", "recipes"),
    [
        ("two", by_styles, RECIPES_OF_MATRICES),
        ("two", by_fsdp, RECIPES),
        pytest.param("four", by_fsdp, RECIPES, marks=pytest.mark.rare),
        pytest.param("four", by_both, RECIPES, marks=pytest.mark.rare),
    ],
)
def test_shards_have_the_masks_of_one_process(world, layout, recipes, request):
    run = request.getfixturevalue(world)
    for recipe in recipes:
        whole = prune(recipe)
        for found in run(prune, recipe, layout):
            assert_same(recipe, whole, found)


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
    {
        "penalty": GrowingPenalty(largest=0.5, ahead=0.5),
        "pattern": BlockPattern(shape=(1, 4)),
        "sparsity": {"*": 0.7, "4": None},
    },
]


def stop_in_between(layout):
    """Return weights and states after three steps; the third step has been gathered only."""
    return [train(recipe, layout, last=3)[1:] for recipe in GATHERING]


def go_on(stopped, *layout):
    return [
        train(recipe, *layout, first=3, weights=weights, state=state)[:2]
        for recipe, (weights, state) in zip(GATHERING, stopped, strict=True)
    ]


@pytest.mark.works_with(SECTION, "Statistics that criteria gather, resumed on fewer processes")
@pytest.mark.works_with(SECTION, "`penalty` on shards, resumed on fewer processes")
def test_gathered_sums_go_on_in_other_processes(two, four):
    uninterrupted = [prune(recipe) for recipe in GATHERING]
    stopped, *_ = four(stop_in_between, by_fsdp)
    assert all(gathered for _, state in stopped[:-1] for gathered in state["observed"].values())
    assert stopped[-1][1]["penalty"]["levels"]
    for resumed in (go_on(stopped), *two(go_on, stopped, by_styles)):
        for recipe, whole, found in zip(GATHERING, uninterrupted, resumed, strict=True):
            assert_same(recipe, whole, found)


def make_experts(is_cut):
    """Return fused experts; if they are cut, each process holds some of them."""
    torch.manual_seed(0)
    net = Experts(experts=5)
    if is_cut:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.tensor import Shard, distribute_tensor

        mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
        for name in ("gate_up_proj", "down_proj"):
            cut = distribute_tensor(getattr(net, name).data, mesh, [Shard(0)])
            setattr(net, name, nn.Parameter(cut))
    return net


def masks_of_experts(is_cut=True):
    masks = []
    for pattern in (NMPattern(n=2, m=4), BlockPattern(), UnstructuredPattern(per_row=True)):
        net = make_experts(is_cut)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        pruner = Pruner(sparsity=0.5, pattern=pattern, schedule=OneShotSchedule(end=0))
        pruner.attach(net, optimizer, steps=1)
        pruner.update(optimizer)
        masks.append(masks_of(pruner))
        pruner.detach(completed=False)
    return masks


@pytest.mark.works_with(SECTION, "Fused experts on shards: the masks of one process")
def test_fused_experts_have_the_masks_of_one_process(two):
    whole = masks_of_experts(is_cut=False)
    for masks in two(masks_of_experts):
        assert_same("experts", whole, masks)


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
