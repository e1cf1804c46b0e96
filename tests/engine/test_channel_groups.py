"""Pruned channels are zero wherever they lie, in counts that kernels like."""

import copy

import pytest
import torch
from hypothesis import given, strategies as st

from lightning_prune import (
    ChannelPattern,
    Criterion,
    GlobalAllocation,
    LAMPAllocation,
    MagnitudeCriterion,
)
from lightning_prune.engine.scores import ScoreBook
from tests.conftest import answers
from tests.engine.channels import AT_ONCE, STEPS, Net, Two, outer, pruned, start, train
from tests.engine.training import OPTIMIZERS

pytestmark = pytest.mark.usefixtures("traced_once")

# -- zeros ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_pruned_channel_is_zero_in_every_place_where_it_lies(optimizer):
    model = Net()
    optimizer, pruner = start(model, optimizer)
    reached = []

    def check():
        masks = pruner.masks
        for name, mask in masks.items():
            assert not dict(model.named_parameters())[name].detach()[~mask].any()
        first, second, third = masks["0.bias"], masks["3.bias"], masks["7.bias"]
        for name, alive in (("1.weight", first), ("1.bias", first), ("4.weight", second)):
            assert torch.equal(masks[name], alive)
        assert torch.equal(masks["4.bias"], second)
        assert torch.equal(masks["0.weight"].flatten(1).any(1), first)
        assert torch.equal(masks["3.weight"][:, :, 1, 2], outer(second, first))
        columns = second.repeat_interleave(16)  # each channel is an image of 4 x 4
        assert torch.equal(masks["7.weight"], outer(third, columns))
        assert torch.equal(masks["9.weight"], outer(torch.ones(10) > 0, third))
        reached.append([int(alive.sum()) for alive in (first, second, third)])

    train(model, optimizer, pruner, check=check)
    assert reached[0] == [16, 24, 40]
    assert reached[-1] == [8, 16, 16]  # 12 and 20 lie half way between multiples: the even one
    assert "9.bias" not in pruner.masks
    pruner.detach()


@pytest.mark.parametrize("mode", [True, False])
def test_the_activation_of_a_pruned_channel_is_exactly_zero(mode):
    model = Net()
    optimizer, pruner = start(model)
    train(model, optimizer, pruner)
    seen = {}
    for layer, name in ((1, "1.bias"), (2, "1.bias"), (5, "4.bias"), (8, "7.bias")):
        model[layer].register_forward_hook(
            lambda _, __, out, layer=layer, name=name: seen.update({layer: (out, name)})
        )
    model.train(mode)(torch.randn(4, 3, 4, 4))
    for out, name in seen.values():
        dead = ~pruner.masks[name]
        assert dead.any()
        assert not out[:, dead].any()
        assert out[:, ~dead].any()


def test_removing_the_zeros_by_hand_changes_nothing():
    model = Net()
    optimizer, pruner = start(model)
    train(model, optimizer, pruner)
    first, second, third = (pruner.masks[f"{i}.bias"] for i in (0, 3, 7))
    small = copy.deepcopy(model)

    def keep(layer, rows, columns=None):
        for name in ("weight", "bias", "running_mean", "running_var"):
            if isinstance(tensor := getattr(layer, name, None), torch.Tensor):
                tensor.data = tensor.data[rows]
        if columns is not None:
            layer.weight.data = layer.weight.data[:, columns]

    keep(small[0], first)
    keep(small[1], first)
    keep(small[3], second, first)
    keep(small[4], second)
    keep(small[7], third, second.repeat_interleave(16))
    keep(small[9], slice(None), third)
    x = torch.randn(4, 3, 4, 4)
    for mode in (True, False):
        assert torch.allclose(model.train(mode)(x), small.train(mode)(x), rtol=1e-5, atol=1e-6)
    left = sum(p.numel() for p in small.parameters())
    assert pruner.parameter_sparsity == pytest.approx(
        1 - left / sum(p.numel() for p in model.parameters()), abs=1e-12
    )


# -- which channels, and how many -----------------------------------------------------------------


def kept(pruner, name="0.bias"):
    return pruner.masks[name].nonzero().flatten().tolist()


def test_a_score_is_the_mean_over_all_weights_of_the_channel():
    model = Two()
    model[0].weight.data[:, 1] = -torch.arange(16.0)  # 3 + i of the rows
    model[2].weight.data[2] = torch.tensor([8.0, 0.0] * 8)  # 10 or 2 of the columns
    model[0].bias.data[:] = torch.arange(160.0, 0, -10)  # has no say
    optimizer, pruner = start(model, schedule=AT_ONCE)
    book = ScoreBook(())
    scores = pruner.groups[0].rank(book.read(pruner.tensors, MagnitudeCriterion()))
    assert (scores * 7).tolist() == pytest.approx([3 + i + (2 if i % 2 else 10) for i in range(16)])
    train(model, optimizer, pruner, 1)
    assert kept(pruner) == [4, 6, 8, 10, 12, 13, 14, 15]  # 17 and more


