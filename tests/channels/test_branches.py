"""Residual branches are found in a trace, and left out with the same outputs."""

import copy

import pytest
import torch
from torch import nn

from lightning_prune import BranchPattern, adopt, export_onnx, shrink, shrunk_state
from tests.engine.branches import BasicBlock, ResNet, Transformer, batch, prune, start

NETWORKS = {
    "ResNet": ResNet,
    "pre-norm": Transformer,
    "post-norm": lambda: Transformer(normalized_first=False),
    "scaled": lambda: Transformer(scaled=True),
    "torch, pre-norm": lambda: Torch(norm_first=True),
    "torch, post-norm": lambda: Torch(norm_first=False),
}


class Torch(nn.Module):
    """The encoder of torch, which has a path of fused kernels in evaluation mode."""

    example_input_array = torch.zeros(2, 5, 8)

    def __init__(self, *, norm_first):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=norm_first)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x):
        return self.encoder(x)


@pytest.mark.parametrize("sparsity", [0.5, 1.0])
@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_a_branch_is_left_out_with_the_same_outputs(make, sparsity):
    model = make()
    pruner = prune(model, sparsity=sparsity)
    assert pruner.sparsity == sparsity
    smaller = shrink(model)
    assert smaller.zero_channels_left == {}
    weights = sum(int(p.count_nonzero()) for p in model.parameters())
    assert sum(p.numel() for p in smaller.parameters()) == weights
    for each in (model, smaller):
        each.eval()
    x = batch(model)
    for grad in (True, False):  # without gradients torch takes fused kernels
        with torch.set_grad_enabled(grad):
            torch.testing.assert_close(smaller(x), model(x), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(copy.deepcopy(smaller)(x), model(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_a_new_module_adopts_the_state_without_the_branches(make):
    model = make()
    prune(model, sparsity=0.5)
    smaller, fresh = shrink(model), make()
    adopt(fresh, shrunk_state(smaller))
    x = batch(model)
    assert torch.equal(fresh.eval()(x), smaller.eval()(x))
    assert fresh.state_dict().keys() == smaller.state_dict().keys()


@pytest.mark.parametrize("state", [{"stem.0": "zeros"}, {"blocks.0": 3}, {"blocks.0": "ones"}])
def test_a_state_that_leaves_out_other_modules_is_refused(state):
    fresh = ResNet()
    before = list(fresh.state_dict())
    with pytest.raises(ValueError, match=r"need modules to leave out|need outputs of an absent"):
        adopt(fresh, {**shrunk_state(ResNet()), "shrunk_modules": state})
    assert list(fresh.state_dict()) == before


def test_the_file_has_no_layer_of_a_branch_that_was_left_out(tmp_path):
    onnx = pytest.importorskip("onnx")
    model = ResNet()
    prune(model, sparsity=1.0)
    path = tmp_path / "smaller.onnx"
    export_onnx(shrink(model), path)
    layers = [node.op_type for node in onnx.load(path).graph.node]
    assert layers.count("Conv") == 1 + 3  # the stem, and the block that changes the shape


class Chain(nn.Module):
    """A stream with what the argument adds to it."""

    example_input_array = torch.zeros(2, 4)

    def __init__(self, layer):
        super().__init__()
        self.first, self.layer, self.last = nn.Linear(4, 4), layer, nn.Linear(4, 4)

    def forward(self, x):
        x = self.first(x)
        return self.last(x + self.layer(x))


class Shared(nn.Module):
    """One layer, which adds twice."""

    example_input_array = torch.zeros(2, 4)

    def __init__(self):
        super().__init__()
        self.layer, self.last = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        x = x + self.layer(x)
        return self.last(x + self.layer(x))


class Inline(nn.Module):
    """A branch with a product in the code of the block."""

    example_input_array = torch.zeros(2, 4)

    def __init__(self):
        super().__init__()
        self.layer, self.last = nn.Linear(4, 4), nn.Linear(4, 4)
        self.matrix = nn.Parameter(torch.randn(4, 4))

    def forward(self, x):
        return self.last(x + self.layer(x) @ self.matrix)


class Apart(nn.Module):
    """Two inputs are added, each through a layer: neither is a stream."""

    example_input_array = (torch.zeros(2, 4), torch.zeros(2, 4))

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x, y):
        return self.left(x) + self.right(y)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Chain(nn.Sequential(nn.Linear(4, 4), nn.Sigmoid())), "the outputs differ without it"),
        (Shared(), "in no residual branch"),
        (Inline(), "computes a product of the branch in its own code"),
        (Apart(), "in no residual branch"),
        (nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), "in no residual branch"),
    ],
    ids=["not zero", "shared", "inline", "apart", "plain"],
)
def test_what_cannot_be_left_out_stays_dense_by_name(model, reason):
    example = getattr(model, "example_input_array", torch.zeros(2, 4))
    model.example_input_array = example
    with pytest.raises(
        ValueError, match=f"need at least one prunable weight, got none: .*{reason}"
    ):
        start(model, sparsity=0.5)


