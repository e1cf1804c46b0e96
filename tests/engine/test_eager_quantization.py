"""Eager quantization-aware training of torch: pruned weights are zeros of the int8 layers."""

import copy

import pytest
import torch
from torch import nn

from lightning_prune import MagnitudeCriterion
from tests.engine.quantization_aware import RULES, start, train

eager = pytest.importorskip("torch.ao.quantization", reason="torch has no eager quantization")
pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated"),
    pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor, torch.quantize_per_channel"),
    pytest.mark.filterwarnings("ignore:Please use quant_min"),
]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.quant, self.dequant = eager.QuantStub(), eager.DeQuantStub()
        self.conv, self.bn, self.relu = nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.ReLU()
        self.out = nn.Linear(8, 32)

    def forward(self, x):
        x = self.relu(self.bn(self.conv(self.quant(x))))
        return self.dequant(self.out(x.mean((2, 3))))


def draw_images(generator):
    return torch.randn(16, 4, 5, 5, generator=generator)


@pytest.fixture
def engine(monkeypatch):
    """An engine of int8 kernels that this build of torch has."""
    engines = [each for each in torch.backends.quantized.supported_engines if each != "none"]
    if not engines:
        pytest.skip("needs a build of torch with int8 kernels")
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = engines[-1]
    yield engines[-1]
    torch.backends.quantized.engine = before


def prepare(model, engine, fuse):
    model.train()
    model.qconfig = eager.get_default_qat_qconfig(engine)
    if fuse:
        model = eager.fuse_modules_qat(model, [["conv", "bn", "relu"]])
    return eager.prepare_qat(model)


def check_int8(model, masks):
    """Check that the pruned weights are 0 in the int8 layers, where a zero is the number 0."""
    assert set(masks) == {"conv.weight", "out.weight"}
    for name, mask in masks.items():
        weight = model.get_submodule(name.removesuffix(".weight")).weight()
        assert not weight.int_repr()[~mask].any()
        assert not weight.q_per_channel_zero_points().any()
        assert (~mask).float().mean() == 0.75


@pytest.mark.parametrize("criterion", RULES, ids=lambda rule: type(rule).__name__)
@pytest.mark.parametrize("fuse", [False, True], ids=["alone", "fused"])
def test_zeros_of_eager_training_are_zeros_of_the_int8_layers(criterion, fuse, engine):
    torch.manual_seed(0)
    model = prepare(Net(), engine, fuse)
    before = copy.deepcopy(model.state_dict())
    optimizer, pruner = start(model, criterion)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    masks = train(model, optimizer, pruner, draw_images)
    check_int8(eager.convert(model.eval()), masks)


def test_a_model_that_was_pruned_before_keeps_its_zeros_in_eager_training(engine):
    torch.manual_seed(0)
    model = Net()
    masks = train(model, *start(model, MagnitudeCriterion()), draw_images)
    model = prepare(model, engine, fuse=True)
    kept = train(model, *start(model, None, keep_zeros=True), draw_images)
    assert all(torch.equal(kept[name], mask) for name, mask in masks.items())
    check_int8(eager.convert(model.eval()), masks)
