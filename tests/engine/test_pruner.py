import itertools
import math

import pytest
import torch
from torch import nn

from lightning_prune import (
    Allocation,
    BlockPattern,
    ChannelPattern,
    Criterion,
    ERKAllocation,
    LAMPAllocation,
    MagnitudeCriterion,
    NMPattern,
    OneShotSchedule,
    Pattern,
    PolynomialSchedule,
    Pruner,
    RandomCriterion,
    Schedule,
    UniformAllocation,
    UnstructuredPattern,
)
from tests.conftest import answers
from tests.hooks import hooks

STEPS = 12
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05),
}
EVERYTHING = list(
    itertools.product(
        answers(Schedule), answers(Allocation), answers(Pattern), answers(Criterion), OPTIMIZERS
    )
)


class Net(nn.Sequential):
    """A convolution and two matrices that every pattern divides: 1,024 prunable weights."""

    def __init__(self, seed=0):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            super().__init__(
                nn.Conv1d(4, 8, 4),
                nn.Flatten(),
                nn.Linear(40, 20, bias=False),
                nn.ReLU(),
                nn.Linear(20, 4),
            )


TOTAL = 8 * 4 * 4 + 20 * 40 + 4 * 20
EXAMPLE = torch.zeros(2, 4, 8)  # for the channels


