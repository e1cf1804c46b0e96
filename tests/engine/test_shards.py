"""The masks of a sharded model are those of one process, to the entry."""

import itertools
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_prune import (
    CosineSchedule,
    Criterion,
    ERKAllocation,
    GlobalAllocation,
    GradientCriterion,
    MagnitudeCriterion,
    MultiStepSchedule,
    OneShotSchedule,
    ParameterBudget,
    Pruner,
    RandomCriterion,
    Regrow,
    Sparsity,
    UniformAllocation,
)
from lightning_prune.engine.scores import ScoreBook
from lightning_prune.tensors.shards import local_part
from tests.engine.cut_nets import (
    BY_BOTH,
    FOUR_BY_BOTH,
    FURTHER,
    SECTION,
    assert_same,
    by_fsdp,
    by_hybrid,
    by_tensor,
    make_net,
    masks_of,
    pruned_once,
)

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("processes")]
RECIPES = list(
    itertools.product(
        (UniformAllocation(), ERKAllocation(), GlobalAllocation()),
        (MagnitudeCriterion(), RandomCriterion(), GradientCriterion()),
        (0.3, 0.97),
    )
)


def masks_by_recipe(shard=lambda net: net):
    return [masks_of(pruned_once(shard(make_net()), *recipe)) for recipe in RECIPES]


SHOWS = pytest.mark.works_with(
    SECTION, "FSDP2, tensor parallelism, both, hybrid: the same masks as in one process"
)


@SHOWS
@pytest.mark.parametrize("layout", [by_fsdp, by_tensor])
def test_two_processes_choose_the_masks_of_one(layout, two):
    whole = masks_by_recipe()
    for masks in two(masks_by_recipe, layout):
        assert_same(RECIPES, whole, masks)


@SHOWS
@pytest.mark.parametrize("layout", [BY_BOTH, by_hybrid])
def test_four_processes_choose_the_masks_of_one(layout, four):
    whole = masks_by_recipe()
    for masks in four(masks_by_recipe, layout):
        assert_same(RECIPES, whole, masks)


LIMITS = (0.0, 1_000.0, 12_345.0, 1e9)


def most_that_fit(layout):
    """Return the numbers to keep under a cost, in which the first tensor weighs most."""
    net = layout(make_net())
    pruner = Pruner(schedule=OneShotSchedule(end=1, unit="step"))
    pruner.attach(net, torch.optim.SGD(net.parameters(), lr=0.1), steps=2)
    weights = dict(zip((group.name for group in pruner.groups), (50.0, 1.0, 9.0), strict=True))
    scores = ScoreBook(()).read(pruner.tensors, MagnitudeCriterion())
    atoms = {group.name: group.atoms(scores, 0.5) for group in pruner.groups}
    for name, of_group in atoms.items():
        of_group.saving = weights[name]

    def keep_within(limit, allocation):
        def fits(keep):
            return sum(weights[name] * number for name, number in keep.items()) <= limit

        shares = allocation.share_out_most(atoms, fits)
        return {name: share.keep for name, share in shares.items()}

    allocations = (GlobalAllocation(), GlobalAllocation(per="macs"), ERKAllocation())
    return [keep_within(*pair) for pair in itertools.product(LIMITS, allocations)]


@SHOWS
@pytest.mark.parametrize(("world", "layout"), [("two", by_fsdp), ("two", by_tensor), FOUR_BY_BOTH])
def test_processes_find_the_most_that_fits_as_one_process_does(world, layout, request):
    whole = most_that_fit(lambda net: net)
    assert len({tuple(keep.values()) for keep in whole}) == 8
    for found in request.getfixturevalue(world)(most_that_fit, layout):
        assert found == whole


def regrown(layout):
    """Return the masks after five steps of RigL and five of SET."""
    masks = []
    for criterion in (GradientCriterion(), RandomCriterion()):
        net = layout(make_net())
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        exchange = CosineSchedule(begin=1, end=5, every=1, unit="step")
        pruner = Pruner(
            sparsity=0.8,
            schedule=OneShotSchedule(end=0),
            regrow=Regrow(criterion=criterion, schedule=exchange),
        )
        pruner.attach(net, optimizer, steps=5)
        for step in range(5):
            for parameter in net.parameters():
                parameter.grad = (parameter.detach() * 7 + step).sin()
            pruner.before_step(optimizer)
            optimizer.step()
        masks.append(masks_of(pruner))
    return masks


@pytest.mark.works_with(SECTION, "RigL and SET on shards: the same masks as in one process")
@pytest.mark.parametrize(("world", "layout"), [("two", by_fsdp), FOUR_BY_BOTH])
def test_shards_regrow_the_masks_of_one_process(world, layout, request):
    whole = regrown(lambda net: net)
    for masks in request.getfixturevalue(world)(regrown, layout):
        assert_same(["RigL", "SET"], whole, masks)


def masks_by_budget(shard=lambda net: net):
    """Return the masks of two updates under a budget of parameters."""
    masks = []
    for allocation in (UniformAllocation(), ERKAllocation(), GlobalAllocation()):
        net = shard(make_net())
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        pruner = Pruner(
            budget=ParameterBudget(keep=0.3),
            allocation=allocation,
            most=0.8,
            schedule=MultiStepSchedule(milestones=(0, 1), unit="step"),
        )
        pruner.attach(net, optimizer, steps=2)
        for _ in range(2):
            for parameter in net.parameters():
                parameter.grad = torch.cos(3 * parameter.detach())
            pruner.before_step(optimizer)
            optimizer.step()
        assert pruner.spending.is_met
        masks.append(masks_of(pruner))
    return masks


