"""Weights are not masked after a step that cannot have moved them, and no one can tell."""

import contextlib
import weakref

import pytest
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_prune import OneShotSchedule, PolynomialSchedule, Pruner, _zero_keeper
from lightning_prune._optimizers import _ELEMENTWISE

STEPS, END = 10, 7  # the last three steps are made at rest
AT_ONCE = OneShotSchedule(end=0, unit="step")
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

    def step(self, closure=None):
        return torch.optim.SGD.step.__wrapped__(self, closure)


class Unknown(torch.optim.Optimizer):
    """Moves all weights, whatever the gradient."""

    def __init__(self, parameters):
        super().__init__(parameters, {})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.add_(0.1)


class Operations(TorchDispatchMode):
    """Lists the operations that are made, and of these the ones that make a new storage."""

    def __init__(self):
        super().__init__()
        self.all, self.allocating = [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {a.untyped_storage().data_ptr() for a in args if isinstance(a, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        self.all.append(name)
        if isinstance(result, torch.Tensor):
            made = {result.untyped_storage().data_ptr()} - given
            self.allocating += [name] * len(made)
        return result


def make_model(dtype=torch.float32):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 4, bias=False))
        return net.to(dtype)


def backward(model, optimizer, step=0):
    dtype = next(model.parameters()).dtype
    x = torch.randn(6, 8, generator=torch.Generator().manual_seed(step)).to(dtype)
    optimizer.zero_grad()
    model(x).square().mean().backward()


def train(model, optimizer, pruner, *, first=0, steps=1):
    for step in range(first, first + steps):
        backward(model, optimizer, step)
        pruner.before_step(optimizer)
        optimizer.step()


def assert_zeros(pruner):
    assert pruner.sparsity > 0
    for tensor in pruner.tensors:
        pruned = tensor.parameter.detach()[~tensor.mask]
        assert torch.equal(pruned, torch.zeros_like(pruned))
        assert not pruned.signbit().any()


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


def pruned_at_once(kind=torch.optim.SGD, *, dtype=torch.float32, **options):
    """Return a model with its optimizer and its pruner, three steps after pruning."""
    model = make_model(dtype)
    options = options or {"lr": 0.1, "momentum": 0.9}
    optimizer = kind(model.parameters(), **options)
    pruner = Pruner(sparsity=0.5, schedule=AT_ONCE)
    pruner.attach(model, optimizer, steps=STEPS)
    train(model, optimizer, pruner, steps=3)
    assert_zeros(pruner)
    return model, optimizer, pruner


def ramp(kind, options, dtype):
    model = make_model(dtype)
    optimizer = kind(model.parameters(), **options)
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
        optimizer.step()
    return operations.all.count("bitwise_and_")


def test_every_optimizer_that_is_known_is_tried():
    assert set(OPTIONS) == _ELEMENTWISE


@pytest.mark.parametrize(("kind", "options"), EVERY)
def test_a_run_with_the_shortcut_is_bit_for_bit_the_one_without(kind, options, monkeypatch):
    resting, masked = ramp(kind, options, torch.float32)
    assert masked == 0
    monkeypatch.setattr(_zero_keeper, "leaves_zeros", lambda *_: False)
    always, masked = ramp(kind, options, torch.float32)
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
def test_so_it_is_in_other_precisions(dtype, kind, way, monkeypatch):
    options = {**OPTIONS[kind][0], way: True}
    resting, masked = ramp(kind, options, dtype)
    assert masked == 0
    monkeypatch.setattr(_zero_keeper, "leaves_zeros", lambda *_: False)
    always, _ = ramp(kind, options, dtype)
    assert resting == always


def test_weights_at_rest_are_not_written():
    model, optimizer, pruner = pruned_at_once(lr=0.1, momentum=0.9, fused=True)
    backward(model, optimizer)
    pruner.before_step(optimizer)
    versions = [t.parameter._version for t in pruner.tensors]
    optimizer.step()  # a fused one does not raise versions itself
    assert [t.parameter._version for t in pruner.tensors] == versions


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


# -- others write ------------------------------------------------------------------------------


def add(weights):
    weights.add_(0.5)


def add_foreach(weights):
    torch._foreach_add_([weights], 0.5)


def overwrite(weights):
    weights.copy_(torch.ones_like(weights))


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("write", [add, add_foreach, overwrite])
@pytest.mark.parametrize("fused", [False, True])
def test_what_others_write_into_weights_is_gone_after_the_next_step(fused, write, guard):
    model, optimizer, pruner = pruned_at_once(lr=0.1, momentum=0.9, fused=fused)
    with guard():
        write(model[0].weight)
    train(model, optimizer, pruner, first=3)
    assert_zeros(pruner)
    train(model, optimizer, pruner, first=4)
    assert_zeros(pruner)


@pytest.mark.parametrize("fused", [False, True])
def test_dense_weights_that_are_loaded_are_pruned_after_the_next_step(fused):
    model, optimizer, pruner = pruned_at_once(lr=0.1, momentum=0.9, fused=fused)
    model.load_state_dict(make_model().state_dict())
    train(model, optimizer, pruner, first=3)
    assert_zeros(pruner)


@pytest.mark.parametrize("fused", [False, True])
def test_what_is_written_into_weights_between_before_step_and_the_step_is_gone_after_it(fused):
    model, optimizer, pruner = pruned_at_once(lr=0.1, momentum=0.9, fused=fused)
    backward(model, optimizer, 3)
    pruner.before_step(optimizer)
    with torch.no_grad():
        model[0].weight.add_(0.5)
    optimizer.step()
    assert_zeros(pruner)


@pytest.mark.parametrize("when", ["pre", "post"])
def test_what_an_earlier_hook_of_the_optimizer_writes_into_weights_is_gone_after_the_step(when):
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def write(*_):
        with torch.no_grad():
            model[0].weight.add_(0.5)

    getattr(optimizer, f"register_step_{when}_hook")(write)
    pruner = Pruner(sparsity=0.5, schedule=AT_ONCE)
    pruner.attach(model, optimizer, steps=STEPS)
    for step in range(4):
        train(model, optimizer, pruner, first=step)
        assert_zeros(pruner)


def in_place(gradients):
    for gradient in gradients:
        gradient.add_(1.0)


def at_once(gradients):
    torch._foreach_add_(gradients, 1.0)


@pytest.mark.parametrize("noisy", [{3}, set(range(3, 8))], ids=["once", "always"])
@pytest.mark.parametrize("write", [in_place, at_once])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop])
def test_noise_that_is_added_to_masked_gradients_revives_nothing(kind, write, noisy):
    """Also when it ends: what momentum has gathered of it goes on to move weights."""
    options = {} if kind is torch.optim.AdamW else {"momentum": 0.9}
    model, optimizer, pruner = pruned_at_once(kind, lr=0.01, weight_decay=0.1, **options)
    for step in range(3, 8):
        backward(model, optimizer, step)
        pruner.before_step(optimizer)
        if step in noisy:
            write([parameter.grad for parameter in model.parameters()])
        optimizer.step()
        assert_zeros(pruner)


