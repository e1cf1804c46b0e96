import copy
import functools

import pytest
import torch
from torch import nn

from lightning_prune import adopt, shrink, shrunk_state
from tests.coupled_models import MODELS, example, plain
from tests.zero_channels import assert_same, outputs, size, zeroed


@pytest.mark.parametrize("name", ["attention", "gated", "norm groups", "torch attention"])
def test_a_fresh_instance_adopts_what_was_saved(name, tmp_path):
    module = shrink(zeroed(MODELS[name](), example()), example())
    torch.save(shrunk_state(module), tmp_path / "shrunk.pt")
    fresh = MODELS[name]()
    adopt(fresh, torch.load(tmp_path / "shrunk.pt", weights_only=True))
    assert torch.equal(outputs(fresh, example()), outputs(module, example()))
    assert fresh.state_dict().keys() == module.state_dict().keys()


def compiled(module):
    """Compile each child of a module."""
    for name, child in module.named_children():
        setattr(module, name, torch.compile(child, backend="eager"))
    return module


@pytest.mark.slow
@pytest.mark.parametrize("name", ["attention", "torch attention"])
@pytest.mark.parametrize("make", [lambda module: module, compiled], ids=["plain", "compiled"])
def test_a_module_with_compiled_parts_is_shrunk_and_adopted(name, make):
    module = zeroed(compiled(MODELS[name]()), example())
    smaller = shrink(module, example())
    assert size(smaller) == size(shrink(zeroed(MODELS[name](), example()), example()))
    fresh = make(MODELS[name]())
    adopt(fresh, shrunk_state(smaller))
    assert_same(module, fresh, example())
    assert torch.equal(outputs(fresh, example()), outputs(smaller, example()))


def test_a_plain_module_adopts_the_state_of_a_compiled_part():
    smaller = shrink(zeroed(compiled(plain()), example()), example())
    fresh = plain()
    adopt(fresh, shrunk_state(smaller))
    assert type(fresh[0]) is nn.Conv2d
    assert torch.equal(outputs(fresh, example()), outputs(smaller, example()))


def test_adopting_another_architecture_is_refused():
    with pytest.raises(
        ValueError, match=r"need the state of a module of the same class.*'0\.bias'"
    ):
        adopt(nn.Linear(2, 2), shrunk_state(plain()))


class Core(nn.Module):
    """Attention without weights; it has the number of heads, and `Heads` has the weights."""

    def __init__(self, heads):
        super().__init__()
        self.heads = heads

    def forward(self, x):
        queries, keys, values = x.view(*x.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(queries, keys, values)
        return mixed.transpose(1, 2).flatten(2)


class Heads(nn.Module):
    """The numbers beside the heads are equal to theirs by accident."""

    def __init__(self, **numbers):
        super().__init__()
        self.core, self.classes, self.warmup = Core(8), 8, 8
        vars(self).update(numbers)
        self.project, self.head = nn.Linear(16, 96), nn.Linear(32, 3)
        self.example_input_array = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))

    def forward(self, x):
        return self.head(self.core(self.project(x)))


@functools.cache
def shrink_heads():
    torch.manual_seed(0)
    module = Heads()
    return shrunk_state(shrink(zeroed(module, module.example_input_array)))


def shrunk_heads():
    """Return the state of a module with 4 of 8 heads left."""
    return copy.deepcopy(shrink_heads())


def test_a_state_has_only_the_numbers_that_removal_has_changed():
    assert shrunk_heads()["shrunk_attributes"] == {"core": {"heads": 4}}
    assert shrunk_state(Heads())["shrunk_attributes"] == {}


def test_what_the_constructor_sets_stays():
    fresh = Heads(classes=5, warmup=500)
    adopt(fresh, shrunk_heads())
    assert (fresh.core.heads, fresh.classes, fresh.warmup) == (4, 5, 500)


def test_a_module_that_has_adopted_is_saved_and_adopted_again():
    first, second = Heads(), Heads()
    adopt(first, shrunk_heads())
    adopt(second, shrunk_state(first))
    x = first.example_input_array
    assert torch.equal(outputs(first, x), outputs(second, x))


def test_numbers_of_two_removals_are_adopted():
    module = Heads()
    adopt(module, shrunk_heads())
    again = shrink(zeroed(module, module.example_input_array))
    fresh = Heads()
    adopt(fresh, shrunk_state(again))
    assert fresh.core.heads == 2
    assert_same(module, fresh, module.example_input_array)


