"""Whole heads go in each form of attention, with all that is stored for a head."""

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from lightning_prune import ChannelPattern, OneShotSchedule, Pruner, adopt, shrink, shrunk_state
from lightning_prune.channels.coupling import couple
from lightning_prune.models.names import named_parameters
from tests.coupled_models import MODELS, example

LENGTH, HEADS, SIZE = 6, 4, 4
X = torch.randn(2, LENGTH, 16, generator=torch.Generator().manual_seed(1))


class Table(nn.Module):
    """Biases by relative position, as a table of a row for each distance (Swin, BEiT)."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(2 * LENGTH - 1, HEADS))
        positions = torch.arange(LENGTH, device="cpu")
        offsets = positions[:, None] - positions
        self.register_buffer("index", offsets + LENGTH - 1)

    def forward(self):
        return self.table[self.index].permute(2, 0, 1)


class Words(nn.Module):
    """The same as an embedding (T5)."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(2 * LENGTH - 1, HEADS)

    def forward(self):
        positions = torch.arange(LENGTH, device="cpu")
        return self.table(positions[:, None] - positions + LENGTH - 1).permute(2, 0, 1).unsqueeze(0)


class Net(nn.Module):
    """The same out of a small network on coordinates (Swin V2)."""

    def __init__(self):
        super().__init__()
        self.table = nn.Sequential(nn.Linear(1, 8), nn.ReLU(), nn.Linear(8, HEADS, bias=False))
        positions = torch.arange(LENGTH, device="cpu")
        offsets = positions[:, None] - positions
        self.register_buffer("offsets", offsets.float().unsqueeze(-1))

    def forward(self):
        return 16 * self.table(self.offsets).permute(2, 0, 1).sigmoid()


class Biased(nn.Module):
    def __init__(self, bias, is_fused):
        super().__init__()
        self.heads, self.is_fused = HEADS, is_fused
        self.qkv, self.out = nn.Linear(16, 3 * HEADS * SIZE), nn.Linear(HEADS * SIZE, 3)
        self.bias = bias()

    def forward(self, x):
        batch, length, _ = x.shape
        parts = self.qkv(x).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        queries, keys, values = parts
        if self.is_fused:
            mask = self.bias().expand(batch, -1, -1, -1)
            mixed = scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        else:
            mixed = (queries @ keys.transpose(-2, -1) + self.bias()).softmax(-1) @ values
        return self.out(mixed.transpose(1, 2).flatten(2))


class Grouped(nn.Module):
    """Two heads of queries read each head of keys and values."""

    def __init__(self):
        super().__init__()
        self.queries, self.keys, self.values = (
            nn.Linear(16, 32),
            nn.Linear(16, 16),
            nn.Linear(16, 16),
        )
        self.out = nn.Linear(32, 3)

    def forward(self, x):
        def cut(y):
            return y.view(*y.shape[:2], -1, SIZE).transpose(1, 2)

        queries, keys, values = cut(self.queries(x)), cut(self.keys(x)), cut(self.values(x))
        mixed = scaled_dot_product_attention(queries, keys, values, enable_gqa=True)
        return self.out(mixed.transpose(1, 2).flatten(2))


def prune(module):
    """Prune half of all heads, and return the groups by name."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.01)
    pattern = ChannelPattern(round_to=1, scope="inner")
    pruner = Pruner(sparsity=0.5, pattern=pattern, schedule=OneShotSchedule(end=0))
    pruner.attach(module, optimizer, steps=2, example=X)
    for _ in range(2):
        optimizer.zero_grad()
        module(X).square().mean().backward()
        pruner.before_step(optimizer)
        optimizer.step()
    pruner.detach()
    return {group.name: group for group in pruner.groups}


def outputs(module):
    with torch.no_grad():
        return module.eval()(X)


def shrink_and_adopt(module, fresh):
    """Return the module without zero channels, after checks that nothing else has changed."""
    smaller = shrink(module, X)
    torch.testing.assert_close(outputs(smaller), outputs(module), atol=1e-5, rtol=1e-5)
    adopt(fresh, shrunk_state(smaller))
    assert torch.equal(outputs(fresh), outputs(smaller))
    return smaller


@pytest.mark.parametrize("is_fused", [True, False])
@pytest.mark.parametrize("bias", [Table, Words, Net])
def test_a_head_goes_with_the_biases_of_positions_that_it_alone_reads(bias, is_fused):
    module = Biased(bias, is_fused)
    group = prune(module)["qkv.weight"]
    assert (group.size, group.kept) == (HEADS, HEADS // 2)
    smaller = shrink_and_adopt(module, Biased(bias, is_fused))
    assert smaller.qkv.out_features == 3 * 2 * SIZE
    assert smaller.heads == 2
    tables = [tensor for name, tensor in smaller.bias.named_parameters() if "table" in name]
    assert 2 in tables[-1].shape


def test_a_head_of_keys_and_values_goes_with_all_heads_that_read_it():
    module = Grouped()
    group = prune(module)["queries.weight"]
    assert (group.size, group.kept) == (4, 2)
    assert set(group.producers) == {"queries.weight", "keys.weight", "values.weight"}
    queries = next(place for place in group.places if place.name == "queries.weight")
    assert queries.channel_of_index.tolist() == [index // 8 for index in range(32)]
    smaller = shrink_and_adopt(module, Grouped())
    assert [smaller.queries.out_features, smaller.keys.out_features] == [16, 8]


def test_attention_of_torch_loses_channels_of_the_inputs_while_all_heads_stay():
    model, batch = MODELS["attention under two names"]().eval(), example()
    tensors = named_parameters(model)
    (stream,) = [g for g in couple(model, batch).groups if "embed.weight" in g.producers]
    with torch.no_grad():
        for place in stream.places:
            gone = (place.channel_of_index >= 0) & (place.channel_of_index % 2 == 1)
            tensors[place.name].movedim(place.axis, 0)[gone] = 0.0
    smaller = shrink(model, batch)
    assert smaller.zero_channels_left == {}
    assert smaller.attention.in_proj_weight.shape == (3 * 16, 8)
    assert smaller.attention.out_proj.weight.shape == (8, 16)
    fresh = MODELS["attention under two names"]().eval()
    adopt(fresh, shrunk_state(smaller))
    torch.testing.assert_close(fresh(batch), model(batch))
