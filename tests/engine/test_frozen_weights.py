"""A frozen weight is pruned if a glob other than `*` decides on it, without any training."""

import copy

import pytest
import torch
import yaml
from torch import nn

from lightning_prune import (
    ChannelPattern,
    Criterion,
    ERKAllocation,
    FisherCriterion,
    GlobalAllocation,
    GradientCriterion,
    MovementCriterion,
    NMPattern,
    OneShotSchedule,
    PolynomialSchedule,
    Pruner,
    Regrow,
    TaylorCriterion,
    UniformAllocation,
    WandaCriterion,
)
from tests.conftest import answers
from tests.engine.training import OPTIMIZERS
from tests.hooks import hooks
from tests.models.adapted import LoraLinear

STEPS = 6
GRADIENTS = (GradientCriterion, TaylorCriterion, FisherCriterion, MovementCriterion)
OTHERS = [kind for kind in answers(Criterion) if kind not in GRADIENTS]
ON_BASE = {"*": 0.5, "*base_layer*": 0.75}


def make_net(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(LoraLinear(), nn.ReLU(), nn.Linear(16, 16))


def trainable(model):
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def start(model, make_optimizer=OPTIMIZERS["adamw"], state=None, **recipe):
    optimizer = make_optimizer(trainable(model))
    pruner = Pruner(**{"sparsity": ON_BASE, "schedule": PolynomialSchedule(end=1.0)} | recipe)
    if state is not None:
        pruner.load_state_dict(state)
    pruner.attach(model, optimizer, steps=STEPS)
    return optimizer, pruner


def train(model, optimizer, pruner, steps=STEPS, first=0, check=None):
    for step in range(first, first + steps):
        x = torch.randn(8, 16, generator=torch.Generator().manual_seed(step))

        def closure(x=x):
            optimizer.zero_grad()
            loss = model(x).square().mean()
            loss.backward()
            pruner.before_step(optimizer)
            return loss

        optimizer.step(closure)
        if check:
            check()


def base_of(model):
    return model[0].base_layer.weight


def count_zeros(parameter):
    return int((parameter == 0).sum())


@pytest.mark.parametrize("criterion", OTHERS)
@pytest.mark.parametrize("allocation", [ERKAllocation, UniformAllocation])
def test_a_frozen_base_lands_exactly_and_the_adapters_stay_dense(criterion, allocation):
    model = make_net()
    before = model[0].base_layer.weight.clone()
    optimizer, pruner = start(model, criterion=criterion(), allocation=allocation())
    train(model, optimizer, pruner)
    pruner.detach()
    base = model[0].base_layer.weight
    assert count_zeros(base) == 192
    assert count_zeros(model[2].weight) == 128
    assert torch.equal(base, before.where(pruner.masks["0.base_layer.weight"], 0.0))
    assert not base.signbit()[base == 0].any()
    assert not any(count_zeros(p) for name, p in model.named_parameters() if "lora" in name)
    assert not hooks(model)
    assert pruner.dense["0.lora_A.default.weight"] == "adapter"


def test_the_star_alone_leaves_frozen_weights_dense():
    _, pruner = start(make_net(), sparsity=0.5)
    assert list(pruner.masks) == ["2.weight"]
    assert pruner.dense["0.base_layer.weight"] == "frozen"


def test_where_everything_waits_to_be_trained_a_warning_says_so_at_once():
    model = LoraLinear()
    remedy = "nothing is pruned until.*: 'base_layer.weight' .frozen.; to prune.*by a glob other"
    with pytest.warns(UserWarning, match=remedy) as warned:
        start(model, sparsity=0.5)
    lines = yaml.safe_load(str(warned[0].message).partition("write\n")[2])
    _, pruner = start(model, **lines)
    assert pruner.recipe.targets == {"*weight*": 0.5}
    assert list(pruner.masks) == ["base_layer.weight"]


def test_the_zeros_of_a_frozen_base_are_kept_by_the_lines_of_the_warning():
    model = LoraLinear()
    base = model.base_layer.weight
    base.data[:, ::4] = 0
    with pytest.warns(UserWarning, match="to keep the zeros of frozen weights, name") as warned:
        start(model, sparsity={"*": 0.0, "base_layer.bias": None}, keep_zeros=True)
    lines = yaml.safe_load(str(warned[0].message).partition("write\n")[2])
    optimizer, pruner = start(model, keep_zeros=True, **lines)
    train(model, optimizer, pruner)
    pruner.detach()
    assert torch.equal(pruner.masks["base_layer.weight"], base != 0)
    assert pruner.sparsity == 0.25


def test_adapters_that_begin_with_zeros_are_left_dense_by_the_lines_of_the_error():
    model = nn.Sequential(LoraLinear(), LoraLinear())
    for layer in model:
        nn.init.zeros_(layer.lora_B["default"].weight)
    names = [f"{place}.lora_B.default.weight" for place in (0, 1)]
    message = f"keep_zeros=True, got none in '{names[0]}', '{names[1]}'; to leave that dense"
    with pytest.raises(ValueError, match=message) as error:
        start(model, sparsity={"*lora*": 0.0}, keep_zeros=True)
    lines = yaml.safe_load(str(error.value).partition("write\n")[2])
    assert lines["sparsity"] == {"*lora*": 0.0, names[0]: None, names[1]: None}
    start(model, keep_zeros=True, **lines)


@pytest.mark.parametrize("make_optimizer", [*OPTIMIZERS.values(), torch.optim.LBFGS])
def test_masks_of_frozen_weights_change_at_due_points_of_any_optimizer(make_optimizer):
    model, counts = make_net(), []
    schedule = PolynomialSchedule(begin=0, end=4, every=2, unit="step", power=1)
    optimizer, pruner = start(model, make_optimizer, schedule=schedule)
    train(model, optimizer, pruner, check=lambda: counts.append(count_zeros(base_of(model))))
    assert counts == [0, 0, 96, 96, 192, 192]


def test_frozen_weights_have_a_budget_of_their_own():
    model = make_net()
    base_of(model).data.mul_(100)  # would all be kept if they competed
    optimizer, pruner = start(
        model,
        sparsity={"*weight": 0.5},
        allocation=GlobalAllocation(),
        schedule=OneShotSchedule(end=0),
    )
    train(model, optimizer, pruner, 1)
    assert count_zeros(base_of(model)) == count_zeros(model[2].weight) == 128


def test_a_weight_that_no_optimizer_owns_goes_by_the_first_optimizer():
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)))
    first, second = (torch.optim.SGD(model[i].parameters(), lr=0.1) for i in (0, 2))
    pruner = Pruner(sparsity={"1": 0.5}, schedule=OneShotSchedule(end=1, unit="step"))
    pruner.attach(model, [first, second])
    for optimizer, expected in ((second, 0), (second, 0), (first, 0), (first, 8)):
        model(torch.randn(2, 4)).square().mean().backward()
        pruner.before_step(optimizer)
        optimizer.step()
        assert count_zeros(model[1].weight) == expected