@pytest.mark.parametrize("later", [0, 3], ids=["at once", "later"])
def test_gradients_that_are_replaced_after_before_step_revive_nothing(later):
    model, optimizer, pruner = pruned_at_once()
    backward(model, optimizer, 3)
    pruner.before_step(optimizer)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert_zeros(pruner)
    for step in range(4, 4 + later):
        train(model, optimizer, pruner, first=step)
        assert_zeros(pruner)


def test_a_norm_of_nan_that_clipping_spreads_revives_nothing():
    model, optimizer, pruner = pruned_at_once()
    backward(model, optimizer, 3)
    model[0].bias.grad.fill_(torch.nan)
    pruner.before_step(optimizer)
    clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    assert_zeros(pruner)
    for step in range(4, 7):
        train(model, optimizer, pruner, first=step)
        assert_zeros(pruner)


def test_clipped_gradients_keep_zeros():
    model, optimizer, pruner = pruned_at_once(torch.optim.AdamW, lr=0.01)
    for step in range(3, 7):
        backward(model, optimizer, step)
        pruner.before_step(optimizer)
        clip_grad_norm_(model.parameters(), 0.01)
        optimizer.step()
        assert_zeros(pruner)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_dense_statistics_that_are_loaded_revive_nothing(kind, fused):
    options = {"lr": 0.01, "fused": fused}
    options |= {"momentum": 0.9} if kind is torch.optim.SGD else {"amsgrad": True}
    dense = make_model()
    other = kind(dense.parameters(), **options)
    backward(dense, other)
    other.step()
    model, optimizer, pruner = pruned_at_once(kind, **options)
    optimizer.load_state_dict(other.state_dict())
    for step in range(3, 7):
        train(model, optimizer, pruner, first=step)
        assert_zeros(pruner)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_momentum_from_before_revives_no_zeros_that_are_kept(kind):
    model = make_model()
    options = {"momentum": 0.9} if kind is torch.optim.SGD else {}
    optimizer = kind(model.parameters(), lr=0.01, **options)
    backward(model, optimizer)
    optimizer.step()
    with torch.no_grad():
        model[0].weight[:, :4] = 0
    schedule = OneShotSchedule(end=STEPS, unit="step")
    pruner = Pruner(sparsity=0.9, schedule=schedule, keep_zeros=True)
    pruner.attach(model, optimizer, steps=STEPS)
    for step in range(5):
        train(model, optimizer, pruner, first=step)
        assert_zeros(pruner)
        assert not model[0].weight[:, :4].any()