def train(model, optimizer, pruner, steps=STEPS, first=0, check=None):
    for step in range(first, first + steps):
        x = torch.randn(8, 4, 8, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(x).square().mean().backward()
        pruner.before_step(optimizer)
        optimizer.step()
        if check:
            check()
    return model


def pruned_weights(model, pruner):
    parameters = dict(model.named_parameters())
    return torch.cat([parameters[name].detach()[~mask] for name, mask in pruner.masks.items()])


@pytest.mark.parametrize(
    ("schedule", "allocation", "pattern", "criterion", "optimizer"),
    EVERYTHING,
    ids=lambda part: part if isinstance(part, str) else part.__name__,
)
def test_every_combination_lands_exactly_and_holds_its_zeros(
    schedule, allocation, pattern, criterion, optimizer, traced_once
):
    model = Net()
    optimizer = OPTIMIZERS[optimizer](model.parameters())
    recipe = {
        "sparsity": 0.75,
        "schedule": schedule(),
        "allocation": allocation(),
        "pattern": pattern(),
        "criterion": criterion(),
    }
    if allocation.needs_unsigned_scores and criterion.signed:
        names = f"{allocation.__name__}, got criterion={criterion.__name__}"
        with pytest.raises(ValueError, match=names):
            Pruner(**recipe)
        return
    if allocation.needs_single_tensors and pattern.couples_tensors:
        names = f"{allocation.__name__}, got pattern={pattern.__name__}"
        with pytest.raises(ValueError, match=names):
            Pruner(**recipe)
        return
    pruner = Pruner(**recipe)
    masks = []

    def check():
        assert not pruned_weights(model, pruner).any()
        now = torch.cat([mask.flatten() for mask in pruner.masks.values()])
        assert not masks or not (now & ~masks[-1]).any()  # what is pruned stays pruned
        masks.append(now.clone())
        for tensor in pruner.tensors:
            for value in optimizer.state[tensor.parameter].values():
                if value.shape == tensor.mask.shape:
                    assert not value[~tensor.mask].any()

    pruner.attach(model, optimizer, steps=STEPS, example=EXAMPLE)
    train(model, optimizer, pruner, check=check)
    pruner.detach()
    zeros = sum(int((t.parameter == 0).sum()) for t in pruner.tensors)
    if pattern is ChannelPattern:  # five of twenty are due, and 8 stay
        assert zeros == 12 * 40 + 4 * 12
        assert (pruner.sparsity, pruner.sparsity_target) == (1 - 8 / 20, 0.75)
        return
    assert zeros == TOTAL - round(TOTAL * 0.25)
    assert pruner.sparsity == pruner.sparsity_target == 0.75
    if pattern is NMPattern and allocation is UniformAllocation:
        groups = pruner.masks["0.weight"].movedim(1, -1).reshape(-1, 4)
        assert (groups.sum(1) <= 2).all()


def test_the_last_planned_step_serves_an_end_of_one():
    model = Net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    pruner = Pruner(sparsity=0.9, schedule=PolynomialSchedule(begin=0, end=1))
    pruner.attach(model, optimizer, steps=STEPS)
    train(model, optimizer, pruner, steps=STEPS - 1)
    assert pruner.sparsity < 0.9
    train(model, optimizer, pruner, steps=1)
    assert pruner.sparsity == 1 - round(TOTAL * 0.1) / TOTAL


def test_steps_and_epochs_are_counted_too():
    for schedule in (
        OneShotSchedule(end=4, unit="step"),
        OneShotSchedule(end=2, unit="epoch"),
    ):
        model = Net()
        optimizer = OPTIMIZERS["sgd"](model.parameters())
        pruner = Pruner(sparsity=0.5, schedule=schedule)
        pruner.attach(model, optimizer, steps_per_epoch=2)
        sparsities = []
        train(
            model, optimizer, pruner, 6, check=lambda p=pruner, s=sparsities: s.append(p.sparsity)
        )
        assert sparsities == [0, 0, 0, 0, 0.5, 0.5]


def test_gradients_of_pruned_weights_are_zero_when_the_caller_clips():
    model = Net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    pruner = Pruner(sparsity=0.9, schedule=OneShotSchedule(end=0))
    pruner.attach(model, optimizer, steps=1)
    model(torch.randn(8, 4, 8)).square().mean().backward()
    pruner.before_step(optimizer)
    for tensor in pruner.tensors:
        assert not tensor.parameter.grad[~tensor.mask].any()
        assert tensor.parameter.grad[tensor.mask].any()


def test_a_glob_of_its_own_fixes_a_tensor_exactly():
    model = Net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    pruner = Pruner(sparsity={"*": 0.8, "2": 0.5})
    pruner.attach(model, optimizer, steps=STEPS)
    assert pruner.plan["2.weight"] == 0.5
    train(model, optimizer, pruner)
    assert int((model[2].weight == 0).sum()) == 400
    rest = pruner.tensors[0].kept + pruner.tensors[2].kept
    assert rest == round((TOTAL - 800) * (1 - 0.8))


def test_the_plan_of_erk_is_what_happens():
    model = Net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    pruner = Pruner(sparsity=0.9)
    pruner.attach(model, optimizer, steps=STEPS)
    plan = pruner.plan
    train(model, optimizer, pruner)
    assert plan == {t.name: 1 - t.kept / t.total for t in pruner.tensors}


def test_a_tensor_keeps_one_atom_unless_its_sparsity_is_one():
    for sparsity, kept in ((0.9999, 1), (1.0, 0)):
        model = nn.Linear(10, 10)
        optimizer = OPTIMIZERS["sgd"](model.parameters())
        pruner = Pruner(sparsity=sparsity, schedule=OneShotSchedule(end=0))
        pruner.attach(model, optimizer, steps=1)
        model(torch.randn(2, 10)).sum().backward()
        pruner.before_step(optimizer)
        assert pruner.tensors[0].kept == kept


def test_sparsity_zero_changes_nothing():
    dense, pruned = Net(), Net()
    for model, sparsity in ((dense, None), (pruned, 0.0)):
        optimizer = OPTIMIZERS["adamw"](model.parameters())
        pruner = Pruner(sparsity={"*": sparsity, "0": sparsity})
        if sparsity is None:
            pruner = Pruner(sparsity=0.0, schedule=OneShotSchedule(end=1))
        pruner.attach(model, optimizer, steps=STEPS)
        state = torch.get_rng_state()
        train(model, optimizer, pruner)
        assert torch.equal(torch.get_rng_state(), state)
    assert all(
        torch.equal(a, b) for a, b in zip(dense.parameters(), pruned.parameters(), strict=True)
    )


@pytest.mark.parametrize("every", [None, 0.2])
@pytest.mark.parametrize("criterion", answers(Criterion))
def test_a_resumed_run_equals_the_uninterrupted_one(criterion, every, tmp_path):
    def start(model):
        optimizer = OPTIMIZERS["adamw"](model.parameters())
        schedule = PolynomialSchedule(every=every)
        return model, optimizer, Pruner(sparsity=0.9, schedule=schedule, criterion=criterion())

    model, optimizer, pruner = start(Net())
    pruner.attach(model, optimizer, steps=STEPS)
    train(model, optimizer, pruner, steps=5)
    state = [model.state_dict(), optimizer.state_dict(), pruner.state_dict()]
    torch.save(state, tmp_path / "state.pt")
    reached = (pruner.sparsity, pruner.sparsity_target)
    train(model, optimizer, pruner, steps=STEPS - 5, first=5)

    again, its_optimizer, its_pruner = start(Net(seed=1))
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    for part, value in zip((again, its_optimizer, its_pruner), state, strict=True):
        part.load_state_dict(value)
    its_pruner.attach(again, its_optimizer, steps=STEPS)
    assert its_pruner.sparsity == reached[0]
    assert its_pruner.sparsity_target == reached[1] > 0
    train(again, its_optimizer, its_pruner, steps=STEPS - 5, first=5)

    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    for name, mask in pruner.masks.items():
        assert torch.equal(mask, its_pruner.masks[name])
    one, other = optimizer.state_dict()["state"], its_optimizer.state_dict()["state"]
    assert all(torch.equal(one[i][k], other[i][k]) for i in one for k in one[i])
    gathered, its_gathered = (p.state_dict()["observed"] for p in (pruner, its_pruner))
    for name, values in gathered.items():
        assert values.keys() == its_gathered[name].keys()
        assert all(torch.equal(values[key], its_gathered[name][key]) for key in values)


def test_a_mask_takes_one_bit_an_entry_in_the_state():
    model = Net()
    pruner = Pruner()
    pruner.attach(model, OPTIMIZERS["sgd"](model.parameters()), steps=STEPS)
    for name, mask in pruner.masks.items():
        packed = pruner.state_dict()["masks"][name]
        assert packed.dtype == torch.uint8
        assert packed.numel() == math.ceil(mask.numel() / 8)


def test_a_higher_target_goes_on_from_the_present_masks():
    model = Net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    first = Pruner(sparsity=0.5, schedule=OneShotSchedule(end=0))
    first.attach(model, optimizer, steps=STEPS)
    train(model, optimizer, first)
    first.detach()
    second = Pruner(sparsity=0.8, schedule=OneShotSchedule(end=0))
    second.load_state_dict(first.state_dict())
    second.attach(model, optimizer, steps=STEPS)
    assert second.sparsity == 0.5
    train(model, optimizer, second, steps=1)
    assert second.sparsity == pytest.approx(0.8, abs=1 / TOTAL)
    for name, mask in first.masks.items():
        assert not (second.masks[name] & ~mask).any()


class InPlace(MagnitudeCriterion):
    """Counts observations in the tensor that it was given."""

    def observe(self, tensor, state):
        return {"seen": state["seen"].add_(1)} if state else {"seen": torch.ones(())}


def test_a_state_is_not_changed_by_the_pruner_that_was_given_it():
    def start(state=None):
        model = Net()
        optimizer = OPTIMIZERS["sgd"](model.parameters())
        pruner = Pruner(criterion=InPlace())
        if state:
            pruner.load_state_dict(state)
        pruner.attach(model, optimizer, steps=STEPS)
        train(model, optimizer, pruner, steps=1)
        return pruner.state_dict()

    first = start()
    assert start(first)["observed"]["0.weight"]["seen"] == 2
    assert first["observed"]["0.weight"]["seen"] == 1


def test_masks_of_another_model_are_refused_with_the_differences():
    pruner = Pruner()
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    pruner.attach(model, OPTIMIZERS["sgd"](model.parameters()), steps=1)
    other = nn.Sequential(nn.Linear(5, 4))
    foreign = Pruner()
    foreign.load_state_dict(pruner.state_dict())
    with pytest.raises(
        ValueError, match=r"'0.weight' is \[4, 4\] in the state and \[4, 5\].*absent"
    ):
        foreign.attach(other, OPTIMIZERS["sgd"](other.parameters()), steps=1)
    with pytest.raises(ValueError, match="need the state of a Pruner"):
        foreign.load_state_dict({"masks": {}})


def test_zeros_at_the_start_can_be_kept():
    model = Net()
    model[2].weight.detach()[:10] = 0
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    pruner = Pruner(sparsity=0.0, keep_zeros=True)
    pruner.attach(model, optimizer, steps=STEPS)
    train(model, optimizer, pruner)
    assert not model[2].weight[:10].any()
    pruner.detach()
    nn.init.zeros_(model[2].weight)
    with pytest.raises(ValueError, match=r"keep_zeros=True, got none in '2\.weight'"):
        pruner.attach(model, optimizer, steps=STEPS)


def test_a_late_layer_is_due_at_once_what_the_schedule_says():
    model = Net()
    optimizer = OPTIMIZERS["adamw"]([*model[0].parameters(), *model[4].parameters()])
    pruner = Pruner(sparsity=0.5, allocation=UniformAllocation())
    pruner.attach(model, optimizer, steps=STEPS)
    train(model, optimizer, pruner, steps=10)
    assert list(pruner.masks) == ["0.weight", "4.weight"]
    before = pruner.masks["0.weight"].clone()
    optimizer.add_param_group({"params": model[2].parameters()})
    train(model, optimizer, pruner, steps=1)
    assert int((model[2].weight == 0).sum()) == 400
    assert torch.equal(before, pruner.masks["0.weight"])


def test_an_unfrozen_layer_joins():
    model = Net()
    model[2].requires_grad_(False)
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    pruner = Pruner(sparsity=0.5, schedule=OneShotSchedule(end=0))
    pruner.attach(model, optimizer, steps=STEPS)
    train(model, optimizer, pruner, steps=2)
    assert pruner.dense["2.weight"] == "frozen"
    model[2].requires_grad_(True)
    train(model, optimizer, pruner, steps=1)
    assert "2.weight" in pruner.masks
    assert pruner.sparsity == 0.5


def test_a_lazy_layer_is_pruned_once_it_has_a_shape():
    model = nn.Sequential(nn.LazyLinear(8), nn.Linear(8, 4))
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    pruner = Pruner(sparsity=0.5, schedule=OneShotSchedule(end=0))
    pruner.attach(model, optimizer, steps=1)
    model(torch.randn(2, 6)).sum().backward()
    pruner.before_step(optimizer)
    optimizer.step()
    assert list(pruner.masks) == ["0.weight", "1.weight"]
    assert pruner.sparsity == 0.5


def test_each_optimizer_counts_its_own_steps():
    model = Net()
    one, other = (OPTIMIZERS["sgd"](model[i].parameters()) for i in (0, 2))
    pruner = Pruner(sparsity=0.5, schedule=OneShotSchedule(end=2, unit="step"))
    pruner.attach(model, [one, other])
    for _ in range(3):
        train(model, one, pruner, steps=1)
    train(model, other, pruner, steps=1)
    assert int((model[0].weight == 0).sum()) == 64
    assert not (model[2].weight == 0).any()
    assert pruner.state_dict()["steps"] == [3, 1]


def test_lbfgs_inner_evaluations_count_as_one_step():
    model = Net()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=4)
    pruner = Pruner(sparsity=0.5, schedule=OneShotSchedule(end=1, unit="step"))
    pruner.attach(model, optimizer)
    x = torch.randn(8, 4, 8)

    def closure():
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        pruner.before_step(optimizer)
        return loss

    optimizer.step(closure)
    assert pruner.sparsity == 0
    optimizer.step(closure)
    assert pruner.sparsity == 0.5
    assert not pruned_weights(model, pruner).any()
    assert pruner.state_dict()["steps"] == [2]


