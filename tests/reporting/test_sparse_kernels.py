"""2:4 kernels: who gets them, and why others stay dense."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lightning_prune import NMPattern, Pruner, UniformAllocation, report, use_sparse_kernels
from lightning_prune.deploy.two_four import SparseKernel, explain_pattern, find_sparse_kernels
from lightning_prune.models.calls import make_call
from lightning_prune.reporting.latency import compare_times
from lightning_prune.reporting.sparse_kernels import KernelTrial
from tests.reporting.reports import counted, row, shown


def make_two_four(*parameters):
    """Zero two of each four inputs."""
    with torch.no_grad():
        for parameter in parameters:
            inputs_last = parameter.movedim(1, -1)
            inputs_last[..., ::4] = 0
            inputs_last[..., 1::4] = 0


class Net(nn.Module):
    """A Linear of each kind that a kernel cannot take, and two plain layers."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 16)
        self.dense, self.narrow = nn.Linear(16, 6), nn.Linear(6, 4)
        self.unused, self.own = nn.Linear(4, 4), Own(4, 4)
        self.computed = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
        self.tied, self.other = nn.Linear(4, 4), nn.Linear(4, 4)
        self.other.weight = self.tied.weight
        make_two_four(self.first.weight, self.second.weight, self.unused.weight, self.own.weight)

    def forward(self, x):
        x = self.second(self.first(x).relu()).relu()
        x = self.narrow(self.dense(x))
        return self.other(self.tied(self.computed(self.own(x))))


class Own(nn.Linear):
    def forward(self, x):
        return super().forward(2 * x)


REASONS = {
    "dense": "24 of 24 groups of 4 inputs keep more than 2",
    "narrow": "6 inputs are not a multiple of 4",
    "unused": "not called with this example",
    "own": "Own computes in another way than Linear",
    "computed": "a parametrization computes the weight",
    "tied": "shares the weight with 1 more",
    "other": "shares the weight with 1 more",
}


def take_turns(speedups):
    """Return a measurement that gives each contest the next speedup."""
    left = iter(speedups)

    def measure(contest):
        contest.dense()
        contest.pruned()
        return compare_times(contest, [next(left)] * 6, [1.0] * 6, calls=1)

    return measure


def make_kernel(name, convert=torch.clone):
    return SparseKernel(name=name, convert=convert, explain=lambda weight: None)


def convert(model, speedups, *kernels, **options):
    """Return the verdicts of kernels that stand in for those of a card."""
    options = {"tolerance": 0.01, "compiled": False} | options
    trial = KernelTrial(kernels or [make_kernel("fast")], take_turns(speedups), **options)
    with torch.no_grad():
        return trial.convert(model.eval(), make_call(model, torch.randn(2, 16)))


def test_each_layer_without_a_kernel_has_a_reason():
    found = convert(Net(), [2.0, 2.0, 2.0])
    assert {layer.name: layer.reason for layer in found.layers if layer.reason} == REASONS


def test_only_what_is_faster_alone_and_together_stays():
    model = Net()
    dense = model.first.weight, model.second.weight
    found = convert(model, [1.5, 0.5, 1.2])
    first, second = found.layers[:2]
    assert (first.kernel, first.speedup, first.reason) == ("fast", 1.5, "")
    assert (second.kernel, second.speedup, second.reason) == ("", 0.5, "fast is no faster")
    assert model.first.weight is not dense[0]
    assert not model.first.weight.requires_grad
    assert model.second.weight is dense[1]
    assert (found.speedup, found.difference) == (1.2, 0)


def test_a_model_that_is_slower_as_a_whole_stays_dense():
    model = Net()
    before = dict(model.named_parameters())
    found = convert(model, [1.5, 1.4, 0.4])
    assert all(parameter is before[name] for name, parameter in model.named_parameters())
    for layer, speedup in zip(found.layers[:2], (1.5, 1.4), strict=True):
        assert (layer.kernel, layer.speedup) == ("", speedup)
        assert layer.reason == "with all kernels, the model is no faster: 0.40"


def test_the_fastest_of_the_kernels_that_agree_is_taken():
    kernels = [
        make_kernel("slow"),
        make_kernel("wrong", lambda weight: 2 * weight),
        make_kernel("fast"),
        make_kernel("broken", lambda weight: weight[:, :3]),
    ]
    found = convert(Net(), [1.2, 3.0, 1.5] * 2 + [1.1], *kernels)
    assert [layer.kernel for layer in found.layers[:2]] == ["fast", "fast"]
    assert found.layers[0].speedup == 1.5


