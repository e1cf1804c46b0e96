"""Weights are not masked after a step that cannot have moved them, and no one can tell."""

import contextlib
import inspect
import weakref

import pytest
import torch

from lightning_prune import OneShotSchedule, PolynomialSchedule, Pruner
from tests.engine.zero_keeping import (
    AT_ONCE,
    STEPS,
    Operations,
    assert_zeros,
    backward,
    make_model,
    pruned_at_once,
    train,
)

END = 7  # the last three steps are made at rest
OPTIONS = {
    torch.optim.SGD: [
        {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
        {"lr": 0.1, "momentum": 0.9, "dampening": 0.1, "maximize": True},
        {"lr": 0.1},
    ],
    torch.optim.Adam: [
        {"lr": 0.01, "amsgrad": True, "weight_decay": 0.01},
        {"lr": 0.01, "maximize": True},
    ],
    torch.optim.AdamW: [
        {"lr": 0.01, "weight_decay": 0.1},
        {"lr": 0.01, "amsgrad": True, "maximize": True},
    ],
    torch.optim.NAdam: [
        {"lr": 0.01, "weight_decay": 0.1, "decoupled_weight_decay": True},
        {"lr": 0.01, "maximize": True},
    ],
    torch.optim.RAdam: [
        {"lr": 0.01, "weight_decay": 0.1, "decoupled_weight_decay": True},
        {"lr": 0.01, "weight_decay": 0.1, "maximize": True},
    ],
    torch.optim.Adamax: [
        {"lr": 0.01, "weight_decay": 0.1},
        {"lr": 0.01, "maximize": True},
    ],
    torch.optim.Adadelta: [
        {"weight_decay": 0.1},
        {"maximize": True},
    ],
    torch.optim.Adagrad: [
        {"lr": 0.05, "initial_accumulator_value": 0.1, "weight_decay": 0.1, "lr_decay": 0.1},
        {"lr": 0.05, "maximize": True},
    ],
    torch.optim.RMSprop: [
        {"lr": 0.01, "centered": True, "momentum": 0.9, "weight_decay": 0.1},
        {"lr": 0.01, "maximize": True},
    ],
    torch.optim.Rprop: [
        {"lr": 0.01},
        {"lr": 0.01, "etas": (0.4, 1.3), "maximize": True},
    ],
    torch.optim.ASGD: [
        {"lr": 0.01, "weight_decay": 0.1, "t0": 3},
        {"lr": 0.01, "maximize": True},
    ],
}
FUSED = {torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad}
EVERY = [
    pytest.param(kind, {**options, way: True}, id=f"{kind.__name__}-{number}-{way}")
    for kind, several in OPTIONS.items()
    for number, options in enumerate(several)
    for way in ["foreach", *["fused"] * (kind in FUSED)]
] + [
    pytest.param(kind, {**options, "foreach": False}, id=f"{kind.__name__}-{number}-plain")
    for kind, several in OPTIONS.items()
    for number, options in enumerate(several)
]


class Own(torch.optim.SGD):
    """One of which nothing is known, since its step is its own."""

    @torch.no_grad()
    def step(self, closure=None):
        return inspect.unwrap(torch.optim.SGD.step)(self, closure)


class Unknown(torch.optim.Optimizer):
    """Moves all weights, whatever the gradient."""

    def __init__(self, parameters):
        super().__init__(parameters, {})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.add_(0.1)


def bits(value):
    return bytes(value.detach().contiguous().flatten().view(torch.uint8).tolist())


def outcome(model, optimizer):
    """All weights and statistics in bytes."""
    yield [bits(parameter) for parameter in model.parameters()]
    for state in optimizer.state_dict()["state"].values():
        yield {
            name: bits(value) if isinstance(value, torch.Tensor) and value.ndim else value
            for name, value in state.items()
        }


def ramp(kind, options, dtype, *, shortcut=True):
    model = make_model(dtype)
    optimizer = kind(model.parameters(), **options)
    if not shortcut:  # which is not taken where others could write after a step
        optimizer.register_step_post_hook(lambda *_: None)
    schedule = PolynomialSchedule(begin=2, end=END, unit="step", every=2)
    pruner = Pruner(sparsity=0.75, schedule=schedule)
    pruner.attach(model, optimizer, steps=STEPS)
    for step in range(STEPS):
        train(model, optimizer, pruner, first=step)
        if step >= 4:
            assert_zeros(pruner)
    masked = maskings_of_weights(model, optimizer, pruner)
    pruner.detach()
    assert pruner.sparsity == 0.75
    return list(outcome(model, optimizer)), masked


def maskings_of_weights(model, optimizer, pruner):
    """Return how many weights the next step masks."""
    backward(model, optimizer, STEPS)
    pruner.before_step(optimizer)
    with Operations() as operations:
        optimizer.step(lambda: torch.zeros(()))
    return operations.all.count("bitwise_and_")


def test_every_optimizer_that_is_known_is_tried():
    kinds = {k for k in vars(torch.optim).values() if isinstance(k, type)} - {torch.optim.Optimizer}
    others = kinds - set(OPTIONS) - {torch.optim.SparseAdam}  # which takes no dense gradients
    assert torch.optim.LBFGS in others
    for kind in others:
        model = make_model()
        optimizer = kind([p for p in model.parameters() if p.ndim == 2], lr=0.01)
        pruner = Pruner(sparsity=0.5, schedule=AT_ONCE)
        pruner.attach(model, optimizer, steps=STEPS)
        for _ in range(3):
            assert maskings_of_weights(model, optimizer, pruner) == 2, kind


@pytest.mark.parametrize(("kind", "options"), EVERY)
def test_a_run_with_the_shortcut_is_bit_for_bit_the_one_without(kind, options):
    resting, masked = ramp(kind, options, torch.float32)
    assert masked == 0
    always, masked = ramp(kind, options, torch.float32, shortcut=False)
    assert masked == 2
    assert resting == always


@pytest.mark.parametrize(
    ("kind", "way"),
    [
        (torch.optim.SGD, "foreach"),  # the fused one differs from itself from run to run in bf16
        (torch.optim.AdamW, "foreach"),
        (torch.optim.AdamW, "fused"),
        (torch.optim.Adagrad, "foreach"),
        (torch.optim.Adagrad, "fused"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_so_it_is_in_other_precisions(dtype, kind, way):
    options = {**OPTIONS[kind][0], way: True}
    resting, masked = ramp(kind, options, dtype)
    assert masked == 0
    always, masked = ramp(kind, options, dtype, shortcut=False)
    assert masked == 2
    assert resting == always


def test_weights_at_rest_are_not_written():
    model, optimizer, pruner = pruned_at_once(lr=0.1, momentum=0.9, fused=True)
    backward(model, optimizer)
    pruner.before_step(optimizer)
    losses = [tensor.parameter.square().sum() for tensor in pruner.tensors]
    optimizer.step()  # a fused one does not raise versions itself
    for loss in losses:
        loss.backward()  # is an error where someone has written into the weights


@pytest.mark.parametrize(
    "make",
    [
        lambda p: Own(p, lr=0.1, momentum=0.9),
        Unknown,
        lambda p: torch.optim.LBFGS(p, lr=0.1),
        lambda p: torch.optim.Adam(p, lr=0.01, eps=0),
        lambda p: torch.optim.Adafactor(p, lr=0.01),
    ],
    ids=["own step", "unknown", "LBFGS", "no eps", "not element-wise"],
)
def test_weights_are_masked_after_each_step_that_may_have_moved_them(make):
    model = make_model()
    optimizer = make(model.parameters())
    pruner = Pruner(sparsity=0.5, schedule=AT_ONCE)
    pruner.attach(model, optimizer, steps=STEPS)
    for step in range(4):

        def closure(step=step):
            backward(model, optimizer, step)
            pruner.before_step(optimizer)
            return model(torch.ones(1, 8)).square().mean()

        if isinstance(optimizer, torch.optim.LBFGS):
            optimizer.step(closure)
        else:
            closure()
            with Operations() as operations:
                optimizer.step()
            assert operations.all.count("bitwise_and_") == 2
        assert_zeros(pruner)


@pytest.mark.parametrize("eps", [0.0, 1e-8])
@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.RMSprop, torch.optim.Adagrad])
def test_zeros_hold_where_eps_vanishes_in_half_precision(kind, eps):
    model = make_model(torch.float16)
    optimizer = kind(model.parameters(), lr=0.01, eps=eps, foreach=False)
    pruner = Pruner(sparsity=0.5, schedule=AT_ONCE)
    pruner.attach(model, optimizer, steps=STEPS)
    for _ in range(3):
        optimizer.zero_grad()
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, 0.5)
        pruner.before_step(optimizer)
        optimizer.step()
        assert_zeros(pruner)
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_a_step_without_update_is_one_pass_over_each_gradient_and_makes_nothing_new():
    model, optimizer, pruner = pruned_at_once(lr=0.1, momentum=0.9, fused=True)
    backward(model, optimizer, 3)
    with Operations() as operations:
        pruner.before_step(optimizer)
    assert operations.all.count("bitwise_and_") == len(pruner.tensors) == 2
    assert not set(operations.all) - {"bitwise_and_", "view", "detach", "alias"}
    assert operations.allocating == []
    with Operations() as operations:
        optimizer.step()
    own = {name for name in operations.all if "record_function" not in name}
    assert own == {"_fused_sgd_"}  # there is nothing of ours


def test_gradients_do_not_outlive_the_step():
    model, optimizer, pruner = pruned_at_once()
    backward(model, optimizer, 3)
    pruner.before_step(optimizer)
    gradients = [weakref.ref(tensor.parameter.grad) for tensor in pruner.tensors]
    optimizer.step()
    assert all(gradient() is not None for gradient in gradients)
    optimizer.zero_grad(set_to_none=True)
    assert [gradient() for gradient in gradients] == [None, None]


def test_gradients_of_a_step_that_is_not_made_do_not_outlive_the_next_one():
    model, optimizer, pruner = pruned_at_once()
    backward(model, optimizer, 3)
    pruner.before_step(optimizer)
    gradient = weakref.ref(model[0].weight.grad)
    train(model, optimizer, pruner, first=4)
    assert gradient() is None


def test_nothing_is_masked_before_something_is_pruned():
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=True)
    pruner = Pruner(sparsity=0.5, schedule=OneShotSchedule(end=3, unit="step"))
    pruner.attach(model, optimizer, steps=STEPS)
    for step, expected in enumerate([0, 0, 0, 2, 2]):
        backward(model, optimizer, step)
        due = step == 3
        with contextlib.nullcontext(Operations()) if due else Operations() as operations:
            pruner.before_step(optimizer)
        if not due:
            assert operations.all.count("bitwise_and_") == expected
        with Operations() as operations:
            optimizer.step()
        assert operations.all.count("bitwise_and_") == (2 if due else 0)