def test_nothing_is_left_behind_but_positive_zeros():
    model = Net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    before = list(model.state_dict())
    pruner = Pruner(sparsity=0.9)
    pruner.attach(model, optimizer, steps=STEPS)
    train(model, optimizer, pruner)
    pruner.detach()
    assert not hooks(optimizer, model)
    assert list(model.state_dict()) == before
    assert not torch.signbit(pruned_weights(model, pruner)).any()


def test_a_foreign_hand_in_pruned_weights_is_found_at_the_end():
    model = Net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    pruner = Pruner(sparsity=0.9)
    pruner.attach(model, optimizer, steps=STEPS)
    train(model, optimizer, pruner)
    model[2].weight.detach().fill_(1.0)
    with pytest.raises(RuntimeError, match=r"got others in 2\.weight"):
        pruner.detach()
    assert not pruned_weights(model, pruner).any()


def test_stopping_before_the_end_warns_with_the_numbers():
    model = Net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    pruner = Pruner(sparsity=0.9)
    pruner.attach(model, optimizer, steps=100)
    train(model, optimizer, pruner, steps=50)
    with pytest.warns(UserWarning, match=rf"reached sparsity {pruner.sparsity:.4f} of 0.9000"):
        pruner.detach()


def test_a_step_without_the_pruner_is_an_error():
    model = Net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    pruner = Pruner()
    pruner.attach(model, optimizer, steps=STEPS)
    model(torch.randn(8, 4, 8)).sum().backward()
    with pytest.raises(RuntimeError, match=r"need before_step\(optimizer\)"):
        optimizer.step()
    with pytest.raises(ValueError, match="one of the optimizers given to attach"):
        pruner.before_step(OPTIMIZERS["sgd"](model.parameters()))
    with pytest.raises(RuntimeError, match="got one that is attached"):
        pruner.attach(model, optimizer, steps=STEPS)