def test_outputs_that_differ_keep_a_layer_dense():
    model = Net()
    found = convert(model, [2.0, 2.0], make_kernel("wrong", lambda weight: 2 * weight))
    assert found.layers[0].reason.startswith("outputs of wrong differ by ")
    assert found.layers[0].difference > 0.1
    assert found.speedup is None


def test_a_failing_model_gets_the_dense_weights_back():
    model = Net()
    weight = model.first.weight

    def measure(contest):
        contest.pruned()
        if len(seen) == 2:
            raise MemoryError
        seen.append(contest)
        return compare_times(contest, [2.0] * 6, [1.0] * 6, calls=1)

    seen = []
    trial = KernelTrial([make_kernel("fast")], measure, tolerance=0.01, compiled=False)
    with pytest.raises(MemoryError):
        trial.convert(model.eval(), make_call(model, torch.randn(2, 16)))
    assert model.first.weight is weight


def test_on_a_cpu_everything_stays_dense_and_the_report_says_why():
    model = Net().train()
    before = dict(model.named_parameters())
    found = use_sparse_kernels(model, torch.randn(2, 16))
    assert found.layers[0].reason == "the weight is on cpu, not on CUDA"
    assert all(parameter is before[name] for name, parameter in model.named_parameters())
    assert model.training
    text = shown(dataclasses.replace(found), 120)
    assert "dense: the weight is on cpu, not on CUDA" in text
    assert "the whole model: dense" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tolerance": -0.1}, r"need tolerance >= 0, got tolerance=-0\.1"),
        ({"blocks": 5}, "need blocks >= 6, got blocks=5"),
    ],
)
def test_arguments_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        use_sparse_kernels(nn.Linear(4, 4), torch.ones(1, 4), **options)


@pytest.mark.parametrize("shape", [(32, 64), (8, 16, 3, 3)])
def test_masks_of_the_pattern_are_two_four(shape):
    layer = nn.Linear(64, 32) if len(shape) == 2 else nn.Conv2d(16, 8, 3)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    pruner = Pruner(sparsity=0.5, pattern=NMPattern(), allocation=UniformAllocation())
    pruner.attach(layer, optimizer, steps=1)
    layer(torch.randn(2, 64) if len(shape) == 2 else torch.randn(2, 16, 4, 4)).sum().backward()
    assert explain_pattern(layer.weight) is not None
    pruner.before_step(optimizer)
    optimizer.step()
    pruner.detach()
    assert explain_pattern(layer.weight) is None


def test_a_report_names_what_tensorrt_can_take_and_why_not():
    net = nn.Sequential(
        nn.Conv2d(4, 8, 3), nn.ConvTranspose2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 4)
    )
    make_two_four(net[0].weight, net[1].weight)
    example = torch.randn(1, 4, 4, 4)
    found = counted(net, example)
    assert row(found, "0").tensorrt == "sparse"
    assert row(found, "1").tensorrt == "ConvTranspose2d is neither Linear nor a convolution"
    assert row(found, "3").tensorrt == "128 of 128 groups of 4 inputs keep more than 2"
    text = " ".join(shown(found, 200).split())
    assert "TensorRT's --sparsity=enable can take 0; not 1: ConvTranspose2d is neither" in text
    assert "TensorRT" not in shown(report(nn.Linear(8, 8), torch.ones(1, 8), latency=False), 200)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_kernels_of_a_card_agree_with_dense_layers():
    model = nn.Sequential(nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, 4096)).cuda().half()
    make_two_four(model[0].weight, model[2].weight)
    inputs = torch.randn(4096, 4096, device="cuda", dtype=torch.half)
    expected = model(inputs)
    found = use_sparse_kernels(model, inputs, blocks=6)
    assert all(layer.speedup is not None for layer in found.layers), found
    torch.testing.assert_close(model(inputs), expected, rtol=0.01, atol=0.01)
    assert find_sparse_kernels()


@pytest.mark.parametrize(
    ("capability", "reason"),
    [
        ((7, 5), "the card has compute capability 7.5, not 8.x"),
        ((9, 0), "the card has compute capability 9.0, not 8.x"),
    ],
)
def test_the_kernels_of_cutlass_are_for_one_generation_of_cards(capability, reason, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    on_a_card = SimpleNamespace(device=torch.device("cuda"))
    assert find_sparse_kernels()[0].explain(on_a_card) == reason
