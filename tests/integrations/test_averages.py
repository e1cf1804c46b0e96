"""Averaged copies of the weights that other libraries keep, and optimizers that average."""

from importlib.util import find_spec

import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lightning_prune import (
    CosineSchedule,
    GradientCriterion,
    GrowingPenalty,
    Phases,
    PolynomialSchedule,
    Pruner,
    Regrow,
    StraightThrough,
)
from tests.engine.training import STEPS, TOTAL, Net, pruned_weights
from tests.hooks import hooks

SECTION = "Other trainers"
needs_timm = pytest.mark.skipif(
    not (find_spec("timm") and find_spec("torchvision")), reason="needs timm and torchvision"
)
needs_schedulefree = pytest.mark.skipif(
    find_spec("schedulefree") is None, reason="needs schedulefree"
)
REGROW = Regrow(criterion=GradientCriterion(), schedule=CosineSchedule(every=0.1))


def average_by_torch(model):
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    return average, average.update_parameters


def average_by_timm(model):
    from timm.utils.model_ema import ModelEmaV3

    average = ModelEmaV3(model, decay=0.9)
    return average, average.update


def backward(model, optimizer, step):
    optimizer.zero_grad()
    x = torch.randn(8, 4, 8, generator=torch.Generator().manual_seed(step))
    model(x).square().mean().backward()


def mark(case):
    return pytest.mark.works_with(SECTION, case)


@pytest.mark.parametrize("recipe", [{}, {"regrow": REGROW}], ids=["magnitude", "RigL"])
@pytest.mark.parametrize(
    "make",
    [
        pytest.param(average_by_torch, marks=mark("torch's `AveragedModel`, by `mask_copy`")),
        pytest.param(
            average_by_timm, marks=[needs_timm, mark("timm's `ModelEmaV3`, by `mask_copy`")]
        ),
    ],
    ids=["torch", "timm"],
)
def test_an_average_has_the_zeros_of_the_model_after_mask_copy(make, recipe):
    model = Net()
    average, update = make(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    pruner = Pruner(sparsity=0.75, **recipe)
    pruner.attach(model, optimizer, steps=STEPS, hook=True)
    for step in range(STEPS):
        backward(model, optimizer, step)
        optimizer.step()
        update(model)
    assert pruned_weights(average.module, pruner).any()  # it remembers earlier weights
    pruner.mask_copy(average)
    assert len(pruned_weights(average.module, pruner)) == 0.75 * TOTAL
    assert not pruned_weights(average.module, pruner).any()
    pruner.detach()
    update(model)
    assert not pruned_weights(average.module, pruner).any()


def make_schedule_free(name, parameters, **options):
    import schedulefree

    return getattr(schedulefree, name)(parameters, lr=0.01, weight_decay=0.1, **options)


@needs_schedulefree
@mark("schedule-free optimizers: zeros stay through `eval()` and `train()`")
@pytest.mark.parametrize(
    "recipe",
    [
        {},
        {"regrow": REGROW},
        {"phases": Phases(), "schedule": PolynomialSchedule(begin=0.0, end=0.2)},
        {"penalty": GrowingPenalty()},
    ],
    ids=["magnitude", "RigL", "AC/DC", "penalty"],
)
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("AdamWScheduleFree", {}),
        ("AdamWScheduleFree", {"foreach": False}),
        ("SGDScheduleFree", {}),
        ("RAdamScheduleFree", {}),
    ],
    ids=["AdamW", "AdamW without foreach", "SGD", "RAdam"],
)
def test_zeros_stay_through_the_modes_of_schedule_free_optimizers(name, options, recipe):
    model = Net()
    optimizer = make_schedule_free(name, model.parameters(), **options)
    pruner = Pruner(sparsity=0.75, **recipe)
    pruner.attach(model, optimizer, steps=2 * STEPS, hook=True)
    for step in range(2 * STEPS):
        optimizer.train()
        backward(model, optimizer, step)
        optimizer.step()
        optimizer.eval()
        assert not pruned_weights(model, pruner).any()
    pruner.detach()
    assert pruner.sparsity == 0.75
    assert not hooks(optimizer)
    assert len(pruned_weights(model, pruner)) == 0.75 * TOTAL


class ScheduleFree(torch.optim.SGD):
    """As schedulefree writes it: each group knows its mode."""

    def __init__(self, parameters):
        super().__init__(parameters, lr=0.1)
        for group in self.param_groups:
            group["train_mode"] = False


@pytest.mark.parametrize(
    "make",
    [
        ScheduleFree,
        pytest.param(
            lambda parameters: make_schedule_free("SGDScheduleFree", parameters),
            marks=needs_schedulefree,
        ),
    ],
    ids=["stand-in", "schedulefree"],
)
@pytest.mark.works_with(SECTION, "schedule-free optimizers with `straight_through`", refused=True)
def test_schedule_free_optimizers_are_refused_for_straight_through(make):
    model = Net()
    optimizer = make(model.parameters())
    with pytest.raises(ValueError, match=r"got S\w+, whose eval\(\) puts averages into"):
        Pruner(straight_through=StraightThrough()).attach(model, optimizer, steps=STEPS)
    assert not hooks(optimizer)


@needs_timm
@mark("timm's optimizers in `Lookahead`")
def test_optimizers_of_timm_train_a_sparse_model():
    from timm.optim import create_optimizer_v2

    model = Net()
    optimizer = create_optimizer_v2(model, opt="lookahead_adamw", lr=0.01, weight_decay=0.1)
    pruner = Pruner(sparsity=0.75)
    pruner.attach(model, optimizer, steps=STEPS, hook=True)
    for step in range(STEPS):
        backward(model, optimizer, step)
        optimizer.step()
        assert not pruned_weights(model, pruner).any()
    pruner.detach()
    assert pruner.steps == [STEPS]
    assert pruner.sparsity == 0.75


def test_an_average_that_replaces_the_weights_is_masked_by_the_optimizer():
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    pruner = Pruner(sparsity=0.75)
    pruner.attach(model, optimizer, steps=STEPS, hook=True)
    for step in range(STEPS):
        backward(model, optimizer, step)
        optimizer.step()
        average.update_parameters(model)
    model.load_state_dict(average.module.state_dict())  # as diffusers' EMAModel.copy_to does
    pruner.mask(optimizer)
    pruner.detach()
    assert not pruned_weights(model, pruner).any()