def test_a_layer_that_is_frozen_later_keeps_its_mask():
    model = Net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    pruner = Pruner(
        sparsity=0.5,
        schedule=OneShotSchedule(end=0),
        allocation=UniformAllocation(),
        criterion=RandomCriterion(),
    )
    pruner.attach(model, optimizer, steps=STEPS)
    train(model, optimizer, pruner, steps=1)
    before = {name: mask.clone() for name, mask in pruner.masks.items()}
    for frozen in (True, False):
        model[2].requires_grad_(not frozen)
        train(model, optimizer, pruner, steps=1)
        assert list(pruner.masks) == list(before)
        assert all(torch.equal(pruner.masks[name], before[name]) for name in before)
    assert int((model[2].weight == 0).sum()) == 400


def test_masks_of_a_layer_that_is_frozen_at_the_resume_are_not_lost():
    model = Net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    first = Pruner(sparsity=0.5, schedule=OneShotSchedule(end=0))
    first.attach(model, optimizer, steps=STEPS)
    train(model, optimizer, first, steps=1)
    first.detach()
    model[2].requires_grad_(False)
    second = Pruner(sparsity=0.5, schedule=OneShotSchedule(end=0))
    second.load_state_dict(first.state_dict())
    second.attach(model, optimizer, steps=STEPS)
    assert set(second.state_dict()["masks"]) == set(first.masks)
    second.detach(completed=False)
    assert set(second.state_dict()["masks"]) == set(first.masks)


