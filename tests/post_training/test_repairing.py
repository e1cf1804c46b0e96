"""After one-shot pruning, the weights that are left make up for those that went."""

import copy

import pytest
import torch
from torch import nn

from lightning_prune import (
    BranchPattern,
    ChannelPattern,
    ERKAllocation,
    GlobalAllocation,
    MacsBudget,
    MagnitudeCriterion,
    NMPattern,
    Pattern,
    PruningCallback,
    Repair,
    UniformAllocation,
    UnstructuredPattern,
    WandaCriterion,
    prune_once,
    shrink,
)
from tests.conftest import answers
from tests.hooks import registered
from tests.post_training.models import state_of, trainer_with
from tests.post_training.repaired import (
    Conv1D,
    Manual,
    Model,
    check_zeros,
    lose,
    make_perceptron,
    prune,
)

LAYERS = {
    "Linear": (nn.Linear(12, 6), (12,)),
    "Linear without bias": (nn.Linear(12, 6, bias=False), (5, 12)),
    "Conv1D of Hugging Face": (Conv1D(6, 12), (5, 12)),
    "stride and padding": (nn.Conv2d(4, 6, 3, stride=2, padding=1), (4, 7, 7)),
    "groups": (nn.Conv2d(4, 6, 3, groups=2, bias=False), (4, 5, 5)),
    "dilation": (nn.Conv2d(2, 6, (2, 3), dilation=(1, 2), padding=(1, 0)), (2, 5, 7)),
    "depthwise": (nn.Conv2d(4, 8, 3, groups=4, padding=1, padding_mode="circular"), (4, 5, 5)),
    "one dimension": (nn.Conv1d(4, 6, 3, padding="same"), (4, 9)),
    "three dimensions": (nn.Conv3d(2, 4, 2), (2, 3, 4, 3)),
}


@pytest.mark.parametrize("case", LAYERS)
def test_the_repaired_weights_solve_the_least_squares_problem(case):
    layer, shape = copy.deepcopy(LAYERS[case][0]).double(), LAYERS[case][1]
    model = Model(nn.Sequential(layer), torch.randn(64, *shape, dtype=torch.float64))
    dense = copy.deepcopy(layer)
    report = prune(model, Repair(rounds=200, damping=0.02), criterion=MagnitudeCriterion())
    mask = report.pruner.masks["net.0.weight"]
    weight, bias = solve(dense, model.images, mask, damping=0.02)
    assert torch.allclose(layer.weight, weight, rtol=0, atol=1e-6)
    if bias is not None:
        assert torch.allclose(layer.bias, bias, rtol=0, atol=1e-6)
    assert report.repaired.layers[0].repaired < report.repaired.layers[0].masked


