"""Costs of multiply-adds and parameters, compared with what `report` counts afterward."""

import copy
import random

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from lightning_prune import BlockPattern, ChannelPattern, NMPattern, UnstructuredPattern, shrink
from lightning_prune.engine.count_costs import make_macs_cost, make_parameter_cost
from lightning_prune.engine.selection import select
from lightning_prune.models.calls import make_call
from lightning_prune.recipe.recipe import Recipe
from tests.coupled_models import MODELS, example
from tests.reporting.reports import counted


def costs(model, batch, pattern):
    """Return the selection, the cost in multiply-adds, and the cost in parameters."""
    recipe = Recipe(sparsity=0.5, pattern=pattern)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    selection = select(model, [optimizer], recipe, batch)
    macs = make_macs_cost(model, selection, make_call(model, batch))
    with torch.device("meta"):  # no tensor may depend on the default device
        return selection, macs, make_parameter_cost(selection)


def filled(model):
    """Return a model without zeros, which `report` could count."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter[parameter == 0] = 0.1
    return model.eval()


def prune(selection, seed):
    """Prune each group to a random number of random atoms, and return the numbers."""
    generator = torch.Generator().manual_seed(seed)
    numbers, kept = random.Random(seed), {}
    for group in selection.groups:
        kept[group.name] = numbers.randint(group.floor, group.total)
        scores = torch.rand(group.alive().shape, generator=generator)
        scores[group.find_row_holders(scores)] = 1.0
        group.keep(group.pattern(scores, kept[group.name]))
    with torch.no_grad():
        for tensor in selection.tensors:
            tensor.mask.apply(tensor.weights)
    return kept


def assert_dense(model, batch, selection, macs, parameters):
    dense, every = counted(model, batch).total, {g.name: g.total for g in selection.groups}
    assert macs(every) == dense.dense_macs
    assert parameters(every) == dense.nonzeros == dense.parameters


# -- zeros in place ------------------------------------------------------------------------------


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.layers, self.head = kind(6, 5, num_layers=2, bidirectional=True), nn.Linear(10, 3)

    def forward(self, steps):
        return self.head(self.layers(steps)[0])


class Tied(nn.Module):
    """A weight that is used twice, once transposed, with unequally many samples."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 4), nn.Linear(6, 4, bias=False)
        self.last.weight = self.first.weight

    def forward(self, x):
        hidden = self.first(x) @ self.first.weight
        return self.last(hidden[:1])


