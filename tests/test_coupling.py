import pytest
import torch
from torch import nn
from torch.nn import functional

from lightning_prune._coupling import couple
from tests.coupled_models import (
    MODELS,
    Attention,
    ChunkedBlock,
    Encoder,
    FusedAttention,
    Headed,
    ResidualBlock,
    convolution,
    example,
    normed,
    plain,
)


def groups_of(module, batch=None):
    coupling = couple(module, example() if batch is None else batch)
    return {group.producers[0]: group for group in coupling.groups}


def places(group):
    return {(its.name, its.axis) for its in group.slices}


class Calling(nn.Module):
    """A convolution, then a function, then another."""

    def __init__(self, function):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
        self.function = function

    def forward(self, images):
        return self.second(self.function(self.first(images)))


def test_a_channel_goes_with_its_bias_its_norm_and_the_columns_that_read_it():
    groups = groups_of(plain())
    assert places(groups["0.weight"]) == {("0.weight", 0), ("0.bias", 0), ("3.weight", 1)}
    assert places(groups["3.weight"]) == {
        ("3.weight", 0),
        ("3.bias", 0),
        ("4.weight", 0),
        ("4.bias", 0),
        ("4.running_mean", 0),
        ("4.running_var", 0),
        ("7.weight", 1),
    }


def test_a_flattened_channel_is_several_columns():
    columns = {its.name: its for its in groups_of(plain())["3.weight"].slices}["7.weight"]
    assert columns.channel.tolist() == [index // 16 for index in range(8 * 16)]


def test_what_is_added_goes_together_and_is_called_residual():
    groups = groups_of(MODELS["residual"]())
    stream = groups["body.0.0.weight"]
    assert stream.producers == ("body.0.0.weight", "body.1.second.0.weight")
    assert stream.is_residual
    assert not groups["body.1.first.0.weight"].is_residual


def test_depthwise_filters_go_with_their_channel():
    groups = groups_of(MODELS["gated"]())
    hidden = groups["body.1.expand.0.weight"]
    assert hidden.producers[1:] == ("body.1.depthwise.0.weight", "body.1.excite.weight")
    assert not hidden.is_residual


def test_concatenated_channels_stay_apart():
    groups = groups_of(MODELS["dense"]())
    first, second = groups["body.0.weight"], groups["body.1.layers.0.2.weight"]
    columns = [
        next(its.channel.tolist() for its in group.slices if its.name == "head.weight")
        for group in (first, second)
    ]
    assert columns[0] == [*range(8), *[-1] * 16]
    assert columns[1] == [*[-1] * 8, *range(8), *[-1] * 8]


def test_halves_of_a_chunk_lose_the_same_channels():
    group = groups_of(MODELS["chunked"]())["body.1.first.0.weight"]
    assert group.slices[0].channel.tolist() == [*range(8), *range(8)]
    assert group.width == 1  # the inner convolution makes them one by one


@pytest.mark.parametrize("attention", [Attention, FusedAttention])
def test_attention_is_pruned_by_whole_heads(attention):
    groups = groups_of(Encoder(attention()))
    group = next(g for name, g in groups.items() if name.startswith("attention.q"))
    assert (group.channels, group.why_dense) == (4, None)
    assert ("attention.out.weight", 1) in places(group)


def test_groups_of_a_convolution_lose_the_same_slots():
    groups = groups_of(MODELS["grouped"]())
    assert groups["body.0.0.weight"].slices[0].channel.tolist() == [0, 1, 2, 3] * 4
    assert groups["body.1.0.weight"].slices[0].channel.tolist() == [0, 1, 2, 3] * 4


def test_norm_groups_go_whole():
    group = groups_of(MODELS["norm groups"]())["body.0.weight"]
    assert group.slices[0].channel.tolist() == [i // 4 for i in range(16)]


REASONS = {
    "width of a GroupNorm": lambda: normed(nn.GroupNorm(1, 16)),
    "width of a LayerNorm": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Flatten(), nn.LayerNorm(8 * 36), nn.Linear(8 * 36, 2)
    ),
    "width of an RMSNorm": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(192, 8), nn.RMSNorm(8), nn.Linear(8, 2)
    ),
    "softmax over its channels": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Softmax2d(), nn.Conv2d(8, 8, 3)
    ),
    "mean over its channels": lambda: Calling(lambda x: x - x.mean(1, keepdim=True)),
    "max over its channels": lambda: Calling(lambda x: x / x.max(1, keepdim=True).values),
    "passes through cumsum": lambda: Calling(lambda x: x.cumsum(1)),
    "passes through fft_rfft": lambda: Calling(lambda x: torch.fft.rfft(x).real),
    "meets values that are no channels": lambda: Calling(
        lambda x: x * torch.arange(8.0).view(1, 8, 1, 1)
    ),
    "network output": lambda: nn.Conv2d(3, 8, 3),
}


