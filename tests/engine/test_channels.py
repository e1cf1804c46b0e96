"""Whole channels: zero wherever they lie, in counts that kernels like, composed with the rest."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lightning_prune import (
    ChannelPattern,
    Criterion,
    ERKAllocation,
    GlobalAllocation,
    LAMPAllocation,
    MagnitudeCriterion,
    OneShotSchedule,
    PolynomialSchedule,
    Pruner,
    RandomCriterion,
    Regrow,
    Sparsity,
    TaylorCriterion,
    UniformAllocation,
)
from tests.conftest import answers
from tests.engine.training import OPTIMIZERS
from tests.hooks import hooks

STEPS = 8
AT_ONCE = OneShotSchedule(end=0)
pytestmark = pytest.mark.usefixtures("traced_once")


class Net(nn.Sequential):
    """Three layers with inner channels, of 16, 24 and 40, on images of 4 x 4."""

    example_input_array = torch.zeros(2, 3, 4, 4)

    def __init__(self, seed=0):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            super().__init__(
                nn.Conv2d(3, 16, 3, padding=1),
                nn.BatchNorm2d(16),
                nn.ReLU(),
                nn.Conv2d(16, 24, 3, padding=1),
                nn.BatchNorm2d(24),
                nn.ReLU(),
                nn.Flatten(),
                nn.Linear(24 * 16, 40),
                nn.ReLU(),
                nn.Linear(40, 10),
            )


class Residual(nn.Module):
    """A stem, one block that adds to it, and a head."""

    example_input_array = torch.zeros(2, 3, 4, 4)

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.widen = nn.Conv2d(16, 32, 1)
        self.narrow = nn.Conv2d(32, 16, 1)
        self.head = nn.Linear(16, 10)

    def forward(self, images):
        stream = self.norm(self.stem(images)).relu()
        stream = stream + self.narrow(self.widen(stream).relu())
        return self.head(stream.mean((2, 3)))


class Depthwise(nn.Sequential):
    """An inverted bottleneck."""

    example_input_array = torch.zeros(2, 3, 4, 4)

    def __init__(self):
        super().__init__(
            nn.Conv2d(3, 16, 1),
            nn.Conv2d(16, 16, 3, padding=1, groups=16),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 8, 1),
            nn.Flatten(),
            nn.Linear(8 * 16, 10),
        )


class Concatenation(nn.Module):
    """Two branches side by side."""

    example_input_array = torch.zeros(2, 3, 4, 4)

    def __init__(self):
        super().__init__()
        self.one = nn.Conv2d(3, 16, 1)
        self.other = nn.Conv2d(3, 24, 1)
        self.last = nn.Conv2d(40, 10, 1)

    def forward(self, images):
        return self.last(torch.cat([self.one(images), self.other(images).relu()], 1))


class Attention(nn.Module):
    """Four heads of eight."""

    example_input_array = torch.zeros(2, 5, 12)

    def __init__(self):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(12, 32) for _ in range(3))
        self.output = nn.Linear(32, 12)

    def forward(self, words):
        heads = [
            layer(words).view(*words.shape[:2], -1, 8).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        ]
        mixed = nn.functional.scaled_dot_product_attention(*heads)
        return self.output(mixed.transpose(1, 2).flatten(2))


def start(model, optimizer="adamw", *, steps=STEPS, state=None, **recipe):
    recipe = {"sparsity": 0.5, "pattern": ChannelPattern(), **recipe}
    optimizers = OPTIMIZERS[optimizer](model.parameters())
    pruner = Pruner(**recipe)
    if state is not None:
        pruner.load_state_dict(state)
    pruner.attach(model, optimizers, steps=steps)
    return optimizers, pruner


def train(model, optimizer, pruner, steps=STEPS, first=0, check=lambda: None):
    shape = model.example_input_array.shape
    for step in range(first, first + steps):
        generator = torch.Generator().manual_seed(step)
        optimizer.zero_grad()
        model(torch.randn(4, *shape[1:], generator=generator)).square().mean().backward()
        pruner.before_step(optimizer)
        optimizer.step()
        check()


def pruned(model, **recipe):
    """Return the masks after one update at the first step."""
    optimizer, pruner = start(model, **{"schedule": AT_ONCE, **recipe})
    train(model, optimizer, pruner, 1)
    return pruner.masks, pruner


def outer(rows, columns):
    return rows[:, None] & columns[None]


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


class Two(nn.Sequential):
    """Sixteen hidden units, whose weights are all 1."""

    example_input_array = torch.zeros(1, 4)

    def __init__(self):
        super().__init__(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))
        for layer in (self[0], self[2]):
            nn.init.ones_(layer.weight)


def kept(pruner, name="0.bias"):
    return pruner.masks[name].nonzero().flatten().tolist()


def test_a_score_is_the_mean_over_all_weights_of_the_channel():
    model = Two()
    model[0].weight.data[:, 1] = -torch.arange(16.0)  # 3 + i of the rows
    model[2].weight.data[2] = torch.tensor([8.0, 0.0] * 8)  # 10 or 2 of the columns
    model[0].bias.data[:] = torch.arange(160.0, 0, -10)  # has no say
    optimizer, pruner = start(model, schedule=AT_ONCE)
    scores = pruner.groups[0].scores(MagnitudeCriterion().score)
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
    assert [tensor.name for tensor in pruner.tensors if tensor.follows] == ["0.bias", "2.weight"]


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


# -- what goes together ---------------------------------------------------------------------------


def test_a_residual_stream_stays_dense_in_the_inner_scope():
    masks, pruner = pruned(Residual())
    assert [group.name for group in pruner.groups] == ["widen.weight"]
    assert set(masks) == {"widen.weight", "widen.bias", "narrow.weight"}
    for name in ("stem.weight", "norm.bias", "narrow.bias"):
        assert pruner.dense[name] == "residual stream, which scope='all' prunes"
    assert pruner.dense["narrow.weight"] == pruner.dense["stem.weight"]  # of its rows
    assert pruner.dense["head.weight"] == "network output"
    assert "widen.weight" not in pruner.dense


def test_all_that_a_residual_stream_joins_is_pruned_in_the_scope_of_all():
    masks, pruner = pruned(Residual(), pattern=ChannelPattern(scope="all"))
    stream, inner = masks["stem.bias"], masks["widen.bias"]
    assert [int(mask.sum()) for mask in (stream, inner)] == [8, 16]
    for name in ("norm.weight", "norm.bias", "narrow.bias"):
        assert torch.equal(masks[name], stream)
    assert torch.equal(masks["widen.weight"][..., 0, 0], outer(inner, stream))
    assert torch.equal(masks["narrow.weight"][..., 0, 0], outer(stream, inner))
    assert torch.equal(masks["head.weight"], stream.expand(10, 16))
    stream_group = next(group for group in pruner.groups if group.name == "stem.weight")
    assert stream_group.producers == ("stem.weight", "narrow.weight")


def test_a_depthwise_convolution_goes_with_the_channels_that_it_reads():
    masks, pruner = pruned(Depthwise(), sparsity={"*": 0.5, "4": None})
    alive = masks["0.bias"]
    assert int(alive.sum()) == 8
    for name in ("1.bias", "2.weight", "2.bias"):
        assert torch.equal(masks[name], alive)
    assert torch.equal(masks["1.weight"][:, 0, 0, 0], alive)
    assert torch.equal(masks["4.weight"], alive.view(1, 16, 1, 1).expand(8, 16, 1, 1))
    assert pruner.dense["4.bias"] == "goes with '4.weight': sparsity null"


def test_a_consumer_of_a_concatenation_loses_the_inputs_of_either_branch():
    masks, _ = pruned(Concatenation())
    both = torch.cat([masks["one.bias"], masks["other.bias"]])
    assert [int(masks[f"{name}.bias"].sum()) for name in ("one", "other")] == [8, 16]
    assert torch.equal(masks["last.weight"][..., 0, 0], both.expand(10, 40))


def test_attention_heads_are_pruned_whole():
    masks, pruner = pruned(Attention())
    (group,) = pruner.groups
    assert (group.channels, group.width, group.kept) == (4, 8, 2)
    heads = masks["query.bias"].view(4, 8)
    assert torch.equal(heads.all(1), heads.any(1))
    for name in ("query", "key", "value"):
        assert torch.equal(masks[f"{name}.weight"], heads.reshape(32, 1).expand(32, 12))
    assert torch.equal(masks["output.weight"], heads.flatten().expand(12, 32))


# -- what stays dense -----------------------------------------------------------------------------


def test_a_group_without_a_target_stays_dense():
    _, pruner = pruned(Net(), sparsity={"*": 0.5, "3": None})
    assert [group.name for group in pruner.groups] == ["0.weight", "7.weight"]
    assert pruner.dense["3.weight"] == "sparsity null"
    assert pruner.dense["4.weight"] == "goes with '3.weight': sparsity null"
    _, pruner = pruned(Net(), sparsity={"7": 0.5})
    assert [group.name for group in pruner.groups] == ["7.weight"]
    assert pruner.dense["0.weight"] == "no glob matches"


@pytest.mark.parametrize(
    ("freeze", "of_itself", "of_another"),
    [("1.weight", "0.weight", "0.bias"), ("3.weight", "0.weight", "1.bias")],
)
def test_a_group_with_something_frozen_stays_dense_until_it_is_free(freeze, of_itself, of_another):
    model = Net()
    model.get_parameter(freeze).requires_grad_(False)
    optimizer, pruner = start(model, schedule=AT_ONCE)
    train(model, optimizer, pruner, 2)
    assert pruner.is_waiting
    for name in (of_itself, of_another):
        assert pruner.dense[name] == f"goes with '{freeze}': frozen"
    assert "0.weight" not in pruner.masks
    model.get_parameter(freeze).requires_grad_(True)
    train(model, optimizer, pruner, 1)
    assert not pruner.is_waiting
    assert [group.kept for group in pruner.groups] == [8, 16, 16]
    assert torch.equal(pruner.masks["1.weight"], pruner.masks["0.bias"])


def test_what_is_being_pruned_stays_so_where_it_is_frozen():
    model = Net()
    optimizer, pruner = start(model, schedule=AT_ONCE)
    train(model, optimizer, pruner, 1)
    before = {name: mask.clone() for name, mask in pruner.masks.items()}
    model[4].requires_grad_(False)
    train(model, optimizer, pruner, 2)
    assert not {"3.weight", "3.bias", "4.bias"} & pruner.dense.keys()
    assert before.keys() == pruner.masks.keys()
    assert all(torch.equal(mask, before[name]) for name, mask in pruner.masks.items())
    assert [group.kept for group in pruner.groups] == [8, 16, 16]


def test_a_layer_in_the_place_of_another_loses_the_channels_that_are_pruned():
    model = Net()
    optimizer, pruner = start(model, schedule=AT_ONCE, criterion=RandomCriterion())
    train(model, optimizer, pruner, 1)
    alive = pruner.masks["0.bias"].clone()
    model[1] = nn.BatchNorm2d(16)
    optimizer.add_param_group({"params": model[1].parameters()})
    train(model, optimizer, pruner, 1)
    assert torch.equal(pruner.masks["0.bias"], alive)
    assert torch.equal(model[1].weight != 0, alive)
    assert [group.kept for group in pruner.groups] == [8, 16, 16]


def test_a_group_in_two_optimizers_stays_dense_and_each_counts_its_own_steps():
    model = Net()
    one = OPTIMIZERS["sgd"](model[0].parameters())
    other = OPTIMIZERS["adamw"](nn.ModuleList(list(model)[1:]).parameters())
    pruner = Pruner(sparsity=0.5, pattern=ChannelPattern(), schedule=AT_ONCE)
    pruner.attach(model, [one, other], steps=STEPS)
    why = "goes with '1.weight': another optimizer than that of '0.weight' owns it"
    assert pruner.dense["0.weight"] == why
    assert [group.name for group in pruner.groups] == ["3.weight", "7.weight"]
    train(model, one, pruner, 1)
    assert pruner.sparsity == 0
    train(model, other, pruner, 1)
    assert pruner.sparsity == 0.5


def test_what_no_optimizer_owns_keeps_its_group_dense():
    model = Net()
    optimizer = OPTIMIZERS["sgd"]([p for p in model.parameters() if p is not model[4].bias])
    pruner = Pruner(sparsity=0.5, pattern=ChannelPattern())
    pruner.attach(model, optimizer, steps=STEPS)
    assert pruner.dense["3.weight"] == "goes with '4.bias': no optimizer owns it"
    assert pruner.dense["4.bias"] == "no optimizer owns it"


def test_groups_that_could_lose_nothing_are_not_counted():
    _, pruner = pruned(Net(), pattern=ChannelPattern(round_to=16))
    assert {group.name: group.kept for group in pruner.groups} == {"3.weight": 16, "7.weight": 16}
    assert pruner.dense["0.weight"] == "no more channels than round_to=16 keeps"


def test_lazy_layers_are_waited_for():
    model = nn.Sequential(nn.LazyLinear(16), nn.ReLU(), nn.Linear(16, 3))
    model.example_input_array = torch.zeros(1, 4)
    optimizer, pruner = start(model, schedule=AT_ONCE)
    assert pruner.is_waiting
    assert pruner.dense["2.weight"] == "waits for '0.weight' to be initialised"
    train(model, optimizer, pruner, 1)
    assert [group.kept for group in pruner.groups] == [8]


class Unpredictable(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 16)

    def forward(self, x):
        return self.layer(x) if x.sum() > 0 else x


@pytest.mark.parametrize(
    ("model", "recipe", "message"),
    [
        (
            Residual(),
            {
                "sparsity": {"*": 0.5, "stem": 0.9},
                "pattern": ChannelPattern(scope="all"),
            },
            "need one sparsity for channels that go together, got 'stem.weight': 0.9, "
            r"'narrow.weight': 0.5; [^$]*\n  \"narrow.weight\": 0.9",
        ),
        (
            Net(),
            {"pattern": ChannelPattern(round_to=64)},
            r"at least one prunable weight, got none: '0.weight' \(no more channels than round_to",
        ),
        (nn.Linear(4, 16), {}, "got example=None; set self.example_input_array = "),
        (Unpredictable(), {"example": torch.ones(1, 4)}, "need a forward that torch.export can"),
    ],
    ids=["different targets", "nothing to prune", "no example", "not traceable"],
)
def test_what_cannot_be_pruned_is_refused_before_training(model, recipe, message):
    example = recipe.pop("example", None)
    pruner = Pruner(**{"sparsity": 0.5, "pattern": ChannelPattern(), **recipe})
    with pytest.raises(ValueError, match=message):
        pruner.attach(model, OPTIMIZERS["sgd"](model.parameters()), steps=1, example=example)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ChannelPattern(round_to=0), "need round_to >= 1, got round_to=0"),
        (lambda: ChannelPattern(round_to=True), "need a whole number round_to, got round_to=True"),
        (lambda: ChannelPattern(round_to=1.5), "need a whole number round_to, got round_to=1.5"),
        (lambda: ChannelPattern(scope="some"), "scope 'inner' or 'all', got scope='some'"),
        (
            lambda: Pruner(pattern=ChannelPattern(), regrow=Regrow()),
            "inside single tensors for Regrow, got pattern=ChannelPattern",
        ),
        (
            lambda: Pruner(pattern=ChannelPattern(), allocation=ERKAllocation()),
            "for ERKAllocation, got pattern=ChannelPattern; use UniformAllocation",
        ),
    ],
)
def test_bad_arguments_and_clashes_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_same_sparsity_everywhere_is_the_default():
    assert Pruner(pattern=ChannelPattern()).allocation == UniformAllocation()


# -- what the engine does for every pattern -------------------------------------------------------


@pytest.mark.parametrize(
    ("criterion", "allocation"),
    [(criterion, UniformAllocation) for criterion in answers(Criterion)]
    + [(MagnitudeCriterion, GlobalAllocation), (TaylorCriterion, LAMPAllocation)],
)
def test_a_run_resumed_after_any_step_equals_the_uninterrupted_one(criterion, allocation):
    recipe = {
        "criterion": criterion(),
        "allocation": allocation(),
        "schedule": PolynomialSchedule(end=1.0),
        "pattern": ChannelPattern(round_to=3),
    }
    model = Net()
    optimizer, pruner = start(model, **recipe)
    states, counts = [], []

    def save():
        states.append(
            copy.deepcopy([model.state_dict(), optimizer.state_dict(), pruner.state_dict()])
        )

        counts.append([group.kept for group in pruner.groups])

    train(model, optimizer, pruner, check=save)
    assert len({tuple(count) for count in counts}) > 3
    for step, (weights, optimizers, state) in enumerate(states, 1):
        again = Net(seed=1)
        again.load_state_dict(weights)
        its_optimizer, its_pruner = start(again, state=state, **recipe)
        its_optimizer.load_state_dict(optimizers)
        assert [group.kept for group in its_pruner.groups] == counts[step - 1]
        train(again, its_optimizer, its_pruner, STEPS - step, first=step)
        for name, value in model.state_dict().items():
            assert torch.equal(value, again.state_dict()[name]), (step, name)
        assert its_pruner.masks.keys() == pruner.masks.keys()
        assert all(torch.equal(mask, pruner.masks[n]) for n, mask in its_pruner.masks.items())


class Counting(MagnitudeCriterion):
    """Counts how often a tensor is scored."""

    calls = 0

    def score(self, tensor, state):
        Counting.calls += 1
        return super().score(tensor, state)


def test_what_is_kept_by_rounding_up_is_not_ranked_again():
    model = Two()
    schedule = PolynomialSchedule(begin=0, end=1, every=0.01)
    optimizer, pruner = start(model, criterion=Counting(), schedule=schedule, sparsity=0.75)
    calls = []

    def check():
        calls.append((pruner.groups[0].kept, Counting.calls))

    train(model, optimizer, pruner, check=check)
    reached = [count for kept, count in calls if kept == 8]  # at last 4 are due
    assert len(reached) > 2
    assert len(set(reached)) == 1


def test_a_pool_that_keeps_more_by_rounding_is_not_ranked_again_after_a_resume():
    recipe = {"allocation": GlobalAllocation(), "schedule": AT_ONCE, "criterion": Counting()}
    model = Net()
    optimizer, pruner = start(model, sparsity=0.9, **recipe)
    train(model, optimizer, pruner, 1)
    assert [group.kept for group in pruner.groups] == [8, 8, 8]  # of which 8 are due
    before = Counting.calls
    optimizer, again = start(model, sparsity=0.9, state=pruner.state_dict(), **recipe)
    train(model, optimizer, again, 1)
    assert Counting.calls == before
    assert again.updates == 0


def test_a_higher_target_goes_on_from_the_present_masks():
    model = Net()
    optimizer, pruner = start(model, schedule=AT_ONCE, sparsity=0.25)
    train(model, optimizer, pruner, 1)
    assert [group.kept for group in pruner.groups] == [16, 16, 32]  # 12, 18 and 30 are due
    optimizer, again = start(model, schedule=AT_ONCE, state=pruner.state_dict())
    train(model, optimizer, again, 1)
    assert [group.kept for group in again.groups] == [8, 16, 16]
    for name, mask in again.masks.items():
        assert not (mask & ~pruner.masks[name]).any()


def test_the_pruned_model_is_the_plain_one_with_zeros():
    model, names = Net(), list(Net().state_dict())
    optimizer, pruner = start(model)
    train(model, optimizer, pruner)
    pruner.detach()
    plain = Net(seed=1)
    plain.load_state_dict(model.state_dict())
    assert list(model.state_dict()) == names
    for name, mask in pruner.masks.items():
        assert not plain.get_parameter(name).detach()[~mask].any()
        assert not torch.signbit(plain.get_parameter(name).detach()[~mask]).any()
    assert not hooks(optimizer)
    assert pruner.sparsity == 0.5


def test_a_foreign_hand_in_a_bias_is_found_at_the_end():
    model = Net()
    optimizer, pruner = start(model)
    train(model, optimizer, pruner)
    model[1].bias.data += 1
    with pytest.raises(RuntimeError, match=r"others in 1\.bias: something wrote into them"):
        pruner.detach()
    assert not model[1].bias[~pruner.masks["1.bias"]].any()


def test_a_copy_is_pruned_in_every_place_too():
    model = Net()
    average = copy.deepcopy(model)
    optimizer, pruner = start(model)
    train(model, optimizer, pruner)
    pruner.mask_copy(average)
    assert all(not average.get_parameter(n)[~mask].any() for n, mask in pruner.masks.items())


def test_channels_that_are_zero_everywhere_can_be_kept_so():
    model = Net()
    for layer in (0, 1):
        model[layer].weight.data[:5] = 0
        model[layer].bias.data[:5] = 0
    model[0].weight.data[5:8] = 0  # their norm still makes something
    model[3].weight.data[:, :4] = 0
    optimizer, pruner = start(model, keep_zeros=True, sparsity=0.0)
    assert [group.kept for group in pruner.groups] == [12, 24, 40]  # the fifth is still read
    train(model, optimizer, pruner)
    assert [group.kept for group in pruner.groups] == [12, 24, 40]
    assert not model[1].bias[:4].any()
    pruner.detach()
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    with pytest.raises(ValueError, match=r"keep_zeros=True, got none in '0\.weight'"):
        pruner.attach(model, optimizer, steps=STEPS)


def test_zeros_that_are_kept_are_not_rounded_away():
    model = Net()
    for layer in (0, 1):
        model[layer].weight.data[:3] = 0
        model[layer].bias.data[:3] = 0
    model[3].weight.data[:, :3] = 0
    counts = []
    optimizer, pruner = start(model, keep_zeros=True)
    train(model, optimizer, pruner, check=lambda: counts.append(pruner.groups[0].kept))
    assert counts[0] == 13
    assert counts[-1] == 8


def test_what_is_pruned_in_a_compiled_model_has_plain_names():
    model = Net()
    compiled = torch.compile(model, backend="eager")
    compiled.example_input_array = model.example_input_array
    optimizer, pruner = start(compiled)
    train(compiled, optimizer, pruner)
    assert [group.name for group in pruner.groups] == ["0.weight", "3.weight", "7.weight"]
    assert pruner.sparsity == 0.5


@pytest.mark.parametrize("kind", [Net, Residual, Attention])
def test_looking_for_channels_leaves_no_trace(kind, monkeypatch):
    monkeypatch.undo()  # trace indeed
    model = kind()
    model.eval()
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    start(model)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not hooks(model)


def test_halves_of_one_layer_have_names_of_their_own():
    class Halves(nn.Module):
        example_input_array = torch.zeros(2, 3, 4, 4)

        def __init__(self):
            super().__init__()
            self.both = nn.Conv2d(3, 32, 1)
            self.first, self.second = nn.Conv2d(16, 16, 1), nn.Conv2d(32, 10, 1)

        def forward(self, images):
            one, other = self.both(images).chunk(2, 1)
            return self.second(torch.cat([self.first(one), other], 1))

    _, pruner = pruned(Halves())
    names = [group.name for group in pruner.groups]
    assert len(set(names)) == len(names)


def test_sparsity_of_the_metric_counts_the_zeros_of_the_weights():
    model = Two()
    _, pruner = pruned(model)
    pruner.detach()
    metric = Sparsity()
    metric.update(model)
    assert float(metric.compute()) == 0.5
    schedule = PolynomialSchedule()
    assert schedule(1.0) == 1.0