class Joined(nn.Module):
    """Two matrices side by side, as some attention layers join them before they multiply."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(6, 4, bias=False), nn.Linear(6, 2, bias=False)

    def forward(self, x):
        return functional.linear(x, torch.cat([self.left.weight, self.right.weight]))


class Attending(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True, **options)

    def forward(self, x):
        sources = x if self.attention._qkv_same_embed_dim else x[..., :6]
        return self.attention(x, sources, sources)[0]


def normed():
    layer = nn.Linear(8, 6)
    parametrizations.weight_norm(layer)
    return nn.Sequential(layer, nn.ReLU(), parametrizations.spectral_norm(nn.Linear(6, 4)))


IMAGES, ROWS, STEPS = (2, 4, 8, 8), (3, 6), (7, 2, 6)
NETS = {
    "linear": (lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)), ROWS),
    "strided": (lambda: nn.Conv2d(4, 8, 3, stride=2, padding=1), IMAGES),
    "grouped": (lambda: nn.Sequential(nn.Conv2d(4, 8, 3, groups=2), nn.BatchNorm2d(8)), IMAGES),
    "depthwise": (lambda: nn.Conv2d(4, 8, 3, groups=4), IMAGES),
    "transposed": (lambda: nn.ConvTranspose2d(4, 8, 3, stride=2, groups=2), IMAGES),
    "rnn": (lambda: Recurrent(nn.RNN), STEPS),
    "lstm": (lambda: Recurrent(nn.LSTM), STEPS),
    "gru": (lambda: Recurrent(nn.GRU), STEPS),
    "tied": (Tied, ROWS),
    "joined": (Joined, ROWS),
    "packed attention": (Attending, (2, 5, 8)),
    "attention of two widths": (lambda: Attending(kdim=6, vdim=6), (2, 5, 8)),
    "parametrized": (normed, (3, 8)),
}


@pytest.mark.parametrize("kind", NETS)
@pytest.mark.parametrize("seed", range(3))
def test_zeros_in_place_cost_what_a_report_counts(kind, seed):
    torch.manual_seed(seed)
    make, shape = NETS[kind]
    model, batch = filled(make()), torch.randn(shape)
    selection, macs, parameters = costs(model, batch, UnstructuredPattern())
    assert_dense(model, batch, selection, macs, parameters)
    kept = prune(selection, seed)
    found = counted(model, batch).total
    assert macs(kept) == found.effective_macs
    assert parameters(kept) == found.nonzeros


@pytest.mark.parametrize("pattern", [BlockPattern(shape=(2, 2)), NMPattern(n=2, m=4)])
def test_an_atom_costs_all_of_the_weights_in_it(pattern):
    model, batch = filled(nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 2))), torch.randn(3, 8)
    selection, macs, parameters = costs(model, batch, pattern)
    width = 4 if isinstance(pattern, BlockPattern) else 1
    kept = {group.name: group.total - 2 for group in selection.groups}
    assert macs(kept) == 3 * (40 - 4 * width)
    assert parameters(kept) == 46 - 4 * width


def test_slices_that_are_used_unequally_often_cost_the_mean():
    class Unequal(nn.Linear):
        def forward(self, x):
            return self.weight[:2] @ x[0], self.weight[2:] @ x.T

    model, batch = filled(Unequal(6, 4, bias=False)), torch.randn(3, 6)
    _, macs, _ = costs(model, batch, UnstructuredPattern())
    assert [macs({"weight": kept}) for kept in (24, 12, 0)] == [12 + 3 * 12, 24, 0]


# -- removed channels ----------------------------------------------------------------------------


@pytest.mark.rare
@pytest.mark.slow
@pytest.mark.parametrize("scope", ["inner", "all"])
@pytest.mark.parametrize("name", MODELS)
def test_removed_channels_cost_what_a_report_counts_of_the_smaller_model(name, scope):
    torch.manual_seed(0)
    model, batch = filled(MODELS[name]()), example()
    try:
        selection, macs, parameters = costs(model, batch, ChannelPattern(round_to=1, scope=scope))
    except ValueError as error:
        assert "need at least one prunable weight" in str(error)  # noqa: PT017
        return
    assert_dense(model, batch, selection, macs, parameters)
    kept = prune(selection, seed=1)
    smaller = shrink(model, batch)
    found = counted(smaller, batch, dense=model).total
    assert macs(kept) == found.effective_macs
    assert parameters(kept) == found.parameters
    for name, number in kept.items():
        assert macs({**kept, name: number - 1}) < macs(kept)
        assert parameters({**kept, name: number - 1}) < parameters(kept)


class ByLetters(nn.Module):
    """Attention by `torch.einsum`, with two heads of queries for each head of keys and values."""

    def __init__(self):
        super().__init__()
        self.queries, self.keys = nn.Linear(6, 16), nn.Linear(6, 8)
        self.values, self.out = nn.Linear(6, 8), nn.Linear(16, 3)

    def forward(self, x):
        queries = self.queries(x).view(*x.shape[:2], -1, 2, 4)
        keys, values = (layer(x).view(*x.shape[:2], -1, 4) for layer in (self.keys, self.values))
        scores = torch.einsum("blgre,bsge->bgrls", queries, keys).softmax(-1)
        return self.out(torch.einsum("bgrls,bsge->blgre", scores, values).flatten(2))


class Grouped(ByLetters):
    """The same by torch's own kernel."""

    def forward(self, x):
        queries, keys, values = (
            layer(x).view(*x.shape[:2], -1, 4).transpose(1, 2)
            for layer in (self.queries, self.keys, self.values)
        )
        mixed = functional.scaled_dot_product_attention(queries, keys, values, enable_gqa=True)
        return self.out(mixed.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("kind", [ByLetters, Grouped])
def test_products_of_activations_fall_with_the_heads(kind):
    model, batch = filled(kind()), torch.randn(2, 5, 6)
    selection, macs, _ = costs(model, batch, ChannelPattern(round_to=1))
    (group,) = selection.groups
    for kept in (2, 1):
        weights, scores = 2 * 5 * (6 * (8 + 4 + 4) + 8 * 3), 2 * 2 * 5 * 5 * 8
        assert macs({group.name: kept}) == kept * (weights + scores)


class Mixing(nn.Module):
    """A weight that mixes tokens, and multiplies once for each channel."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 6)
        self.tokens = nn.Parameter(torch.randn(5, 5))

    def forward(self, x):
        return self.down(self.tokens.tril() @ self.up(x))


def test_a_weight_that_multiplies_each_channel_costs_less_with_fewer_channels():
    model, batch = filled(Mixing()), torch.randn(2, 5, 6)
    selection, macs, parameters = costs(model, batch, ChannelPattern(round_to=1))
    assert [group.name for group in selection.groups] == ["up.weight"]
    for kept in (8, 4, 1):
        assert macs({"up.weight": kept}) == 2 * 5 * (2 * 6 * kept + 5 * kept)
        assert parameters({"up.weight": kept}) == 13 * kept + 6 + 25


# -- dense parts ---------------------------------------------------------------------------------


def test_parts_that_no_group_lowers_are_listed_with_their_cost():
    model, batch = MODELS["attention"](), example()
    _, macs, parameters = costs(model, batch, UnstructuredPattern())
    assert macs.dense_parts() == {"attention": 2 * 2 * 5 * 5 * 16}
    assert parameters.dense_parts()["positions"] == 80
    assert not {"up.weight", "attention.query.weight"} & parameters.dense_parts().keys()
    _, macs, _ = costs(model, batch, ChannelPattern())
    patches = "patches.weight"
    assert macs.dense_parts() == {patches: 2 * 4 * 16 * 48, "head.weight": 2 * 16 * 3}


# -- the example, and the model ------------------------------------------------------------------


def test_the_model_is_left_as_it_was():
    model, batch = MODELS["torch attention"]().train(), example()
    before, generator = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    costs(model, batch, UnstructuredPattern())
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(part.training for part in model.modules())


def test_a_parameter_without_a_shape_is_refused_by_name():
    model = nn.Sequential(nn.Linear(4, 4), nn.LazyLinear(2))
    batch, optimizer = torch.randn(1, 4), torch.optim.SGD(model.parameters(), lr=0.1)
    selection = select(model, [optimizer], Recipe(sparsity=0.5), batch)
    message = r"need parameters with a shape, got '1\.weight'.* run the model on a batch"
    with pytest.raises(ValueError, match=message):
        make_parameter_cost(selection)
    with pytest.raises(ValueError, match=message):
        make_macs_cost(model, selection, make_call(nn.Linear(4, 4), batch))


def test_parameters_and_multiply_adds_of_shards_are_counted_whole():
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import distribute_tensor

    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        layer, batch = nn.Linear(4, 4), torch.randn(1, 4)
        mesh = init_device_mesh("cpu", (1,))
        layer.weight = nn.Parameter(distribute_tensor(layer.weight, mesh))
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        selection = select(layer, [optimizer], Recipe(sparsity=0.5), batch)
        assert make_parameter_cost(selection)({"weight": 10}) == 10 + 4
        macs = make_macs_cost(layer, selection, make_call(layer, batch))
        assert [macs({"weight": kept}) for kept in (16, 10)] == [16, 10]
    finally:
        distributed.destroy_process_group()
