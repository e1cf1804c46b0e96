"""Dense and sparse phases in turns; the last phase is sparse."""

import pytest
import torch

from lightning_prune import (
    GlobalAllocation,
    MacsBudget,
    NMPattern,
    OneShotSchedule,
    Phases,
    PolynomialSchedule,
    Pruner,
    UniformAllocation,
)
from tests.engine.training import EXAMPLE, OPTIMIZERS, TOTAL, Net, pruned_weights, train

STEPS = 16
AT_ONCE = OneShotSchedule(end=0, unit="step")
TURNS = Phases(begin=2, end=14, rounds=3, unit="step")  # sparse at 2, 6, 10, 14
SPARSE = {2, 3, 6, 7, 10, 11, 14, 15}  # the steps, 0-based


def start(optimizer="adamw", *, model=None, **recipe):
    model = model or Net()
    optimizer = OPTIMIZERS[optimizer](model.parameters())
    recipe = {"sparsity": 0.75, "schedule": AT_ONCE, "phases": TURNS, **recipe}
    return model, optimizer, Pruner(**recipe)


def attached(optimizer="adamw", **recipe):
    model, optimizer, pruner = start(optimizer, **recipe)
    pruner.attach(model, optimizer, steps=STEPS, example=EXAMPLE)
    return model, optimizer, pruner


def flat_masks(pruner):
    return torch.cat([mask.flatten() for mask in pruner.masks.values()])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(
    "recipe",
    [{}, {"allocation": GlobalAllocation()}, {"pattern": NMPattern(), "sparsity": 0.5}],
    ids=str,
)
def test_phases_take_turns_and_each_sparse_phase_is_exact(optimizer, recipe):
    model, optimizer, pruner = attached(optimizer, **recipe)
    due = TOTAL - round(TOTAL * (1 - recipe.get("sparsity", 0.75)))
    counts = []

    def check():
        assert not pruned_weights(model, pruner).any()
        counts.append(int((~flat_masks(pruner)).sum()))

    train(model, optimizer, pruner, steps=STEPS, check=check)
    assert counts == [due if step in SPARSE else 0 for step in range(STEPS)]
    pruner.detach()
    assert sum(int((t.parameter == 0).sum()) for t in pruner.tensors) == due


def test_pruned_weights_grow_in_a_dense_phase_and_the_next_masks_are_others():
    model, optimizer, pruner = attached()
    train(model, optimizer, pruner, steps=4)
    first = flat_masks(pruner)
    train(model, optimizer, pruner, steps=2, first=4)
    grown = torch.cat([tensor.parameter.detach().flatten() for tensor in pruner.tensors])
    assert grown[~first].any()
    for tensor in pruner.tensors:  # as if they had learned for long
        tensor.weights.masked_fill_(~tensor.suspended, 9.0)
    train(model, optimizer, pruner, steps=1, first=6)
    assert (flat_masks(pruner) & ~first).any()


def test_the_target_rises_in_dense_phases_too_and_never_falls():
    ramp = PolynomialSchedule(begin=0, end=12, every=1, unit="step")
    model, optimizer, pruner = attached(schedule=ramp, allocation=UniformAllocation())
    targets, sparsities = [], []

    def check():
        targets.append(pruner.sparsity_target)
        sparsities.append(pruner.sparsity)

    train(model, optimizer, pruner, steps=STEPS, check=check)
    assert targets == sorted(targets)
    for step, (target, sparsity) in enumerate(zip(targets, sparsities, strict=True)):
        assert sparsity == pytest.approx(target if step in SPARSE else 0, abs=3 / TOTAL)


@pytest.mark.parametrize("stop", range(1, STEPS))
def test_a_resume_after_any_step_equals_the_uninterrupted_run(stop, tmp_path):
    model, optimizer, pruner = attached()
    train(model, optimizer, pruner, steps=stop)
    state = [model.state_dict(), optimizer.state_dict(), pruner.state_dict()]
    torch.save(state, tmp_path / "state.pt")
    train(model, optimizer, pruner, steps=STEPS - stop, first=stop)

    again, its_optimizer, its_pruner = start(model=Net(seed=1))
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    for part, value in zip((again, its_optimizer, its_pruner), state, strict=True):
        part.load_state_dict(value)
    its_pruner.attach(again, its_optimizer, steps=STEPS)
    train(again, its_optimizer, its_pruner, steps=STEPS - stop, first=stop)
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    assert torch.equal(flat_masks(pruner), flat_masks(its_pruner))


@pytest.mark.parametrize("resumed", [False, True])
def test_a_training_that_stops_in_a_dense_phase_leaves_the_last_sparse_zeros(resumed):
    model, optimizer, pruner = attached()
    train(model, optimizer, pruner, steps=4)
    masks = flat_masks(pruner)
    train(model, optimizer, pruner, steps=1, first=4)
    assert pruner.sparsity == 0
    if resumed:
        state = pruner.state_dict()
        pruner.detach(completed=False)
        _, optimizer, pruner = start(model=model)
        pruner.load_state_dict(state)
        pruner.attach(model, optimizer, steps=STEPS)
        assert pruner.sparsity == 0
    with pytest.warns(UserWarning, match="before the last sparse phase.*sparsity 0.7500 of 0.7500"):
        pruner.detach()
    assert torch.equal(flat_masks(pruner), masks)
    assert not pruned_weights(model, pruner).any()


def test_a_training_that_stops_before_the_first_sparse_phase_stays_dense():
    model, optimizer, pruner = attached()
    train(model, optimizer, pruner, steps=2)
    with pytest.warns(UserWarning, match=r"sparsity 0\.0000 of 0\.7500"):
        pruner.detach()
    assert pruner.sparsity == 0


def test_an_exception_in_a_dense_phase_leaves_the_last_sparse_zeros():
    model, optimizer, pruner = attached()
    train(model, optimizer, pruner, steps=5)
    pruner.detach(completed=False)
    assert pruner.sparsity == 0.75
    assert not pruned_weights(model, pruner).any()


def test_a_frozen_weight_stays_pruned_in_a_dense_phase():
    model = Net()
    model[2].weight.requires_grad_(False)
    optimizer = OPTIMIZERS["adamw"](p for p in model.parameters() if p.requires_grad)
    targets = {"*": 0.75, "2.weight": 0.5}
    pruner = Pruner(sparsity=targets, schedule=AT_ONCE, phases=TURNS)
    pruner.attach(model, optimizer, steps=STEPS)
    train(model, optimizer, pruner, steps=5)
    assert int(pruner.masks["2.weight"].sum()) == 400
    assert pruner.masks["0.weight"].all()


def test_a_budget_is_met_in_each_sparse_phase():
    model, optimizer, pruner = attached(sparsity=None, budget=MacsBudget(keep=0.3))
    costs = []
    train(
        model,
        optimizer,
        pruner,
        steps=STEPS,
        check=lambda: costs.append(next(iter(pruner.spending)).share),
    )
    assert all(0.29 < cost <= 0.3 for step, cost in enumerate(costs) if step in SPARSE)
    assert all(cost == 1 for step, cost in enumerate(costs) if step not in SPARSE)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rounds": 0}, "need rounds >= 1, got rounds=0"),
        ({"begin": 0.5, "end": 0.5}, "need end > begin=0.5, got end=0.5"),
        ({"begin": 2, "end": 7, "rounds": 3, "unit": "step"}, r"need end >= begin \+ 6 steps"),
        ({"end": 2}, "need end <= 1 with unit='fraction'"),
    ],
)
def test_phases_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Phases(**arguments)