def test_masks_of_a_lazy_layer_are_restored_once_it_has_a_shape():
    def start():
        model = nn.Sequential(nn.LazyLinear(8), nn.Linear(8, 4))
        optimizer = OPTIMIZERS["sgd"](model.parameters())
        pruner = Pruner(sparsity=0.5, schedule=OneShotSchedule(end=0), criterion=RandomCriterion())
        return model, optimizer, pruner

    def step(model, optimizer, pruner):
        model(torch.randn(2, 6)).sum().backward()
        pruner.before_step(optimizer)
        optimizer.step()

    model, optimizer, pruner = start()
    pruner.attach(model, optimizer, steps=2)
    step(model, optimizer, pruner)
    again, its_optimizer, its_pruner = start()
    its_pruner.load_state_dict(pruner.state_dict())
    its_pruner.attach(again, its_optimizer, steps=2)
    step(again, its_optimizer, its_pruner)
    for name, mask in pruner.masks.items():
        assert torch.equal(mask, its_pruner.masks[name])


def test_a_refused_model_leaves_the_pruner_free_for_another():
    model = Net()
    nn.init.zeros_(model[2].weight)
    pruner = Pruner(keep_zeros=True)
    with pytest.raises(ValueError, match="keep_zeros=True"):
        pruner.attach(model, OPTIMIZERS["sgd"](model.parameters()), steps=STEPS)
    model = Net()
    pruner.attach(model, OPTIMIZERS["sgd"](model.parameters()), steps=STEPS)


