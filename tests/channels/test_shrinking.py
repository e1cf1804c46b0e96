import copy

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.nn import functional

from benchmarks.architectures import ARCHITECTURES
from lightning_prune import adopt, shrink, shrunk_state
from lightning_prune.channels.attention import SlimMultiheadAttention
from lightning_prune.channels.coupling import couple
from lightning_prune.channels.shrink import find_unremovable
from lightning_prune.models.names import named_parameters
from tests.coupled_models import MODELS, Headed, convolution, example, plain
from tests.zero_channels import assert_same, outputs, size, zeroed


@pytest.mark.parametrize("name", MODELS)
def test_half_of_the_channels_can_be_removed(name):
    torch.manual_seed(0)
    module = zeroed(MODELS[name](), example())
    smaller = shrink(module, example())
    assert type(smaller) is type(module)
    nonzero = sum(int(parameter.count_nonzero()) for parameter in module.parameters())
    assert nonzero <= size(smaller) < 0.8 * size(module)
    assert_same(module, smaller, torch.randn(4, 3, 8, 8))


@pytest.mark.rare
@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_half_of_the_channels_of_a_well_known_network_can_be_removed(name):
    torch.manual_seed(0)
    make, inputs = ARCHITECTURES[name]
    generator = torch.Generator().manual_seed(0)
    module = zeroed(make(0.125), inputs(1, generator))
    smaller = shrink(module, inputs(1, generator))
    assert size(smaller) < 0.8 * size(module)
    assert_same(module, smaller, inputs(4, generator))


def test_zeros_are_the_parameters_that_removal_takes_away():
    module = plain()
    nn.init.ones_(module[4].bias)
    zeroed(module, example())
    zeros = sum(int((parameter == 0).sum()) for parameter in module.parameters())
    assert size(module) - size(shrink(module, example())) == zeros


def test_the_module_is_left_as_it_is():
    module = zeroed(MODELS["gated"](), example()).train()
    before = copy.deepcopy(module.state_dict())
    state = torch.get_rng_state()
    shrink(module, example())
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(child.training for child in module.modules())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in module.parameters())


def test_a_channel_that_is_read_elsewhere_stays():
    module = zeroed(plain(), example())
    with torch.no_grad():
        module[3].weight[0, 1, 0, 0] = 1.0
    assert shrink(module, example())[0].out_channels == 5
    assert shrink(zeroed(plain(), example()), example())[0].out_channels == 4


def test_a_layer_of_zeros_keeps_one_channel():
    module = plain()
    with torch.no_grad():
        for tensor in (module[0].weight, module[0].bias, module[3].weight):
            tensor.zero_()
    smaller = shrink(module, example())
    assert smaller[0].out_channels == 1
    assert_same(module, smaller, example())


def test_a_shrunk_module_trains_on_and_shrinks_again():
    module = shrink(zeroed(MODELS["residual"](), example()), example())
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    module.train()(example()).square().sum().backward()
    optimizer.step()
    again = shrink(zeroed(module, example()), example())
    assert size(again) < size(module)
    assert_same(module, again, example())


def test_a_shrunk_module_compiles():
    module = shrink(zeroed(plain(), example()), example())
    compiled = torch.compile(copy.deepcopy(module), backend="eager")
    assert torch.equal(outputs(compiled, example()), outputs(module, example()))


def test_a_shrunk_module_is_saved_by_torch_export(tmp_path):
    module = shrink(zeroed(plain(), example()), example()).eval()
    torch.export.save(torch.export.export(module, (example(),)), tmp_path / "shrunk.pt2")
    loaded = torch.export.load(tmp_path / "shrunk.pt2").module()
    assert torch.allclose(loaded(example()), outputs(module, example()))