@pytest.mark.parametrize("reason", REASONS)
def test_what_is_not_exact_is_dense_for_a_reason(reason):
    assert next(iter(groups_of(REASONS[reason]()).values())).why_dense == reason


@pytest.mark.parametrize(
    "function",
    [
        functional.relu,
        functional.gelu,
        torch.sigmoid,
        lambda x: x.sum(1, keepdim=True) + x,
        lambda x: functional.pad(x, (1, 1, 1, 1), mode="reflect"),
        lambda x: functional.avg_pool2d(x, 2),
        lambda x: functional.interpolate(x, scale_factor=2),
        lambda x: x.flip(1),
        lambda x: functional.dropout(x, 0.5) * torch.rand(1),
        lambda x: torch.where(x > 0, x, 0.1 * x),
    ],
)
def test_what_leaves_channels_apart_leaves_them_free(function):
    assert groups_of(Calling(function))["first.weight"].why_dense is None


def test_what_is_written_in_place_goes_on_with_the_result():
    def in_place(x):
        x.relu_()
        x += 1.0
        return x

    assert groups_of(Calling(in_place))["first.weight"].why_dense is None


def test_what_is_written_through_a_view_stays_dense():
    def through_a_view(x):
        x[:, :4] *= 2.0
        return x

    reason = groups_of(Calling(through_a_view))["first.weight"].why_dense
    assert reason == "written into through a view"


def test_weights_that_are_computed_stay_dense():
    class Standardised(nn.Conv2d):
        def forward(self, x):
            return functional.conv2d(x, self.weight - self.weight.mean(), self.bias)

    groups = groups_of(Headed(nn.Sequential(nn.Conv2d(3, 8, 3), Standardised(8, 8, 3)), 8))
    assert groups["body.0.weight"].why_dense == "passes through conv2d"


def test_tied_layers_share_their_channels():
    shared = nn.Conv2d(8, 8, 3, padding=1)
    module = Headed(nn.Sequential(nn.Conv2d(3, 8, 3), shared, nn.ReLU(), shared), 8)
    group = groups_of(module)["body.0.weight"]
    assert group.producers == ("body.0.weight", "body.1.weight")


def test_tracing_leaves_everything_as_it_is():
    module = MODELS["residual"]().train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    modes = [child.training for child in module.modules()]
    state = torch.get_rng_state()
    couple(module, example())
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert [child.training for child in module.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)


def test_a_batch_of_one_can_be_traced():
    module = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    assert groups_of(module, example()[:1])["1.weight"].why_dense is None


def test_named_and_several_arguments_are_passed():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(5, 8), nn.Linear(8, 2)

        def forward(self, x, *, y):
            return self.c(self.a(x) + self.b(y))

    batch = {"x": torch.randn(2, 4), "y": torch.randn(2, 5)}
    assert groups_of(Two(), batch)["a.weight"].producers == ("a.weight", "b.weight")


def test_what_depends_on_values_is_refused_with_a_remedy():
    with pytest.raises(ValueError, match=r"need a forward that torch\.export can trace.*example"):
        couple(Calling(lambda x: x if x.sum() > 0 else -x), example())


def test_a_wrong_example_is_refused_with_a_remedy():
    with pytest.raises(ValueError, match=r"give an example that forward takes"):
        couple(plain(), torch.randn(2, 7))


def test_residual_blocks_of_other_widths_are_joined_by_their_skip():
    module = Headed(nn.Sequential(convolution(3, 8), ResidualBlock(8, 16)), 16)
    group = groups_of(module)["body.1.second.0.weight"]
    assert group.producers == ("body.1.second.0.weight", "body.1.skip.weight")


def test_the_yolo_block_is_a_residual_stream():
    module = Headed(nn.Sequential(convolution(3, 16), ChunkedBlock(16)), 16)
    assert groups_of(module)["body.1.first.0.weight"].is_residual
