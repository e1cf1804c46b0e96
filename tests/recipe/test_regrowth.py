"""Dynamic sparse training: RigL, SET and what else can be had from the same record."""

from copy import deepcopy
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from lightning_prune import (
    BlockPattern,
    CosineSchedule,
    Criterion,
    GradientCriterion,
    MagnitudeCriterion,
    NMPattern,
    OneShotSchedule,
    PolynomialSchedule,
    Pruner,
    RandomCriterion,
    Regrow,
    UniformAllocation,
    UnstructuredPattern,
)
from tests.engine.training import OPTIMIZERS, Net, train

STEPS = 24
AT_ONCE = OneShotSchedule(end=0)


def cosine(**kwargs):
    return CosineSchedule(**{"begin": 2, "end": 18, "every": 2, "unit": "step", **kwargs})


def start(optimizer="adamw", net=None, **recipe):
    net = net or Net()
    optimizer = OPTIMIZERS[optimizer](net.parameters())
    recipe = {"sparsity": 0.75, "schedule": AT_ONCE, "regrow": Regrow(schedule=cosine()), **recipe}
    pruner = Pruner(**recipe)
    pruner.attach(net, optimizer, steps=STEPS)
    return net, optimizer, pruner


@pytest.mark.parametrize("grow", [GradientCriterion(), RandomCriterion(), MagnitudeCriterion()])
@pytest.mark.parametrize(
    "pattern",
    [
        UnstructuredPattern(),
        UnstructuredPattern(per_row=True),
        NMPattern(n=1, m=4),
        NMPattern(n=3, m=4),
        BlockPattern(shape=(2, 2)),
    ],
    ids=str,
)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_each_tensor_keeps_as_many_at_every_step(grow, pattern, optimizer):
    net, its_optimizer, pruner = start(
        optimizer, pattern=pattern, regrow=Regrow(criterion=grow, schedule=cosine())
    )
    counts, churn, before = [], [], {}

    def check():
        counts.append([tensor.kept for tensor in pruner.tensors])
        now = {name: mask.clone() for name, mask in pruner.masks.items()}
        churn.append(sum(int((now[name] ^ before[name]).sum()) for name in before))
        before.update(now)
        for tensor in pruner.tensors:
            assert tensor.kept == int(tensor.mask.kept.sum())
            assert not tensor.parameter.detach()[~tensor.mask.kept].any()
            if isinstance(pattern, NMPattern) and pattern.n == 1:
                groups = tensor.mask.kept.movedim(1, -1).reshape(-1, 4)
                assert (groups.sum(1) <= 1).all()

    train(net, its_optimizer, pruner, STEPS, check=check)
    assert all(count == counts[0] for count in counts)
    exchanges = churn[2:20:2]  # at steps 2, 4, ...
    assert exchanges[0] > 0
    assert exchanges == sorted(exchanges, reverse=True)
    assert exchanges[-1] == 0
    assert not any(churn[3::2])
    pruner.detach()


def test_the_share_falls_with_the_cosine_to_the_atom():
    net, optimizer, pruner = start(
        allocation=UniformAllocation(),
        regrow=Regrow(share=0.5, schedule=cosine(), criterion=RandomCriterion(seed=1)),
    )
    exchanged = []
    train(net, optimizer, pruner, STEPS, check=lambda: exchanged.append(dict(pruner.changed)))
    tensor = pruner.tensors[1]
    for step in range(2, 20, 2):
        share = 0.5 * (1 - cosine()(step))
        expected = 2 * round(share * tensor.kept) / tensor.total
        assert exchanged[step][tensor.name] == expected


