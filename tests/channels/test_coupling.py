import pytest
import torch
from torch import nn
from torch.nn import functional

from lightning_prune.channels.coupling import couple
from lightning_prune.channels.shrink import find_unremovable
from lightning_prune.channels.walk import RULES, merge_rules
from tests.channels.coupled_groups import Calling, channels_along, groups_of, places
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


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.cell = nn.Linear(3, 8), nn.LSTM(8, 4)

    def forward(self, images):
        return self.cell(self.first(images.flatten(2).transpose(1, 2)))[0].mean((1, 2))


class EinsumAttention(nn.Module):
    """Attention all of whose products are written in letters, between two linear layers."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3, 8), nn.Linear(8, 2)
        self.query, self.key, self.value = (nn.Parameter(torch.randn(8, 4, 2)) for _ in range(3))
        self.out = nn.Parameter(torch.randn(8, 4, 2))

    def forward(self, images):
        x = self.first(images.flatten(2).transpose(1, 2))
        queries, keys, values = (
            torch.einsum("bnc,chd->bhnd", x, weight)
            for weight in (self.query, self.key, self.value)
        )
        scores = torch.einsum("bhid,bhjd->bhij", queries, keys).softmax(-1)
        mixed = torch.einsum("bhij,bhjd->bhid", scores, values)
        return self.last(torch.einsum("bhnd,ohd->bno", mixed, self.out))


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
    columns = channels_along(groups_of(plain())["3.weight"], "7.weight")
    assert columns == [index // 16 for index in range(8 * 16)]


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
    columns = [channels_along(group, "head.weight") for group in (first, second)]
    assert columns[0] == [*range(8), *[-1] * 16]
    assert columns[1] == [*[-1] * 8, *range(8), *[-1] * 8]


def test_halves_of_a_chunk_lose_the_same_channels():
    group = groups_of(MODELS["chunked"]())["body.1.first.0.weight"]
    assert group.places[0].channel_of_index.tolist() == [*range(8), *range(8)]
    assert group.width == 1  # the inner convolution makes them one by one


@pytest.mark.parametrize("attention", [Attention, FusedAttention])
def test_attention_is_pruned_by_whole_heads(attention):
    groups = groups_of(Encoder(attention()))
    group = next(g for name, g in groups.items() if name.startswith("attention.q"))
    assert (group.size, group.why_dense) == (4, None)
    assert ("attention.out.weight", 1) in places(group)


def test_groups_of_a_convolution_lose_the_same_slots():
    groups = groups_of(MODELS["grouped"]())
    assert groups["body.0.0.weight"].places[0].channel_of_index.tolist() == [0, 1, 2, 3] * 4
    assert groups["body.1.0.weight"].places[0].channel_of_index.tolist() == [0, 1, 2, 3] * 4


def test_norm_groups_go_whole():
    group = groups_of(MODELS["norm groups"]())["body.0.weight"]
    assert group.places[0].channel_of_index.tolist() == [i // 4 for i in range(16)]


REASONS = {
    "width of a GroupNorm": lambda: normed(nn.GroupNorm(1, 16)),
    "width of a LayerNorm": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Flatten(), nn.LayerNorm(8 * 36), nn.Linear(8 * 36, 2)
    ),
    "width of an RMSNorm": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(192, 8), nn.RMSNorm(8), nn.Linear(8, 2)
    ),
    "softmax over channels": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Softmax2d(), nn.Conv2d(8, 8, 3)
    ),
    "mean over channels": lambda: Calling(lambda x: x - x.mean(1, keepdim=True)),
    "max over channels": lambda: Calling(lambda x: x / x.max(1, keepdim=True).values),
    "passes through cumsum": lambda: Calling(lambda x: x.cumsum(1)),
    "passes through fft_rfft": lambda: Calling(lambda x: torch.fft.rfft(x).real),
    "meets values without channels": lambda: Calling(
        lambda x: x * torch.arange(8.0).view(1, 8, 1, 1)
    ),
    "network output": lambda: nn.Conv2d(3, 8, 3),
    # a sigmoid is not 0 where the channel is pruned
    "sum over channels": lambda: Calling(lambda x: x + x.sigmoid().sum(1, keepdim=True)),
    "argmax over channels": lambda: Calling(lambda x: x + x.argmax(1, keepdim=True)),
    "std over channels": lambda: Calling(lambda x: x / x.std(1, keepdim=True)),
    "passes through max": lambda: Calling(lambda x: x + x.max(3, keepdim=True).indices),
    "is not finite if it is pruned": lambda: Calling(lambda x: x.abs().log()),
    # what is left would be picked, shifted or cut by the same number
    "is picked by number": lambda: Calling(lambda x: x + x[:, 6, None]),
    "passes through slice": lambda: Calling(lambda x: x[:, ::2].repeat(1, 2, 1, 1)),
    "passes through roll": lambda: Calling(lambda x: x.roll(1, 1)),
    "passes through chunk": lambda: Calling(lambda x: torch.cat(x.chunk(3, 1)[::-1], 1)),
    "passes through pad": lambda: Calling(
        lambda x: functional.pad(x, (0, 0, 0, 0, 2, 2), mode="circular")[:, 2:-2]
    ),
    "passes through matmul": lambda: Calling(lambda x: torch.arange(288.0).view(8, 6, 6) @ x),
    "passes through im2col": lambda: Calling(
        lambda x: functional.fold(functional.unfold(x, 3), (6, 6), 3)
    ),
    "passes through lstm": Recurrent,
    "all channels go together": lambda: Calling(
        lambda x: x.view(2, 16, 18).transpose(1, 2).reshape(2, 8, 6, 6)
    ),
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
        lambda x: functional.max_pool2d(x.sigmoid(), 3, 1, 1),
        lambda x: x.roll((1, 2), (2, 3)),
        lambda x: functional.normalize(x, dim=1),
        lambda x: torch.addcmul(x, x, x.sigmoid()),
        lambda x: torch.lerp(x, x.relu(), 0.3),
        lambda x: x.masked_fill(torch.eye(6).bool(), 0.0),
        lambda x: torch.baddbmm(*[x.flatten(0, 1)] * 3).view_as(x),
        lambda x: torch.einsum("bhij,bhjk->bhik", x.softmax(-1), x),
        lambda x: x + x.new_empty(2, 1, 1, 1).bernoulli_(0.5) * x,
    ],
)
def test_what_leaves_channels_apart_leaves_them_free(function):
    assert groups_of(Calling(function))["first.weight"].why_dense is None


@pytest.mark.parametrize("number", [0.0, 1.0])
def test_a_constant_whose_length_stands_in_the_code_is_found_by_a_trial(number):
    module = Calling(lambda x: x + torch.full((8, 1, 1), number))
    coupling = couple(module, example())
    assert coupling.groups[0].why_dense is None
    assert "forward fails" in find_unremovable(module, example(), coupling, [0])[0]
    free = Calling(lambda x: x + x.new_full(x.shape, number))
    coupling = couple(free, example())
    assert find_unremovable(free, example(), coupling, [0]) == {}


def test_all_that_a_transposed_depthwise_filter_makes_goes_with_its_channel():
    module = Headed(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ConvTranspose2d(8, 16, 3, groups=8)), 16)
    groups = groups_of(module)
    assert "body.1.weight" not in groups
    columns = channels_along(groups["body.0.weight"], "head.weight")
    assert columns == [index // 2 for index in range(16)]


def test_parts_of_a_slice_are_told_apart():
    module = Calling(lambda x: x + x[:, :4].sum(1, keepdim=True))
    groups = [g for g in couple(module, example()).groups if g.why_dense is None]
    assert [group.places[0].channel_of_index.tolist() for group in groups] == [
        [0, 1, 2, 3, *[-1] * 4],
        [*[-1] * 4, 0, 1, 2, 3],
    ]


def test_a_gate_of_one_channel_leaves_those_that_it_opens_apart():
    class Gate(nn.Conv2d):
        def forward(self, x):
            return x * super().forward(x).sigmoid()

    module = Headed(nn.Sequential(nn.Conv2d(3, 8, 3), Gate(8, 1, 1)), 8)
    groups = groups_of(module)
    assert (groups["body.0.weight"].size, groups["body.0.weight"].why_dense) == (8, None)
    assert groups["body.1.weight"].why_dense == "meets values without channels"


def test_attention_in_letters_is_pruned_by_whole_heads():
    groups = groups_of(EinsumAttention())
    assert (groups["first.weight"].size, groups["first.weight"].why_dense) == (8, None)
    heads = groups["query"]
    assert places(heads) == {("query", 1), ("key", 1), ("value", 1), ("out", 1)}
    assert (heads.size, heads.why_dense) == (4, None)


def test_residual_blocks_of_other_widths_are_joined_by_their_skip():
    module = Headed(nn.Sequential(convolution(3, 8), ResidualBlock(8, 16)), 16)
    group = groups_of(module)["body.1.second.0.weight"]
    assert group.producers == ("body.1.second.0.weight", "body.1.skip.weight")


def test_the_yolo_block_is_a_residual_stream():
    module = Headed(nn.Sequential(convolution(3, 16), ChunkedBlock(16)), 16)
    assert groups_of(module)["body.1.first.0.weight"].is_residual


def test_an_operation_with_two_rules_is_refused():
    with pytest.raises(ValueError, match=r"got two for \['linear'\]"):
        merge_rules(RULES, {"linear": RULES["conv1d"]})