class Fused(Heads):
    """It has the number of heads beside the weights."""

    def __init__(self, **numbers):
        super().__init__(**numbers)
        self.core, self.heads = nn.Identity(), 8

    def forward(self, x):
        return self.head(Core.forward(self, self.project(x)))


def test_only_numbers_of_0_1_0_that_shrink_as_a_weight_does_are_adopted():
    torch.manual_seed(0)
    module = Fused()
    smaller = shrink(zeroed(module, module.example_input_array))
    sizes = {"in_features": 16, "out_features": 48}
    numbers = {"": {"heads": 4, "classes": 8, "warmup": 8}, "project": sizes}
    fresh = Fused(classes=5, warmup=500)
    adopt(fresh, {"state_dict": smaller.state_dict(), "shrunk_attributes": numbers})
    assert (fresh.heads, fresh.classes, fresh.warmup) == (4, 5, 500)
    assert_same(module, fresh, module.example_input_array)


def put(key, name, value):
    return lambda state: state[key].__setitem__(name, value)


HOSTILE = {
    "an attribute that is no number": (
        put("shrunk_attributes", "", {"training": "/etc"}),
        r"need whole numbers, got 'training'='/etc'",
    ),
    "a method": (
        put("shrunk_attributes", "project", {"forward": torch.nn.functional.relu}),
        r"need whole numbers, got 'project\.forward'=",
    ),
    "a bool": (
        put("shrunk_attributes", "", {"classes": True}),
        r"need whole numbers, got 'classes'=True",
    ),
    "a new attribute": (
        put("shrunk_attributes", "core", {"other": 1}),
        r"need numbers that the module has, got 'core\.other'=1",
    ),
    "a size that the weights show": (
        put("shrunk_attributes", "project", {"in_features": 8}),
        r"need numbers that the module has, got 'project\.in_features'=8",
    ),
    "a larger number": (
        put("shrunk_attributes", "core", {"heads": 9}),
        r"need 1 <= 'core\.heads' <= 8, got 9",
    ),
    "a number of zero": (
        put("shrunk_attributes", "core", {"heads": 0}),
        r"need 1 <= 'core\.heads' <= 8, got 0",
    ),
    "another number of heads": (
        put("shrunk_attributes", "core", {"heads": 5}),
        r"need layers that fit together, got a forward that fails: RuntimeError",
    ),
    "an unknown part": (
        put("shrunk_attributes", "nothing", {"x": 1}),
        r"need numbers for parts of the module, got 'nothing'",
    ),
    "numbers without names": (
        put("shrunk_attributes", "core", [4]),
        r"need numbers for parts of the module, got 'core'",
    ),
    "a larger shape than memory has": (
        put("state_dict", "project.weight", torch.zeros(()).expand(2**38, 2**4)),
        r"need shapes of at most \(96, 16\) for 'project\.weight', got \(274877906944, 16\)",
    ),
    "another number of dimensions": (
        put("state_dict", "project.weight", torch.zeros(48)),
        r"need shapes of at most \(96, 16\) for 'project\.weight', got \(48,\)",
    ),
    "no channel at all": (
        put("state_dict", "project.weight", torch.zeros(0, 16)),
        r"need shapes of at most \(96, 16\) for 'project\.weight', got \(0, 16\)",
    ),
    "complex numbers": (
        put("state_dict", "project.weight", torch.zeros(48, 16, dtype=torch.complex64)),
        r"need torch\.float32 for 'project\.weight', got torch\.complex64",
    ),
    "a sparse tensor": (
        put("state_dict", "project.weight", torch.zeros(48, 16).to_sparse()),
        r"need plain tensors in a shrunk state, got another value for 'project\.weight'",
    ),
    "a number for a tensor": (
        put("state_dict", "project.weight", 1.0),
        r"need plain tensors in a shrunk state, got another value for 'project\.weight'",
    ),
    "a tensor without values": (
        put("state_dict", "project.weight", torch.zeros(48, 16, device="meta")),
        r"need weights that load into a Heads, got ",
    ),
    "a layer that does not fit together": (
        put("state_dict", "project.bias", torch.zeros(45)),
        r"need tensors that fit together in 'project', got shapes {'weight': \(48, 16\), ",
    ),
    "layers that do not fit together": (
        put("state_dict", "head.weight", torch.zeros(3, 12)),
        r"need layers that fit together, got a forward that fails: RuntimeError",
    ),
    "a weight too many": (
        put("state_dict", "more", torch.zeros(1)),
        r"need the state of a module of the same class, got one that differs in 'more'",
    ),
    "no numbers": (
        lambda state: state.pop("shrunk_attributes"),
        r"need the result of shrunk_state, got a state without 'shrunk_attributes'",
    ),
    "no weights": (
        lambda state: state.pop("state_dict"),
        r"need the result of shrunk_state, got a state without 'state_dict'",
    ),
    "a later version": (
        lambda state: state.update(shrunk_version=99),
        r"need a state of version 2 or less, got 99",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_state_changes_nothing(name):
    change, error = HOSTILE[name]
    state, fresh = shrunk_heads(), Heads()
    x, before = fresh.example_input_array, [fresh.core.heads, fresh.classes, repr(fresh)]
    expected = outputs(fresh, x)
    change(state)
    with pytest.raises(ValueError, match=error) as raised:
        adopt(fresh, state)
    assert "\n" not in str(raised.value)
    assert [fresh.core.heads, fresh.classes, repr(fresh)] == before
    assert not {"shrunk_numbers", "forward", "other"} & {*vars(fresh), *vars(fresh.core)}
    assert torch.equal(outputs(fresh, x), expected)


def test_numbers_are_not_adopted_without_smaller_weights():
    state = shrunk_state(Heads())
    state["shrunk_attributes"] = {"core": {"heads": 4}}
    with pytest.raises(ValueError, match="need smaller weights where numbers are smaller"):
        adopt(Heads(), state)


LAYERS = {
    "bias": (lambda: nn.Conv2d(4, 8, 3), {"bias": (6,)}),
    "kernel": (lambda: nn.Conv2d(4, 8, 3), {"weight": (8, 4, 1, 3)}),
    "grouped": (lambda: nn.Conv2d(8, 8, 3, groups=4), {"weight": (6, 2, 3, 3), "bias": (6,)}),
    "transposed": (lambda: nn.ConvTranspose2d(4, 8, 3), {"bias": (6,)}),
    "statistics": (lambda: nn.BatchNorm1d(8), {"weight": (6,), "bias": (6,)}),
    "bare statistics": (lambda: nn.BatchNorm1d(8, affine=False), {"running_mean": (6,)}),
    "norm groups": (lambda: nn.GroupNorm(4, 8), {"weight": (7,), "bias": (7,)}),
    "rows": (lambda: nn.Embedding(9, 4), {"weight": (8, 4)}),
    "heads": (
        lambda: nn.MultiheadAttention(8, 2),
        {"in_proj_weight": (15, 8), "in_proj_bias": (15,), "out_proj.weight": (8, 5)},
    ),
    "output of heads": (
        lambda: nn.MultiheadAttention(8, 2),
        {"in_proj_weight": (12, 8), "in_proj_bias": (12,)},
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_tensors_of_a_layer_must_fit_together_without_an_example(name):
    make, shapes = LAYERS[name]
    state, fresh = shrunk_state(nn.Sequential(make())), nn.Sequential(make())
    for tensor, shape in shapes.items():
        state["state_dict"][f"0.{tensor}"] = torch.zeros(shape)
    with pytest.raises(ValueError, match="need tensors that fit together in '0"):
        adopt(fresh, state)
    assert [t.shape for t in fresh.state_dict().values()] == [
        t.shape for t in nn.Sequential(make()).state_dict().values()
    ]


def test_a_shared_tensor_has_one_shape():
    def make():
        module = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
        module[1].weight = module[0].weight
        return module

    state = shrunk_state(make())
    state["state_dict"]["1.weight"] = torch.zeros(2, 4)
    with pytest.raises(ValueError, match=r"need one shape for a shared tensor, .* '1\.weight'"):
        adopt(make(), state)


def test_a_state_in_another_floating_point_precision_is_adopted():
    state = shrunk_heads()
    state["state_dict"] = {name: t.bfloat16() for name, t in state["state_dict"].items()}
    fresh = Heads()
    adopt(fresh, state)
    assert fresh.project.weight.dtype == torch.float32
    assert fresh.project.out_features == 48