@pytest.mark.parametrize("zeros", [0.3, 0.5, 0.6])
def test_nm_is_reached_also_from_zeros_that_were_anywhere(zeros):
    model = Net()
    for layer in (model[0], model[2], model[4]):
        layer.weight.detach()[torch.rand(layer.weight.shape) < zeros] = 0
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    pruner = Pruner(sparsity=0.5, pattern=NMPattern(n=2, m=4), keep_zeros=True)
    pruner.attach(model, optimizer, steps=STEPS)
    train(model, optimizer, pruner)
    for mask in pruner.masks.values():
        assert (mask.movedim(1, -1).reshape(-1, 4).sum(1) <= 2).all()


def test_zeros_hold_where_two_optimizers_share_a_weight():
    model = Net()
    both = [OPTIMIZERS["sgd"](model.parameters()) for _ in range(2)]
    pruner = Pruner(sparsity=0.5, schedule=OneShotSchedule(end=0))
    pruner.attach(model, both, steps=STEPS)
    for optimizer in (*both, *both):
        train(model, optimizer, pruner, steps=1)
        assert not pruned_weights(model, pruner).any()


def test_zeros_hold_under_infinite_gradients():
    model = Net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    pruner = Pruner(sparsity=0.5, schedule=OneShotSchedule(end=0))
    pruner.attach(model, optimizer, steps=STEPS)
    train(model, optimizer, pruner, steps=1)
    model[2].weight.grad.fill_(math.inf)
    pruner.before_step(optimizer)
    optimizer.step()
    assert not pruned_weights(model, pruner).any()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_scores_that_are_not_finite_name_the_tensor(value):
    model = Net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    pruner = Pruner(schedule=OneShotSchedule(end=0))
    pruner.attach(model, optimizer, steps=STEPS)
    model[2].weight.detach()[0, 0] = value
    with pytest.raises(ValueError, match=r"need finite scores, got 1 .* for '2.weight' at step 0"):
        pruner.before_step(optimizer)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_recurrent_layers_are_pruned(kind):
    model = kind(6, 5)
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    pruner = Pruner(sparsity=0.8)
    pruner.attach(model, optimizer, steps=3)
    for _ in range(3):
        model(torch.randn(4, 2, 6))[0].sum().backward()
        pruner.before_step(optimizer)
        optimizer.step()
    pruner.detach()
    total = sum(tensor.total for tensor in pruner.tensors)
    assert sum(int((t.parameter == 0).sum()) for t in pruner.tensors) == total - round(total * 0.2)


def test_attention_is_pruned_also_in_the_fast_path_of_eval():
    model = nn.MultiheadAttention(8, 2, batch_first=True)
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    pruner = Pruner(sparsity=0.5)
    pruner.attach(model, optimizer, steps=3)
    x = torch.randn(2, 5, 8)
    for _ in range(3):
        model(x, x, x)[0].square().sum().backward()
        pruner.before_step(optimizer)
        optimizer.step()
    assert not pruned_weights(model, pruner).any()
    assert pruner.sparsity == 0.5
    slow = model(x, x, x)[0]
    with torch.no_grad():
        fast = model.eval()(x, x, x, need_weights=False)[0]
    assert torch.allclose(fast, slow, atol=1e-6)