def test_a_consumer_that_is_null_goes_with_the_rest_and_has_no_say():
    model = Two()
    model[0].weight.data[8:] = 2
    model[2].weight.data[:, :8] = 100
    masks, pruner = pruned(model, sparsity={"*": 0.5, "2": None})
    assert kept(pruner) == list(range(8, 16))
    assert torch.equal(masks["2.weight"], masks["0.bias"].expand(3, 16))
    assert [tensor.name for tensor in pruner.tensors if not tensor.is_scored] == [
        "0.bias",
        "2.weight",
    ]


@pytest.mark.parametrize("criterion", answers(Criterion))
def test_each_criterion_sees_only_the_weights_that_it_scores(criterion):
    model = Net()
    optimizer, pruner = start(model, criterion=criterion(), sparsity={"*": 0.5, "9": None})
    train(model, optimizer, pruner, 2)
    gathered = {name for name, state in pruner.state_dict()["observed"].items() if state}
    assert gathered in (set(), {"0.weight", "3.weight", "7.weight"})
    watched = {tensor.name for tensor in pruner.tensors if tensor.hooks}
    assert watched in (set(), {"0.weight", "3.weight", "7.weight"})
    train(model, optimizer, pruner, STEPS - 2, first=2)
    assert [group.kept for group in pruner.groups] == [8, 16, 16]
    assert pruner.sparsity == pruner.sparsity_target == 0.5


@pytest.mark.parametrize(
    ("total", "width", "round_to", "counts"),
    [
        (16, 1, 8, [8] * 12 + [16] * 5),  # 12 is half way: to 2 x 8
        (20, 1, 8, [8] * 12 + [16] * 7 + [20] * 2),  # 18 is half way: to 2 x 8, not to the third
        (5, 1, 8, [5] * 6),
        (6, 1, 1, [1, 1, 2, 3, 4, 5, 6]),
        (4, 64, 8, [1, 1, 2, 3, 4]),  # heads of 64 are whole multiples
        (6, 4, 8, [2] * 3 + [4] * 3 + [6]),  # heads of 4 go in twos; 3 and 5 are half way
    ],
)
def test_counts_are_the_nearest_to_what_is_due(total, width, round_to, counts):
    pattern = ChannelPattern(round_to=round_to)
    assert [pattern.round_kept(due, total, width) for due in range(total + 1)] == counts


@given(
    total=st.integers(1, 200),
    width=st.integers(1, 12),
    round_to=st.integers(1, 32),
    due=st.integers(0, 200),
)
def test_counts_are_multiples_or_all_and_never_fall_where_more_is_due(total, width, round_to, due):
    pattern, due = ChannelPattern(round_to=round_to), min(due, total)
    count = pattern.round_kept(due, total, width)
    assert 1 <= count <= total
    assert count == total or count * width % round_to == 0
    assert count <= pattern.round_kept(min(due + 1, total), total, width)
    if count < due:
        assert due - count <= round_to


def test_at_sparsity_one_the_least_number_stays():
    _, pruner = pruned(Net(), sparsity=1.0)
    assert [group.kept for group in pruner.groups] == [8, 8, 8]


def test_sparsity_counts_channels_and_plan_and_target_say_what_is_due():
    _, pruner = pruned(Net(), sparsity={"*": 0.75, "7": 0.05})
    assert [group.kept for group in pruner.groups] == [8, 8, 40]  # 4, 6 and 38 are due
    assert pruner.sparsity == 1 - 56 / 80
    due = (0.75 * 16 + 0.75 * 24 + 0.05 * 40) / 80
    assert pruner.sparsity_target == pruner.final_sparsity == pytest.approx(due)
    assert pruner.plan == {"0.weight": 0.5, "3.weight": 1 - 8 / 24, "7.weight": 0.0}
    assert pruner.changed == {"0.weight": 8 / 16, "3.weight": 16 / 24, "7.weight": 0.0}


def test_parameter_sparsity_is_that_of_the_whole_model():
    model = Two()
    _, pruner = pruned(model)
    assert pruner.parameter_sparsity == 8 * (4 + 1 + 3) / (16 * 4 + 16 + 3 * 16 + 3)


@pytest.mark.parametrize("allocation", [GlobalAllocation(), LAMPAllocation()])
def test_pooled_allocations_rank_channels_of_all_groups(allocation):
    model = Net()
    model[3].weight.data *= 1e-3
    model[7].weight.data *= 1e-3
    optimizer, pruner = start(model, allocation=allocation, criterion=MagnitudeCriterion())
    assert set(pruner.plan.values()) == {None}
    before = dict.fromkeys(pruner.masks, torch.tensor(True))

    def check():
        for name, mask in pruner.masks.items():
            assert not (mask & ~before[name]).any()
        before.update({name: mask.clone() for name, mask in pruner.masks.items()})

    train(model, optimizer, pruner, check=check)
    counts = [group.kept for group in pruner.groups]
    assert all(count % 8 == 0 for count in counts)
    assert abs(sum(counts) - 40) <= 3 * 4
    if isinstance(allocation, GlobalAllocation):
        assert counts[0] == 16