class CountsOnWidth(nn.Module):
    """Its code has the width of a layer as a number."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Linear(8 * 36, 2)
        self.free = nn.Conv2d(3, 3, 1)

    def forward(self, images):
        return self.second(self.first(self.free(images)).view(-1, 288))


def test_what_the_code_counts_on_is_found_before_and_named_after():
    module = CountsOnWidth()
    coupling = couple(module, example())
    found = find_unremovable(module, example(), coupling, range(2))
    names = [coupling.groups[index].producers[0] for index in found]
    assert names == ["first.weight"]
    assert "forward fails without it" in next(iter(found.values()))
    with pytest.warns(UserWarning, match=r"'first\.weight' \(forward fails without it"):
        smaller = shrink(zeroed(module, example()), example())
    assert list(smaller.zero_channels_left) == ["first.weight"]


class Mean(Headed):
    """It divides by a number of channels that is written out."""

    def forward(self, images):
        x = self.body(images).mean((2, 3))
        return self.head(x) * (8 / x.shape[1])


def test_what_can_be_removed_is_and_the_rest_is_named():
    body = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3))
    module = zeroed(Mean(body, 8), example())
    with pytest.warns(UserWarning, match=r"zero channels stay.*'body\.2\.weight' \(outputs differ"):
        smaller = shrink(module, example())
    assert (smaller.body[0].out_channels, smaller.body[2].out_channels) == (3, 8)
    assert list(smaller.zero_channels_left) == ["body.2.weight"]
    assert_same(module, smaller, torch.randn(4, 3, 8, 8))


def test_a_mode_in_which_the_module_cannot_be_called_is_left_out():
    class OnlyDeployed(nn.Sequential):
        def forward(self, images):
            outputs = super().forward(images)
            if self.training:
                raise RuntimeError("no forward in training")
            return outputs

    module = zeroed(OnlyDeployed(*plain()), example())
    assert shrink(module, example())[0].out_channels == 4


def test_code_for_single_precision_is_compared_in_it():
    class Cast(nn.Sequential):
        def forward(self, images):
            return self[1](self[0](images).float())

    module = zeroed(Cast(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 2, 3)), example())
    assert shrink(module, example())[0].out_channels == 4


def test_a_mask_of_a_single_row_stays_beside_a_larger_batch():
    class Masked(nn.Sequential):
        def forward(self, x, mask):
            return super().forward(x) * mask

    batch = torch.randn(4, 6), torch.ones(1, 3)
    module = zeroed(Masked(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), batch)
    assert shrink(module, batch)[0].out_features == 4


def test_without_an_example_the_error_says_what_to_set():
    with pytest.raises(ValueError, match=r"set self\.example_input_array.* of Sequential"):
        shrink(plain())


def test_the_modules_own_example_is_taken():
    module = zeroed(plain(), example())
    module.example_input_array = example()
    assert shrink(module)[0].out_channels == 4


BLOCKS = {
    "conv": lambda: convolution(8, 8),
    "depthwise": lambda: nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Sigmoid()),
    "grouped": lambda: nn.Conv2d(8, 8, 1, groups=2),
    "transposed": lambda: nn.ConvTranspose2d(8, 8, 3, padding=1, groups=2),
    "norm": lambda: nn.GroupNorm(4, 8),
    "instance": lambda: nn.InstanceNorm2d(8, affine=True),
    "prelu": lambda: nn.PReLU(8),
    "pool": lambda: nn.MaxPool2d(3, 1, 1),
    "shuffle": lambda: nn.ChannelShuffle(4),
    "glu": lambda: nn.Sequential(nn.Conv2d(8, 16, 1), nn.GLU(1)),
    "softmax": lambda: nn.Softmax(2),
    "pixels": lambda: nn.Sequential(nn.Conv2d(8, 32, 1), nn.PixelShuffle(2), nn.AvgPool2d(2)),
}


class Woven(nn.Module):
    """Blocks of eight channels, each of which reads one of the results before it.

    Each block hangs under two names, and is called once or twice.
    """

    def __init__(self, steps):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(16, 2, 1)
        self.blocks = nn.ModuleList(BLOCKS[block]() for block, _, _ in steps)
        self.again = nn.ModuleDict({f"block{i}": each for i, each in enumerate(self.blocks)})
        self.steps = steps

    def forward(self, images):
        results = [self.stem(images)]
        calls = zip(self.again.values(), self.steps, strict=True)
        for module, (_, source, combination) in calls:
            x = results[source % len(results)]
            y = module(x)
            if combination == "add":
                y = x + y
            elif combination == "gate":
                y = x * torch.sigmoid(y)
            elif combination == "twice":
                y = module(y)
            elif combination == "cross":
                y = torch.cat([y[:, 4:], x[:, :4]], 1)
            results.append(y)
        return self.head(functional.relu(torch.cat(results[-2:], 1)))


STEPS = st.lists(
    st.tuples(
        st.sampled_from(sorted(BLOCKS)),
        st.integers(0, 3),
        st.sampled_from(["none", "add", "gate", "cross", "twice"]),
    ),
    min_size=2,
    max_size=4,
)


@pytest.mark.slow
@given(steps=STEPS, is_hidden=st.booleans())
@settings(max_examples=8, deadline=None)
def test_whatever_is_found_free_in_random_networks_is_exact(steps, is_hidden):
    torch.manual_seed(0)
    module, batch = Woven(steps), torch.randn(2, 3, 4, 4)
    coupling = couple(module, batch)
    free = [i for i, group in enumerate(coupling.groups) if group.why_dense is None]
    weight = module.head.weight.detach().clone()
    if is_hidden:
        nn.init.zeros_(module.head.weight)
    refused = find_unremovable(module, batch, coupling, free)
    tensors = named_parameters(module)
    with torch.no_grad():
        module.head.weight.copy_(weight)
        for index in set(free) - set(refused):
            for place in coupling.groups[index].places:
                if place.name in tensors:
                    tensors[place.name].movedim(place.axis, 0)[place.channel_of_index == 0] = 0.0
    smaller = shrink(module, batch)
    assert_same(module, smaller, torch.randn(3, 3, 4, 4))
    fresh = Woven(steps)
    adopt(fresh, shrunk_state(smaller))
    assert torch.equal(outputs(fresh, batch), outputs(smaller, batch))
    assert all(fresh.again[f"block{i}"] is each for i, each in enumerate(fresh.blocks))


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("masked", ["", "attention", "padding", "both", "heads"])
@pytest.mark.parametrize("need_weights", [True, False])
def test_slim_attention_is_torchs_attention(batch_first, masked, need_weights):
    torch.manual_seed(0)
    original = nn.MultiheadAttention(8, 2, batch_first=batch_first).eval()
    slim = SlimMultiheadAttention(original, head_size=4)
    x = torch.randn(3, 5, 8) if batch_first else torch.randn(5, 3, 8)
    mask = torch.ones(5, 5, dtype=torch.bool).triu(1)
    padding = torch.zeros(3, 5, dtype=torch.bool)
    padding[1, 3:] = True
    arguments = {
        "attn_mask": {"attention": mask, "both": mask, "heads": mask.expand(6, 5, 5)}.get(masked),
        "key_padding_mask": padding if masked in ("padding", "both") else None,
        "need_weights": need_weights,
    }
    expected, found = original(x, x, x, **arguments), slim(x, x, x, **arguments)
    torch.testing.assert_close(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1])


def test_slim_attention_takes_what_has_no_batch():
    torch.manual_seed(0)
    original = nn.MultiheadAttention(8, 2).eval()
    slim, x = SlimMultiheadAttention(original, head_size=4), torch.randn(5, 8)
    torch.testing.assert_close(slim(x, x, x), original(x, x, x))
