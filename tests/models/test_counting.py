"""Multiplications of layers of all kinds, counted as by hand."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from tests.reporting.reports import counted, lenet, row, shown, zero


def test_numbers_of_lenet_by_hand():
    net = lenet()
    zero(net[0].weight, 200_000)
    found = counted(net, torch.randn(1, 784))
    assert found.total.parameters == 266_200 + 410
    assert found.total.dense_macs == 784 * 300 + 300 * 100 + 100 * 10 == 266_200
    assert found.total.effective_macs == 266_200 - 200_000
    assert found.total.nonzeros == 66_200 + 410
    assert found.sparsity == pytest.approx(200_000 / 266_200)
    assert found.total.bytes == 4 * 266_610
    assert (row(found, "0").parameters, row(found, "0").nonzeros) == (235_500, 35_500)
    assert row(found, "0").effective_macs == 35_200


def test_multiplications_are_those_of_all_samples():
    assert counted(nn.Linear(5, 3), torch.randn(7, 5)).total.dense_macs == 7 * 15


def test_a_weight_of_a_convolution_counts_at_each_position():
    layer = nn.Conv2d(2, 4, 3, padding=1)  # keeps 8 x 8 positions
    zero(layer.weight, 10)
    found = counted(layer, torch.randn(1, 2, 8, 8))
    assert found.total.dense_macs == 64 * 72
    assert found.total.effective_macs == 64 * (72 - 10)


@pytest.mark.parametrize(
    ("layer", "positions", "weights"),
    [
        (nn.Conv2d(4, 8, 3, stride=2, groups=4), 9, 8 * 9),
        (nn.ConvTranspose2d(4, 6, 2, stride=2), 64, 4 * 6 * 4),  # at each input position
        (nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2), 64, 4 * 3 * 4),
        (nn.Conv1d(4, 6, 1), 8, 24),
        (nn.Conv3d(4, 6, 2), 7**3, 4 * 6 * 8),
    ],
)
def test_convolutions_of_all_kinds_by_hand(layer, positions, weights):
    shape = (1, 4) + (8,) * (layer.weight.ndim - 2)
    zero(layer.weight, 6)
    found = counted(layer, torch.randn(shape))
    assert layer.weight.numel() == weights
    assert found.total.dense_macs == positions * weights
    assert found.total.effective_macs == positions * (weights - 6)


@pytest.mark.parametrize(
    ("kind", "gates"), [(nn.RNN, 1), (nn.GRU, 3), (nn.LSTM, 4), (nn.LSTMCell, 4)]
)
def test_recurrent_layers_multiply_both_matrices_at_each_step(kind, gates):
    layer = kind(5, 6)
    cell = kind is nn.LSTMCell
    zero(layer.weight_hh if cell else layer.weight_hh_l0, 12)
    found = counted(layer, torch.randn(2, 5) if cell else torch.randn(7, 2, 5))
    uses = 2 if cell else 7 * 2
    assert found.total.dense_macs == uses * gates * 6 * (5 + 6)
    assert found.total.effective_macs == found.total.dense_macs - uses * 12


@pytest.mark.parametrize("need_weights", [True, False])
def test_attention_multiplies_projections_and_pairs_of_tokens(need_weights):
    layer = nn.MultiheadAttention(8, 2, batch_first=True)
    zero(layer.out_proj.weight, 16)
    tokens = torch.randn(3, 5, 8)
    example = {"query": tokens, "key": tokens, "value": tokens, "need_weights": need_weights}
    found = counted(layer, example)
    pairs = 2 * 3 * 5 * 5 * 8  # queries by keys, then their weights by values
    assert row(found, "").dense_macs == 3 * 5 * 3 * 8 * 8 + pairs
    assert row(found, "").effective_macs == row(found, "").dense_macs
    assert row(found, "out_proj").dense_macs == 3 * 5 * 64
    assert row(found, "out_proj").effective_macs == 3 * 5 * (64 - 16)


def test_a_layer_that_torch_fuses_is_counted_and_left_fused():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    found = counted(layer, torch.randn(1, 5, 8))
    weights = 4 * 64 + 2 * 8 * 16
    assert found.total.dense_macs == 5 * weights + 2 * 5 * 5 * 8
    assert torch.backends.mha.get_fastpath_enabled()


class Attention(nn.Module):
    def forward(self, tokens):
        return functional.scaled_dot_product_attention(tokens, tokens, tokens)


def test_what_multiplies_without_weights_has_a_row_and_no_zeros():
    net = nn.Sequential(nn.Linear(8, 8, bias=False), Attention())
    nn.init.zeros_(net[0].weight[1:])
    found = counted(net, torch.randn(1, 1, 5, 8))
    assert [layer.name for layer in found.layers] == ["0", "1"]
    assert row(found, "1").dense_macs == row(found, "1").effective_macs == 2 * 5 * 5 * 8
    assert row(found, "1").parameters == 0
    assert row(found, "0").effective_macs == 5 * 8


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(10, 4)
        self.head = nn.Linear(4, 10, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        return self.head(self.embedding(tokens))


def test_a_tied_weight_is_held_once():
    found = counted(Tied(), torch.tensor([[1, 2, 3]]))
    assert [layer.name for layer in found.layers] == ["embedding"]
    assert found.total.parameters == 40
    assert found.total.dense_macs == 3 * 40


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 6)

    def forward(self, values):
        return torch.einsum("bi,oi->bo", values, self.layer.weight.half().float())


def test_a_weight_is_found_where_it_was_cast_and_used_by_another_module():
    net = Functional()
    zero(net.layer.weight, 4)
    found = counted(net, torch.randn(1, 4))
    assert row(found, "layer").dense_macs == 24
    assert row(found, "layer").effective_macs == 20


def test_a_weight_is_found_behind_a_parametrization():
    net = nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 6)))
    zero(net[0].parametrizations.weight.original1, 3)
    found = counted(net, torch.randn(1, 4))
    assert [layer.name for layer in found.layers] == ["0"]
    assert (found.total.dense_macs, found.total.effective_macs) == (24, 21)
    assert found.total.parameters == 6 + 24 + 6


def test_under_autocast_and_compiled_the_counts_are_the_same():
    class Cast(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 6)

        def forward(self, values):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return self.layer(values)

    net = Cast()
    zero(net.layer.weight, 4)
    for module in (net, torch.compile(net, backend="eager")):
        found = counted(module, torch.randn(1, 4))
        assert row(found, "layer").effective_macs == 20
        assert found.total.parameters == 30


def test_unknown_multiplications_are_named_instead_of_counted_as_none():
    net = nn.Bilinear(3, 4, 5)
    found = counted(net, (torch.randn(2, 3), torch.randn(2, 4)))
    assert found.layers[0].unknown == ("aten._trilinear",)
    assert "multiplications of Bilinear are not known and not counted" in found.notes[0]
    assert "0 and more" in shown(found, 100)


def test_a_layer_that_the_example_does_not_reach_is_named():
    net = Functional()
    net.auxiliary = nn.Linear(3, 3)
    found = counted(net, torch.randn(1, 4))
    assert found.notes == ("not used with this example: auxiliary",)
    assert row(found, "auxiliary").parameters == 12