def solve(dense, images, mask, damping):
    """Return the best weight and bias by the normal equations of the outputs.

    The derivatives of the outputs by each weight come from the layer itself.
    """
    weight, bias = dense.weight.detach(), dense.bias
    parameters = {} if bias is None else {"bias": torch.zeros_like(bias)}

    def run(unit):
        found = torch.func.functional_call(dense, {"weight": unit, **parameters}, (images,))
        return found.detach().movedim(-1 if type(dense) in (nn.Linear, Conv1D) else 1, -1)

    units = torch.eye(weight.numel(), dtype=weight.dtype).view(-1, *weight.shape)
    derivatives = torch.stack([run(unit).flatten(0, -2) for unit in units])
    means = derivatives.mean(1, keepdim=True)
    centered = (derivatives - (means if bias is not None else 0)).flatten(1)
    hessian = centered @ centered.T
    # The outputs of a group of a convolution have a damping of their own.
    strengths = hessian.diagonal().view(getattr(dense, "groups", 1), -1).mean(1, keepdim=True)
    hessian += damping * strengths.expand(-1, len(hessian) // len(strengths)).flatten().diag()
    kept, found = mask.flatten(), torch.zeros(weight.numel(), dtype=weight.dtype)
    wanted = (hessian @ weight.flatten())[kept]
    found[kept] = torch.linalg.solve(hessian[kept][:, kept], wanted)
    shift = (weight.flatten() - found) @ means[:, 0]
    return found.view_as(weight), None if bias is None else bias + shift


def test_each_layer_sees_its_repaired_predecessors_and_keeps_the_dense_outputs():
    model = make_perceptron(dtype=torch.float64)
    dense = copy.deepcopy(model)
    prune(model, Repair(rounds=200), criterion=WandaCriterion())
    with torch.no_grad():
        seen, wanted = model.net[:5](model.images), dense.net(dense.images)
        last = copy.deepcopy(model.net[5])
        found = ((last(seen) - wanted).square()).sum()
        for scale in (0.99, 1.01):
            last.weight.copy_(model.net[5].weight * scale)
            assert (last(seen) - wanted).square().sum() > found
        assert torch.allclose(last.weight / 1.01, model.net[5].weight)
        assert torch.allclose(model.net[5](seen).mean(0), wanted.mean(0))


@pytest.mark.parametrize("pattern", [UnstructuredPattern(), NMPattern()])
def test_the_outputs_lose_less_than_those_of_wanda(pattern):
    model, wanda = make_perceptron(), make_perceptron()
    dense = copy.deepcopy(model)
    prune(wanda, pattern=pattern, criterion=WandaCriterion())
    report = prune(model, Repair(), pattern=pattern)
    assert lose(model, dense) < 0.5 * lose(wanda, dense)
    check_zeros(report, model)
    assert report.pruner.sparsity == 0.5


@pytest.mark.parametrize(
    "pattern", [kind for kind in answers(Pattern) if kind not in (BranchPattern, ChannelPattern)]
)
@pytest.mark.parametrize("allocation", [UniformAllocation, ERKAllocation])
def test_each_pattern_keeps_as_many_as_the_allocation_gives(pattern, allocation):
    model, plain = make_perceptron(), make_perceptron()
    recipe = {"pattern": pattern(), "sparsity": 0.6, "allocation": allocation()}
    report = prune(model, Repair(), **recipe)
    check_zeros(report, model)
    kept = {group.name: group.kept for group in report.pruner.groups}
    assert kept == {group.name: group.kept for group in prune(plain, **recipe).pruner.groups}
    for group in report.pruner.groups:
        assert group.pattern.is_satisfied(group.alive(), group.atoms_kept)


def test_a_criterion_chooses_the_masks_and_without_it_the_repair_does():
    reports = {}
    for name, repair, criterion in [
        ("wanda", None, WandaCriterion()),
        ("wanda, repaired", Repair(), WandaCriterion()),
        ("magnitude", None, None),
        ("magnitude, repaired", Repair(), MagnitudeCriterion()),
        ("repair", Repair(), None),
    ]:
        reports[name] = prune(make_perceptron(), repair, criterion=criterion).pruner.masks
    for name in ("wanda", "magnitude"):
        for key, mask in reports[name].items():
            assert torch.equal(mask, reports[f"{name}, repaired"][key])
            assert not torch.equal(mask, reports["repair"][key])


def test_only_pruned_layers_and_their_biases_change():
    model = make_perceptron()
    before, hooks = state_of(model), registered(model)
    modes = [module.training for module in model.modules()]
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    prune(model, Repair(), sparsity={"net.0": 0.5, "net.2": 0.5})
    assert torch.equal(torch.rand(1), expected)
    changed = {name for name, value in state_of(model).items() if not value.equal(before[name])}
    assert changed == {"net.0.weight", "net.0.bias", "net.2.weight", "net.2.bias"}
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())
    assert registered(model) == hooks
    assert "log" not in vars(model)


def test_it_is_the_same_each_time():
    first, second = make_perceptron(), make_perceptron()
    prune(first, Repair())
    prune(second, Repair())
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name])


def test_weights_that_were_zero_stay_zero():
    model = make_perceptron()
    with torch.no_grad():
        model.net[2].weight[:, :8] = 0.0
    report = prune(model, Repair(), keep_zeros=True)
    assert (model.net[2].weight[:, :8] == 0).all()
    assert report.pruner.sparsity == 0.5
    check_zeros(report, model)


@pytest.mark.works_with("Starting sparse", "`keep_zeros` after a `repair` in one shot")
def test_a_training_after_the_repair_keeps_the_zeros(tmp_path):
    model, output = make_perceptron(), tmp_path / "pruned.ckpt"
    trainer = trainer_with(PruningCallback(sparsity=0.5, allocation=UniformAllocation()))
    report = prune_once(trainer, model, batches=8, repair=Repair(), output=output)
    again = make_perceptron()
    callback = PruningCallback(sparsity=0.5, allocation=UniformAllocation(), keep_zeros=True)
    trainer_with(callback).fit(again, ckpt_path=output, weights_only=False)
    for name, mask in report.pruner.masks.items():
        assert torch.equal(again.get_parameter(name) != 0, mask)
        assert not torch.equal(again.get_parameter(name), model.get_parameter(name))


