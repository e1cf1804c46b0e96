"""Channels on shards: the masks are those of one process, to the entry."""

from unittest.mock import patch

import pytest
import torch
from torch import nn

from lightning_prune import (
    BranchPattern,
    ChannelPattern,
    Criterion,
    FisherCriterion,
    GlobalAllocation,
    GrowingPenalty,
    LAMPAllocation,
    MacsBudget,
    MultiStepSchedule,
    OneShotSchedule,
    ParameterBudget,
    Pruner,
    TaylorCriterion,
    UniformAllocation,
)
from tests.conftest import answers
from tests.engine.branches import ResNet, Transformer
from tests.engine.channels import Attention, Concatenation, Depthwise, Net, Residual
from tests.engine.cut_nets import masks_of
from tests.engine.sharded import by_both, by_fsdp, by_styles, train

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


@pytest.mark.works_with(SECTION, "Channels and branches on shards: the masks of one process")
@pytest.mark.parametrize(
    ("world", "layout"),
    [
        ("two", by_fsdp),
        ("two", by_styles),
        pytest.param("four", by_fsdp, marks=pytest.mark.rare),
        pytest.param("four", by_both, marks=pytest.mark.rare),
    ],
)
def test_shards_have_the_channels_of_one_process(world, layout, request):
    run = request.getfixturevalue(world)
    for recipe in RECIPES:
        masks = prune(recipe)
        for found in run(prune, recipe, layout):
            assert_same(recipe, masks, found)


def by_rows(net):
    """Cut all parameters into rows; the largest layers are units of their own."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    for layer in net.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d) and layer.weight.numel() > 400:
            fully_shard(layer, mesh=mesh)
    return fully_shard(net, mesh=mesh)


def by_rows_of_replicas(net):
    """Cut all parameters into rows in two pairs of processes."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    return fully_shard(net, mesh=mesh)


ANY_WEIGHTS = [
    (Net, {"pattern": EACH, "allocation": GlobalAllocation()}),
    (Net, {"pattern": EACH, "criterion": TaylorCriterion(), "budget": MacsBudget(keep=0.4)}),
    (Net, {"pattern": EACH, "allocation": GlobalAllocation(isomorphic=True)}),
    (
        Residual,
        {"pattern": ChannelPattern(round_to=1, scope="all"), "criterion": FisherCriterion()},
    ),
    (Depthwise, {"pattern": EACH, "criterion": TaylorCriterion()}),
    (Attention, {"pattern": ChannelPattern(), "criterion": TaylorCriterion()}),
    (Concatenation, {"pattern": EACH}),
    (ResNet, {"pattern": BranchPattern()}),
    (ResNet, {"pattern": BranchPattern(), "criterion": FisherCriterion()}),
    (Transformer, {"pattern": BranchPattern(), "budget": MacsBudget(keep=0.6)}),
]


def prune_any_weights(layout=None):
    """Return for each net the masks after two updates; weights and gradients have all their bits.

    Gradients are functions of the weights, entry by entry, since sums of gradients would differ.
    """
    masks = []
    for kind, recipe in ANY_WEIGHTS:
        torch.manual_seed(0)
        net = kind()
        net = net if layout is None else layout(net)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        schedule = MultiStepSchedule(milestones=(0, 2), unit="step")
        pruner = Pruner(**{"sparsity": 0.6, "schedule": schedule} | recipe)
        pruner.attach(net, optimizer, steps=3)
        for step in range(3):
            for parameter in net.parameters():
                parameter.grad = parameter.detach() * parameter.detach() - 0.05 * step
            pruner.before_step(optimizer)
            optimizer.step()
        masks.append(masks_of(pruner))
        assert 0 < pruner.sparsity < 1
        pruner.detach()
    return masks


@pytest.mark.works_with(SECTION, "Channels and branches on shards: the masks of one process")
@pytest.mark.parametrize(
    ("world", "layout"),
    [
        ("two", by_rows),
        pytest.param("four", by_rows, marks=pytest.mark.rare),
        pytest.param("four", by_rows_of_replicas, marks=pytest.mark.rare),
    ],
)
def test_sums_over_shards_have_the_bits_of_one_process(world, layout, request):
    expected = prune_any_weights()
    for found in request.getfixturevalue(world)(prune_any_weights, layout):
        for (kind, recipe), one, other in zip(ANY_WEIGHTS, expected, found, strict=True):
            assert_same((kind, recipe), [one], [other])


GATHERING = [
    {"pattern": EACH, "sparsity": 0.6, "criterion": TaylorCriterion()},
    {"pattern": EACH, "budget": MacsBudget(keep=0.5), "criterion": FisherCriterion()},
    {"pattern": EACH, "sparsity": 0.6, "penalty": GrowingPenalty(largest=0.5, ahead=0.5)},
]


def stop_in_between(layout):
    """Return weights and states after three steps; the third step has been gathered only."""
    return [train(recipe, layout, last=3)[1:] for recipe in GATHERING]


def go_on(stopped, *layout):
    return [
        train(recipe, *layout, first=3, weights=weights, state=state)[:2]
        for recipe, (weights, state) in zip(GATHERING, stopped, strict=True)
    ]


@pytest.mark.works_with(SECTION, "Channels on four shards, resumed on two and on one")
def test_channels_go_on_in_fewer_processes(two, four):
    uninterrupted = [prune(recipe) for recipe in GATHERING]
    stopped, *_ = four(stop_in_between, by_fsdp)
    assert all(any(state["observed"].values()) for _, state in stopped[:-1])
    for resumed in (go_on(stopped), *two(go_on, stopped, by_styles)):
        for recipe, whole, found in zip(GATHERING, uninterrupted, resumed, strict=True):
            assert_same(recipe, whole, found)


class Wide(nn.Sequential):
    """A hidden layer of 24 channels between inputs and outputs of any number."""

    def __init__(self, width):
        super().__init__(nn.Linear(width, 24), nn.ReLU(), nn.Linear(24, width))
        self.example_input_array = torch.zeros(2, width)


def count_traffic(width):
    """Return the bytes of the messages of an update, and the number of places of channels."""
    net = by_rows(Wide(width))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    pruner = Pruner(sparsity=0.5, pattern=EACH, schedule=OneShotSchedule(end=0))
    pruner.attach(net, optimizer, steps=1)
    sent = []
    all_reduce = torch.distributed.all_reduce

    def count(tensor, *arguments, **options):
        sent.append(tensor.numel() * tensor.itemsize)
        return all_reduce(tensor, *arguments, **options)

    with patch.object(torch.distributed, "all_reduce", count):
        pruner.update(optimizer)
    assert pruner.sparsity == 0.5
    return sum(sent), len(sent)


@pytest.mark.works_with(SECTION, "Messages of channels do not grow with their width")
def test_messages_are_as_long_as_the_channels_are_many(two):
    narrow, wide = (two(count_traffic, width) for width in (6, 600))
    assert narrow == wide
    for sent, messages in wide:
        assert sent <= 16 * 24 * 2 + 4 * 24 * 3 + 64  # sums in two matrices; booleans with the bias
        assert messages <= 8