@pytest.mark.parametrize("fused", [False, True])
def test_two_optimizers_that_share_a_weight_keep_its_zeros(fused):
    model = make_model()
    both = [
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=fused),
        torch.optim.AdamW(model.parameters(), lr=0.01, fused=fused),
    ]
    for optimizer in both:  # both have momentum
        backward(model, optimizer)
        optimizer.step()
    pruner = Pruner(sparsity=0.5, schedule=OneShotSchedule(end=2, unit="step"))
    pruner.attach(model, both, steps=STEPS)
    for turn in [0, 1, 0, 1, 0, 1, 1, 0, 0, 1, 0, 1]:
        train(model, both[turn], pruner)
        if pruner.sparsity:
            assert_zeros(pruner)
    assert pruner.sparsity


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        lambda p: torch.optim.Adagrad(p, lr=0.1),
        lambda p: torch.optim.SparseAdam(p, lr=0.1),
    ],
    ids=["SGD", "Adagrad", "SparseAdam"],
)
@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
def test_sparse_gradients_keep_zeros(make):
    model = nn.Sequential(nn.Embedding(10, 6, sparse=True))
    optimizer = make(list(model.parameters()))
    pruner = Pruner(sparsity={"0": 0.5}, schedule=AT_ONCE)
    pruner.attach(model, optimizer, steps=STEPS)
    for step in range(5):
        optimizer.zero_grad()
        model(torch.tensor([step, step + 1, 3])).sum().backward()
        assert model[0].weight.grad.is_sparse
        pruner.before_step(optimizer)
        optimizer.step()
        assert_zeros(pruner)


def test_a_layer_without_gradients_rests_and_keeps_zeros():
    model, optimizer, pruner = pruned_at_once()
    for step in range(3, 7):
        backward(model, optimizer, step)
        if step != 4:
            model[2].weight.grad = None
        pruner.before_step(optimizer)
        optimizer.step()
        assert_zeros(pruner)


# -- what it costs -----------------------------------------------------------------------------


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