def test_tied_weights_are_pruned_once():
    model = nn.Sequential(nn.Linear(6, 6, bias=False), nn.ReLU(), nn.Linear(6, 6, bias=False))
    model[2].weight = model[0].weight
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    pruner = Pruner(sparsity=0.5, schedule=OneShotSchedule(end=0))
    pruner.attach(model, optimizer, steps=1)
    model(torch.randn(2, 6)).sum().backward()
    pruner.before_step(optimizer)
    assert int((model[2].weight == 0).sum()) == 18


class Coupled(UnstructuredPattern):
    couples_tensors = True


class Signed(RandomCriterion):
    signed = True


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sparsity": 1.5}, "need 0 <= sparsity <= 1, got sparsity=1.5"),
        ({"sparsity": -0.1}, "need 0 <= sparsity <= 1, got sparsity=-0.1"),
        ({"sparsity": math.nan}, "need 0 <= sparsity <= 1, got sparsity=nan"),
        ({"sparsity": True}, "need a number in .* got sparsity=True"),
        ({"sparsity": "0.9"}, "need a number in .* got sparsity='0.9'"),
        ({"sparsity": {"*": 2}}, r"need 0 <= sparsity <= 1, got sparsity=\{'\*': 2\}"),
        ({"sparsity": {}}, "need at least one glob"),
        ({"sparsity": 0.3, "pattern": NMPattern()}, "at least 1 - n/m = 0.5 for 2:4, got .*=0.3"),
        (
            {"allocation": ERKAllocation(), "pattern": Coupled()},
            "inside single tensors for ERKAllocation, got pattern=Coupled",
        ),
        (
            {"allocation": LAMPAllocation(), "criterion": Signed()},
            "scores >= 0 for LAMPAllocation, got criterion=Signed",
        ),
    ],
)
def test_a_bad_recipe_is_refused_by_the_constructor(arguments, message):
    with pytest.raises(ValueError, match=message):
        Pruner(**arguments)


@pytest.mark.parametrize(
    ("pruner", "plan", "message"),
    [
        (Pruner(), {}, "need steps with unit='fraction', got steps=None"),
        (
            Pruner(schedule=OneShotSchedule(end=1, unit="epoch")),
            {"steps": 10},
            "need steps_per_epoch with unit='epoch'",
        ),
        (
            Pruner(schedule=OneShotSchedule(end=11, unit="step")),
            {"steps": 10},
            "need end within the 10 planned steps, got end=11",
        ),
        (
            Pruner(sparsity=0.75, pattern=NMPattern(m=8)),
            {"steps": 10},
            r"multiples of m=8.*in '0.weight' of shape \(8, 4, 4\)[^$]*\n  \"0.weight\": null",
        ),
        (
            Pruner(sparsity=0.5, pattern=BlockPattern(shape=(16, 1))),
            {"steps": 9},
            '"0.weight": null',
        ),
        (Pruner(sparsity={"nothing": 0.5}), {"steps": 10}, "got sparsity={'nothing': 0.5}"),
    ],
)
def test_what_does_not_fit_is_refused_before_training(pruner, plan, message):
    model = Net()
    with pytest.raises(ValueError, match=message):
        pruner.attach(model, OPTIMIZERS["sgd"](model.parameters()), **plan)


def test_a_model_without_prunable_weights_is_refused():
    model = nn.Sequential(nn.Embedding(3, 4), nn.LayerNorm(4))
    with pytest.raises(
        ValueError, match=r"at least one prunable weight, got none: '0.weight' \(emb"
    ):
        Pruner().attach(model, OPTIMIZERS["sgd"](model.parameters()), steps=1)