def test_the_first_masks_are_random_and_the_dropped_are_the_smallest():
    net, optimizer, pruner = start(regrow=Regrow(schedule=cosine(), criterion=GradientCriterion()))
    random = {}

    def check():
        random.update({} if random else {n: m.clone() for n, m in pruner.masks.items()})

    train(net, optimizer, pruner, 2, check=check)
    drawn = Pruner(sparsity=0.75, schedule=AT_ONCE, criterion=RandomCriterion())
    other = Net()
    its_optimizer = OPTIMIZERS["adamw"](other.parameters())
    drawn.attach(other, its_optimizer, steps=STEPS)
    train(other, its_optimizer, drawn, 1)
    assert all(torch.equal(random[name], mask) for name, mask in drawn.masks.items())

    weights = {t.name: t.parameter.detach().clone() for t in pruner.tensors}
    gradients = {}
    before = {name: mask.clone() for name, mask in pruner.masks.items()}
    x = torch.randn(8, 4, 8, generator=torch.Generator().manual_seed(2))
    optimizer.zero_grad()
    net(x).square().mean().backward()
    gradients = {t.name: t.parameter.grad.clone().abs() for t in pruner.tensors}
    pruner.before_step(optimizer)
    for tensor in pruner.tensors:
        dropped = before[tensor.name] & ~tensor.mask.kept
        grown = tensor.mask.kept & ~before[tensor.name]
        assert dropped.sum() == grown.sum() == round(0.3 * tensor.kept)
        stayed = before[tensor.name] & tensor.mask.kept
        size = weights[tensor.name].abs()
        assert size[dropped].max() <= size[stayed].min()
        slope = gradients[tensor.name]
        assert slope[grown].min() >= slope[~before[tensor.name] & ~grown].max()
        assert not tensor.parameter.detach()[grown].any()
        assert torch.equal(tensor.parameter.grad.abs()[grown], slope[grown])


def test_what_grows_starts_with_a_clean_optimizer_state():
    for name in OPTIMIZERS:
        net, optimizer, pruner = start(name)
        train(net, optimizer, pruner, 2)
        before = {tensor.name: tensor.mask.kept.clone() for tensor in pruner.tensors}
        net(torch.randn(8, 4, 8)).square().mean().backward()
        pruner.before_step(optimizer)
        for tensor in pruner.tensors:
            grown = tensor.mask.kept & ~before[tensor.name]
            assert grown.any()
            for value in optimizer.state[tensor.parameter].values():
                if value.shape == tensor.mask.shape:
                    assert not value[grown].any()


def test_a_ramp_and_regrowth_land_exactly():
    net, optimizer, pruner = start(
        schedule=PolynomialSchedule(begin=1, end=19, every=3, unit="step"), sparsity=0.9
    )
    train(net, optimizer, pruner, STEPS)
    assert pruner.sparsity == pytest.approx(0.9, abs=1e-3)
    assert sum(t.kept for t in pruner.tensors) == round(sum(t.total for t in pruner.tensors) * 0.1)


@pytest.mark.parametrize("stop", range(1, 20))
@pytest.mark.parametrize("grow", [GradientCriterion(), RandomCriterion()])
def test_a_resumed_run_equals_the_uninterrupted_one(stop, grow):
    recipe = {"regrow": Regrow(criterion=grow, schedule=cosine())}
    net, optimizer, pruner = start(**recipe)
    train(net, optimizer, pruner, stop)
    state = [
        {k: v.clone() for k, v in net.state_dict().items()},
        deepcopy(optimizer.state_dict()),
        deepcopy(pruner.state_dict()),
    ]
    train(net, optimizer, pruner, STEPS - stop, first=stop)

    again = Net(seed=1)
    its_optimizer = OPTIMIZERS["adamw"](again.parameters())
    its_pruner = Pruner(sparsity=0.75, schedule=AT_ONCE, **recipe)
    for part, value in zip((again, its_optimizer, its_pruner), state, strict=True):
        part.load_state_dict(value)
    its_pruner.attach(again, its_optimizer, steps=STEPS)
    train(again, its_optimizer, its_pruner, STEPS - stop, first=stop)
    for name, value in net.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    for name, mask in pruner.masks.items():
        assert torch.equal(mask, its_pruner.masks[name])


def test_a_weight_without_gradient_is_named():
    net = nn.ModuleDict({"used": nn.Linear(8, 8), "unused": nn.Linear(8, 8)})
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    pruner = Pruner(sparsity=0.5, schedule=AT_ONCE, regrow=Regrow(schedule=cosine(begin=0)))
    pruner.attach(net, optimizer, steps=STEPS)
    net["used"](torch.randn(2, 8)).sum().backward()
    with pytest.raises(ValueError, match=r"need a gradient, got none for 'unused.weight'"):
        pruner.before_step(optimizer)


@dataclass(frozen=True, kw_only=True)
class Gathering(Criterion):
    def observe(self, tensor, state):
        return {"sum": tensor.weights}

    def score(self, tensor, state):
        return state["sum"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"share": 0}, r"need 0 < share <= 1, got share=0"),
        ({"share": 1.5}, r"got share=1.5"),
        (
            {"criterion": Gathering()},
            r"gathers nothing over the steps, got criterion=Gathering\(\)",
        ),
        ({"first": Gathering()}, r"got first=Gathering\(\)"),
    ],
)
def test_a_bad_record_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Regrow(**arguments)