class Casting(nn.Module):
    """A normalization in single precision, as large language models have, before a layer."""

    example_input_array = torch.zeros(2, 4)

    def __init__(self):
        super().__init__()
        self.norm, self.layer, self.last = RootMeanSquare(), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.last(x + self.layer(self.norm(x)))


class RootMeanSquare(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, x):
        x = x.to(torch.float32)
        return self.weight * (x * x.square().mean(-1, keepdim=True).add(1e-6).rsqrt())


def test_a_normalization_that_casts_is_left_out_with_the_branch():
    model = Casting()
    prune(model, sparsity=1.0)
    assert set(shrink(model).state_dict()) == {"last.weight", "last.bias"}


class Mixture(nn.Module):
    """Experts in a list, each with a gate, which are added one by one."""

    example_input_array = torch.zeros(2, 4)

    def __init__(self):
        super().__init__()
        self.gate, self.last = nn.Linear(4, 3), nn.Linear(4, 4)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4)) for _ in range(3)
        )

    def forward(self, x):
        gates = self.gate(x).softmax(-1)
        for number, expert in enumerate(self.experts):
            x = x + gates[:, number : number + 1] * expert(x)
        return self.last(x)


def test_an_expert_of_a_list_is_left_out_beside_its_router():
    model = Mixture()
    pruner = prune(model, sparsity=2 / 3)
    assert [(group.total, group.kept) for group in pruner.groups] == [(3, 1)]
    smaller, x = shrink(model), torch.randn(2, 4)
    torch.testing.assert_close(smaller(x), model(x))
    left = sum(isinstance(expert, nn.Sequential) for expert in smaller.experts)
    assert left == 1
    assert smaller.gate.out_features == 3


def test_the_innermost_of_nested_branches_is_the_branch():
    inner = Chain(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)))
    _, pruner = start(Chain(inner), sparsity=1.0)
    names = {tensor.name for tensor in pruner.tensors}
    assert names == {f"layer.layer.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")}


def test_a_block_that_changes_the_shape_stays_dense():
    _, pruner = start(ResNet(), sparsity=0.5)
    assert [(group.name, group.total) for group in pruner.groups] == [
        ("blocks.0.conv1.weight", 3),
        ("blocks.4.conv1.weight", 1),
    ]
    assert pruner.dense["blocks.3.conv1.weight"].startswith("in no residual branch")


def test_a_branch_that_is_not_zero_stays_in_a_shrunk_module():
    model = nn.Sequential(BasicBlock(8, 8))
    with torch.no_grad():
        model[0].conv1.weight.zero_()
    example = torch.randn(2, 8, 4, 4)
    smaller = shrink(model, example)
    assert isinstance(smaller[0].conv2, nn.Conv2d)
    torch.testing.assert_close(smaller(example), model(example))


def test_branches_need_a_model_that_can_be_traced():
    class Untraceable(nn.Module):
        example_input_array = torch.zeros(2, 4)

        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            return x + self.layer(x) if float(x.sum()) > 0 else x

    with pytest.raises(
        ValueError, match=r"need a forward that torch\.export can trace, to find resi"
    ):
        start(Untraceable(), pattern=BranchPattern())
