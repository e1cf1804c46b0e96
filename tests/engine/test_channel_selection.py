"""Which channels go together, which stay dense, and which are refused."""

import copy

import pytest
import torch
from torch import nn

from lightning_prune import (
    ChannelPattern,
    ERKAllocation,
    Pruner,
    RandomCriterion,
    Regrow,
    UniformAllocation,
)
from tests.engine.channels import (
    AT_ONCE,
    STEPS,
    Attention,
    Concatenation,
    Depthwise,
    Net,
    Residual,
    outer,
    pruned,
    start,
    train,
)
from tests.engine.training import OPTIMIZERS
from tests.hooks import hooks

pytestmark = pytest.mark.usefixtures("traced_once")

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
    assert pruner.may_grow
    for name in (of_itself, of_another):
        assert pruner.dense[name] == f"goes with '{freeze}': frozen"
    assert "0.weight" not in pruner.masks
    model.get_parameter(freeze).requires_grad_(True)
    train(model, optimizer, pruner, 1)
    assert not pruner.may_grow
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
    assert pruner.dense["0.weight"] == (
        "ChannelPattern(round_to=16, scope='inner') keeps all 16 channels"
    )


def test_lazy_layers_are_waited_for():
    model = nn.Sequential(nn.LazyLinear(16), nn.ReLU(), nn.Linear(16, 3))
    model.example_input_array = torch.zeros(1, 4)
    optimizer, pruner = start(model, schedule=AT_ONCE)
    assert pruner.may_grow
    assert pruner.dense["2.weight"] == "waits for '0.weight' to be initialized"
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
            r"at least one prunable weight, got none: '0.weight' \(ChannelPattern\(round_to",
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
        (lambda: ChannelPattern(scope="some"), "scope as 'inner' or 'all', got scope='some'"),
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
    assert Pruner(pattern=ChannelPattern()).recipe.chosen_allocation == UniformAllocation()


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