def test_a_frozen_weight_that_an_optimizer_holds_goes_by_that_optimizer():
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)))
    model[2].requires_grad_(False)
    first, second = (torch.optim.SGD(layer.parameters(), lr=0.1) for layer in (model[0], model[1:]))
    pruner = Pruner(sparsity={"2": 0.5}, schedule=OneShotSchedule(end=1, unit="step"))
    pruner.attach(model, [first, second])
    for optimizer, expected in ((first, 0), (first, 0), (second, 0), (second, 8)):
        model(torch.randn(2, 4)).square().mean().backward()
        pruner.before_step(optimizer)
        optimizer.step()
        assert count_zeros(model[2].weight) == expected


@pytest.mark.parametrize("criterion", OTHERS)
def test_a_resumed_run_equals_the_uninterrupted_one(criterion):
    model, states = make_net(), []
    recipe = {"criterion": criterion()}
    optimizer, pruner = start(model, **recipe)

    def save():
        states.append(
            copy.deepcopy([model.state_dict(), optimizer.state_dict(), pruner.state_dict()])
        )

    train(model, optimizer, pruner, check=save)
    for step, (weights, of_optimizer, state) in enumerate(states, 1):
        again = make_net(seed=1)
        again.load_state_dict(weights)
        other, resumed = start(again, state=state, **recipe)
        other.load_state_dict(of_optimizer)
        train(again, other, resumed, STEPS - step, first=step)
        for name, value in model.state_dict().items():
            assert torch.equal(value, again.state_dict()[name]), (step, name)


def test_a_quantized_base_is_refused_by_name():
    model = make_net()
    codes = torch.zeros(16, 16, dtype=torch.uint8)
    model[0].base_layer.weight = nn.Parameter(codes, requires_grad=False)
    with pytest.raises(ValueError, match=r"floating-point.*base_layer\.weight' of torch.uint8"):
        start(model)
    _, pruner = start(model, sparsity={"*": 0.5, "*base_layer*": None})
    assert list(pruner.masks) == ["2.weight"]