@pytest.mark.works_with(SECTION, "A budget of parameters on shards: the masks of one process")
@pytest.mark.parametrize(("world", "layout"), [("two", by_fsdp), FOUR_BY_BOTH])
def test_shards_share_a_budget_as_one_process_does(world, layout, request):
    whole = masks_by_budget()
    for masks in request.getfixturevalue(world)(masks_by_budget, layout):
        assert_same(["uniform", "ERK", "global"], whole, masks)


def masks_after(state, layout):
    return masks_of(pruned_once(layout(make_net()), *FURTHER, state))


@pytest.mark.works_with(SECTION, "Resume on another number of processes")
@pytest.mark.parametrize(("world", "layout"), [("two", by_fsdp), ("two", by_tensor), FOUR_BY_BOTH])
def test_masks_go_on_from_any_number_of_processes(world, layout, request):
    first = (UniformAllocation(), RandomCriterion(), 0.5)
    state = pruned_once(make_net(), *first).state_dict()
    whole = masks_after(state, lambda net: net)
    assert all(
        not (mask & ~before).any()
        for mask, before in zip(
            whole.values(), masks_of(pruned_once(make_net(), *first)).values(), strict=True
        )
    )
    for masks in request.getfixturevalue(world)(masks_after, state, layout):
        assert_same([first], [whole], [masks])


class FloatSizes(TorchDispatchMode):
    """Notes the largest floating-point tensor that any operation returns."""

    largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        answer = function(*args, **(kwargs or {}))
        for tensor in answer if isinstance(answer, tuple | list) else [answer]:
            if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
                self.largest = max(self.largest, local_part(tensor).numel())
        return answer


def largest_while_ranking(allocation):
    net = by_fsdp(nn.Sequential(nn.Linear(40, 33, bias=False), nn.Linear(33, 8, bias=False)))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    pruner = Pruner(sparsity=0.5, schedule=OneShotSchedule(end=0), allocation=allocation)
    pruner.attach(net, optimizer, steps=1)
    with FloatSizes() as sizes:
        pruner.before_step(optimizer)
    assert pruner.sparsity == 0.5
    return sizes.largest, max(p.to_local().numel() for p in net.parameters())


@pytest.mark.works_with(SECTION, "No process holds more of a weight than its shard")
@pytest.mark.parametrize("allocation", [UniformAllocation(), GlobalAllocation(), ERKAllocation()])
def test_nothing_larger_than_a_shard_is_made_while_ranking(allocation, two):
    for largest, shard in two(largest_while_ranking, allocation):
        assert 0 < largest <= shard


def error_of(sharded, **recipe):
    net = by_fsdp(make_net()) if sharded else make_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        Pruner(**recipe).attach(net, optimizer, steps=1)
    return str(caught.value)


@dataclass(frozen=True, kw_only=True)
class GatheringCriterion(Criterion):
    def observe(self, tensor, state):
        return {"sum": state.get("sum", 0) + tensor.parameter.grad}

    def score(self, tensor, state):
        return state["sum"]


@pytest.mark.works_with(
    SECTION, "on shards: a criterion of your own without `works_on_shards`", refused=True
)
def test_what_is_not_exact_on_shards_is_refused_by_name(two):
    for error in two(partial(error_of, True, criterion=GatheringCriterion())):
        assert "need whole parameters for GatheringCriterion(), got the sharded '0.weight'" in error
        assert "use DDP" in error


def error_of_a_nan():
    net = make_net()
    net[0].weight.data[32, 0] = float("nan")  # in the last shard
    with pytest.raises(ValueError, match="diverged") as caught:
        pruned_once(by_fsdp(net), *FURTHER)
    return str(caught.value)


@pytest.mark.works_with("Faults", "NaN in a weight when an update is due")
def test_a_nan_in_one_shard_is_an_error_on_all_processes(two):
    for error in two(error_of_a_nan):
        assert "got 1 NaN or infinite ones of 396" in error


def seen_of_masks(layout):
    net = layout(make_net())
    pruner = pruned_once(net, *FURTHER)
    whole = {name: mask.full_tensor() for name, mask in pruner.masks.items()}
    metric = Sparsity()
    metric.update(net)
    pruner.detach()
    return whole, pruner.sparsity, metric.compute()


@pytest.mark.works_with(SECTION, "`masks`, `sparsity` and `Sparsity` count the whole tensor")
def test_masks_are_sharded_as_the_parameters_and_counted_whole(two):
    pruner = pruned_once(make_net(), *FURTHER)
    for masks, sparsity, audited in two(seen_of_masks, by_fsdp):
        assert_same([FURTHER], [pruner.masks], [masks])
        assert sparsity == pruner.sparsity
        assert audited.item() == pytest.approx(sparsity)


def frozen_pruned(layout):
    net = make_net()
    net[0].requires_grad_(False)
    net = layout(net)
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)
    pruner = Pruner(sparsity={"0": 0.5, "2": 0.8}, schedule=OneShotSchedule(end=1, unit="step"))
    pruner.attach(net, optimizer)
    for step in range(2):
        x = torch.randn(8, 12, generator=torch.Generator().manual_seed(step))
        net(x).square().mean().backward()
        pruner.before_step(optimizer)
        optimizer.step()
    pruner.detach()
    weight = net[0].weight
    whole = weight.full_tensor() if hasattr(weight, "full_tensor") else weight
    return masks_of(pruner)["0.weight"], whole.detach() == 0


def test_shards_of_a_frozen_weight_are_pruned_like_the_whole(two):
    expected, zeros = frozen_pruned(lambda net: net)
    assert int(zeros.sum()) == 198
    for mask, pruned in two(frozen_pruned, by_fsdp):
        assert torch.equal(mask, expected)
        assert torch.equal(pruned, zeros)