def test_the_sums_of_narrow_weights_are_in_single_precision():
    model, single = make_perceptron(dtype=torch.bfloat16), make_perceptron()
    dense = copy.deepcopy(single)
    prune(model, Repair())
    prune(single, Repair())
    assert model.net[0].weight.dtype == torch.bfloat16
    assert lose(model, dense) < 1.3 * lose(single, dense)


def test_under_manual_optimization_the_repair_is_the_same():
    model, manual = make_perceptron(), make_perceptron(kind=Manual)
    prune(model, Repair())
    prune(manual, Repair())
    for name, value in model.state_dict().items():
        assert torch.equal(value, manual.state_dict()[name])


class Recurrent(nn.Module):
    """Calls a layer several times, and a layer never; two layers read the same tensor."""

    def __init__(self):
        super().__init__()
        self.step, self.gate, self.idle = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.attention = nn.MultiheadAttention(8, 2)

    def forward(self, x):
        for _ in range(3):
            x = self.step(x).tanh() * self.gate(x)
        return self.attention(x, x, x)[0]


def test_layers_without_visible_inputs_are_only_masked_and_named(capsys):
    model = Model(Recurrent(), torch.randn(64, 8))
    report = prune(model, Repair())
    assert {layer.name for layer in report.repaired.layers} == {
        "net.step.weight",
        "net.gate.weight",
    }
    assert set(report.repaired.skipped) == {
        "net.idle.weight",
        "net.attention.in_proj_weight",
        "net.attention.out_proj.weight",
    }
    check_zeros(report, model)
    assert "not repaired: 'net.idle.weight' (no training batch calls it)" in capsys.readouterr().out


def test_consumers_make_up_for_pruned_channels():
    recipe = {"pattern": ChannelPattern(), "allocation": None}
    model, masked = make_perceptron(), make_perceptron()
    dense = copy.deepcopy(model)
    report = prune(model, Repair(), **recipe)
    masks = prune(masked, **recipe).pruner.masks
    assert all(torch.equal(mask, masks[name]) for name, mask in report.pruner.masks.items())
    assert lose(model, dense) < 0.5 * lose(masked, dense)
    small = shrink(copy.deepcopy(model), model.example_input_array)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
    assert torch.allclose(small(model.images), model(model.images), atol=1e-5)


def test_a_budget_is_met_as_without_a_repair():
    recipe = {"budget": MacsBudget(keep=0.4), "sparsity": None}
    reports = [prune(make_perceptron(), repair, **recipe) for repair in (None, Repair())]
    kept = [{group.name: group.kept for group in each.pruner.groups} for each in reports]
    assert kept[0] == kept[1]


def test_an_allocation_by_scores_needs_a_criterion():
    model = make_perceptron()
    before = state_of(model)
    with pytest.raises(ValueError, match=r"got allocation=GlobalAllocation; .* name a criterion"):
        prune(model, Repair(), allocation=GlobalAllocation())
    assert all(torch.equal(value, before[name]) for name, value in state_of(model).items())
    prune(model, Repair(), allocation=GlobalAllocation(), criterion=WandaCriterion())


def test_whole_branches_are_refused():
    model = Model(nn.Sequential(nn.Linear(16, 8)), torch.randn(64, 16))
    with pytest.raises(ValueError, match=r"got pattern=BranchPattern; prune without repair"):
        prune_once(trainer_with(PruningCallback(pattern=BranchPattern())), model, repair=Repair())


def test_too_few_batches_are_refused_and_change_nothing():
    model = Model(Recurrent(), torch.randn(64, 8))
    before, hooks = state_of(model), registered(model)
    with pytest.raises(ValueError, match="need at least batches=9 training batches"):
        prune(model, Repair(), batches=9)
    assert all(torch.equal(value, before[name]) for name, value in state_of(model).items())
    assert registered(model) == hooks


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"damping": 0.0}, "need damping > 0, got damping=0.0"),
        ({"rounds": -1}, "need rounds >= 0, got rounds=-1"),
    ],
)
def test_an_option_out_of_range_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Repair(**options)