def test_zeros_of_a_frozen_weight_can_be_kept():
    model = make_net()
    base_of(model).data[:, 0] = 0
    optimizer, pruner = start(model, keep_zeros=True, sparsity={"*base_layer*": 0.5})
    train(model, optimizer, pruner)
    assert not pruner.masks["0.base_layer.weight"][:, 0].any()
    assert count_zeros(base_of(model)) == 128


def test_patterns_hold_in_frozen_weights():
    model = make_net()
    optimizer, pruner = start(model, sparsity={"*base_layer*": 0.5}, pattern=NMPattern())
    train(model, optimizer, pruner)
    assert (pruner.masks["0.base_layer.weight"].view(16, 4, 4).sum(2) == 2).all()


@pytest.mark.parametrize("criterion", GRADIENTS)
def test_a_criterion_that_reads_gradients_refuses_a_frozen_weight_by_name(criterion):
    message = (
        rf"need a trained weight for the gradients of {criterion.__name__}, got a frozen weight in "
        r"'0.base_layer.weight'(.|\n)*\"0.base_layer.weight\": null"
    )
    with pytest.raises(ValueError, match=message):
        start(make_net(), criterion=criterion())
    start(make_net(), sparsity=0.5, criterion=criterion())


def test_regrowth_refuses_a_frozen_weight_by_name():
    with pytest.raises(
        ValueError, match=r"need a trained weight for Regrow.*'0.base_layer.weight'"
    ):
        start(make_net(), regrow=Regrow())


def test_an_unfrozen_weight_goes_on_in_the_pool_of_the_optimizer():
    model = make_net()
    optimizer, pruner = start(model, sparsity={"*weight": 0.5}, schedule=OneShotSchedule(end=0))
    train(model, optimizer, pruner, 1)
    before = pruner.masks["0.base_layer.weight"]
    base_of(model).requires_grad_(True)
    optimizer.add_param_group({"params": [base_of(model)]})
    for _ in range(2):
        train(model, optimizer, pruner, 1)
        assert torch.equal(pruner.masks["0.base_layer.weight"], before)
        assert torch.equal(base_of(model) != 0, before)
        base_of(model).requires_grad_(False)
    assert all(tensor.is_trained for tensor in pruner.tensors)


def test_wanda_reads_the_inputs_of_a_frozen_layer():
    model = make_net()
    optimizer, pruner = start(
        model,
        sparsity={"*base_layer*": 0.5},
        criterion=WandaCriterion(),
        schedule=OneShotSchedule(end=0),
    )
    x = torch.randn(8, 16) * torch.arange(1.0, 17)
    expected = base_of(model).abs() * x.norm(dim=0)
    model(x).square().mean().backward()
    pruner.before_step(optimizer)
    optimizer.step()
    best = expected.flatten().topk(128).indices.sort().values
    kept = pruner.masks["0.base_layer.weight"].flatten().nonzero().flatten()
    assert torch.equal(kept, best)


def test_channels_of_frozen_layers_that_globs_name_are_pruned():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    model[:4].requires_grad_(False)
    optimizer = torch.optim.SGD(model[4].parameters(), lr=0.1)
    pruner = Pruner(
        sparsity={"*": 0.5, "0": 0.5},
        pattern=ChannelPattern(round_to=1),
        schedule=OneShotSchedule(end=0),
    )
    pruner.attach(model, optimizer, steps=1, example=torch.zeros(2, 4))
    model(torch.randn(2, 4)).square().mean().backward()
    pruner.before_step(optimizer)
    optimizer.step()
    pruner.detach()
    assert [group.name for group in pruner.groups] == ["0.weight"]
    pruned = ~pruner.masks["0.bias"]
    assert int(pruned.sum()) == 4
    assert not model[0].weight[pruned].any()
    assert not model[2].weight[:, pruned].any()
    assert pruner.dense["2.weight"] == "frozen"


def test_an_adapter_merged_while_training_is_found_at_the_end():
    model = make_net()
    optimizer, pruner = start(model)
    train(model, optimizer, pruner)
    model[0].merge()
    with pytest.raises(RuntimeError, match=r"to be 0, got.*0\.base_layer\.weight"):
        pruner.detach()
