import random
import sys

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from lightning_prune import (
    BlockPattern,
    BytesBudget,
    ChannelPattern,
    NMPattern,
    UnstructuredPattern,
    shrink,
)
from lightning_prune.engine.byte_costs import make_bytes_cost
from lightning_prune.engine.measured_bytes import measure_bytes
from lightning_prune.engine.selection import select
from lightning_prune.models.calls import make_call
from lightning_prune.models.generic_weights import fill_with_generic_weights
from lightning_prune.recipe.recipe import Recipe
from tests.coupled_models import (
    Encoder,
    FusedAttention,
    Headed,
    ResidualBlock,
    TorchEncoder,
    convolution,
)

SPARSE = BytesBudget(keep=0.5, file="sparse")


def selected(model, pattern, example=None):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return select(model, [optimizer], Recipe(sparsity=1.0, pattern=pattern), example)


def prune(selection, kept):
    """Keep the first atoms of each group."""
    for group in selection.groups:
        alive = group.alive()
        choice = torch.arange(alive.numel()) < kept[group.name]
        group.keep(choice.view(alive.shape))
    for tensor in selection.tensors:
        tensor.mask.apply(tensor.weights)


def keep_largest(selection, kept):
    """Keep the largest weights of each tensor."""
    for group in selection.groups:
        magnitudes = group.members[0].weights.abs().flatten()
        choice = torch.zeros(len(magnitudes), dtype=torch.bool)
        choice[magnitudes.topk(kept[group.name]).indices] = True
        group.keep(choice.view(group.alive().shape))
    for tensor in selection.tensors:
        tensor.mask.apply(tensor.weights)


def totals(selection):
    return {group.name: group.total for group in selection.groups}


def assert_monotone(cost, selection):
    """The cost never falls with the count of a single group."""
    full = totals(selection)
    for group in selection.groups:
        counts = sorted({0, 1, 2, group.total // 3, group.total // 2, group.total})
        costs = [cost({**full, group.name: count}) for count in counts]
        assert costs == sorted(costs)


class Tied(nn.Module):
    """A tied weight, counters, running statistics, a bool mask, and a tensor of few entries."""

    def __init__(self, width, dtype):
        super().__init__()
        self.embedding = nn.Embedding(50, width)
        self.inner, self.odd = nn.Linear(width, 3 * width), nn.Linear(3 * width, 7)
        self.norm, self.tiny = nn.BatchNorm1d(width), nn.Linear(2, 2)
        self.decoder = nn.Linear(width, 50)
        self.decoder.weight = self.embedding.weight
        self.register_buffer("mask", torch.ones(60, 60).tril().bool())
        self.to(dtype)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 40),
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.sampled_from([UnstructuredPattern(), UnstructuredPattern(per_row=True)]),
    st.data(),
)
def test_the_sparse_file_is_predicted_to_the_byte(width, dtype, pattern, data):
    model = Tied(width, dtype)
    fill_with_generic_weights(model)
    model.norm.num_batches_tracked += 1
    selection = selected(model, pattern)
    cost = make_bytes_cost(SPARSE, model, selection, None)
    assert_monotone(cost, selection)
    kept = {n: data.draw(st.integers(0, total)) for n, total in totals(selection).items()}
    prune(selection, kept)
    assert cost(kept) == measure_bytes(model, SPARSE)


@pytest.mark.parametrize("pattern", [BlockPattern(shape=(4, 2)), NMPattern(n=1, m=4)])
def test_the_sparse_file_of_larger_atoms_is_predicted_to_the_byte(pattern):
    model = nn.Sequential(nn.Linear(64, 32), nn.Linear(32, 8))
    selection = selected(model, pattern)
    cost = make_bytes_cost(SPARSE, model, selection, None)
    kept = {name: total // 4 for name, total in totals(selection).items()}
    prune(selection, kept)
    assert cost(kept) == measure_bytes(model, SPARSE)


def test_zeros_that_can_change_until_the_end_count_as_nonzero():
    model = nn.Sequential(nn.Linear(40, 30), nn.BatchNorm1d(30))
    nn.init.zeros_(model[0].bias)
    selection = selected(model, UnstructuredPattern())
    cost = make_bytes_cost(SPARSE, model, selection, None)
    full = totals(selection)
    assert cost(full) >= measure_bytes(model, SPARSE)
    fill_with_generic_weights(model)
    model[1].num_batches_tracked += 1
    assert cost(full) == measure_bytes(model, SPARSE)


def test_dense_parts_are_the_tensors_that_stay():
    model = Tied(8, torch.float32)
    cost = make_bytes_cost(SPARSE, model, selected(model, UnstructuredPattern()), None)
    assert cost.dense_parts()["embedding.weight"] == 50 * 8 * 4
    assert "inner.weight" not in cost.dense_parts()
    assert "decoder.weight" not in cost.dense_parts()


def test_what_no_file_can_hold_is_refused_by_name():
    model = nn.Linear(2, 2)
    model.register_buffer("phase", torch.zeros(2, dtype=torch.complex64))
    with pytest.raises(ValueError, match="got 'phase' of type complex64"):
        make_bytes_cost(SPARSE, model, selected(model, UnstructuredPattern()), None)


@pytest.mark.parametrize(
    ("file", "library"), [("sparse", "safetensors"), ("onnx", "onnx"), ("onnx-int8", "onnxruntime")]
)
def test_a_missing_library_is_named_with_its_extra(file, library, monkeypatch):
    model = nn.Linear(2, 2)
    selection = selected(model, UnstructuredPattern())
    monkeypatch.setitem(sys.modules, library, None)
    budget, call = BytesBudget(keep=0.5, file=file), make_call(model, torch.zeros(1, 2))
    with pytest.raises(ModuleNotFoundError, match=rf"need {library} .*lightning-prune\[export\]"):
        make_bytes_cost(budget, model, selection, call)


MODELS = {
    "convolutions": lambda: Headed(nn.Sequential(convolution(3, 16), convolution(16, 32)), 32),
    "resnet": lambda: Headed(nn.Sequential(ResidualBlock(3, 24), ResidualBlock(24, 24)), 24),
    "transformer": lambda: Encoder(FusedAttention(32, 4), 32),
    "torch transformer": TorchEncoder,
}
WIDER = {
    "convolutions": lambda: Headed(nn.Sequential(convolution(3, 32), convolution(32, 64)), 64),
    "resnet": lambda: Headed(nn.Sequential(ResidualBlock(3, 32), ResidualBlock(32, 64)), 64),
    "transformer": lambda: Encoder(FusedAttention(64, 4), 64),
}
FILES = ("sparse", "onnx", "onnx-int8")


@pytest.mark.rare
@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_the_file_without_channels_is_predicted_within_2_in_100(name):
    model, example = MODELS[name](), torch.randn(2, 3, 8, 8)
    fill_with_generic_weights(model)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.num_batches_tracked += 1
    call = make_call(model, example)
    selection = selected(model, ChannelPattern(round_to=1, scope="all"), example)
    budgets = [BytesBudget(keep=0.5, file=file) for file in FILES]
    costs = [make_bytes_cost(budget, model, selection, call) for budget in budgets]
    generator = random.Random(0)
    kept = {name: generator.randint(1, total) for name, total in totals(selection).items()}
    prune(selection, kept)
    smaller = shrink(model, example)
    for budget, cost in zip(budgets, costs, strict=True):
        assert_monotone(cost, selection)
        measured = measure_bytes(smaller, budget, example)
        tolerance = 0 if budget.file == "sparse" else 0.02
        assert measured <= cost(kept) <= (1 + tolerance) * measured


@pytest.mark.rare
@pytest.mark.slow
@pytest.mark.parametrize("name", ["convolutions", "resnet", "transformer"])
def test_the_compressed_file_with_zeros_in_place_is_predicted_within_2_in_100(name):
    model, example = WIDER[name](), torch.randn(2, 3, 8, 8)
    fill_with_generic_weights(model)
    budget, call = BytesBudget(keep=0.5, file="compressed"), make_call(model, example)
    selection = selected(model, UnstructuredPattern())
    cost = make_bytes_cost(budget, model, selection, call)
    assert_monotone(cost, selection)
    for keep in (1.0, 0.4, 0.15):
        kept = {name: round(keep * total) for name, total in totals(selection).items()}
        keep_largest(selection, kept)
        assert cost(kept) == pytest.approx(measure_bytes(model, budget, example), rel=0.02)


def test_the_compressed_bytes_are_those_of_the_present_weights_and_of_a_measurement():
    model, example = nn.Sequential(nn.Linear(64, 64)), torch.randn(2, 64)
    budget = BytesBudget(keep=0.5, file="compressed")
    selection = selected(model, UnstructuredPattern())
    cost = make_bytes_cost(budget, model, selection, make_call(model, example))
    full, before = totals(selection), cost(totals(selection))
    model[0].weight.data.copy_(model[0].weight.data.bfloat16())
    short = make_bytes_cost(budget, model, selection, make_call(model, example))
    assert short(full) < 0.7 * before
    assert short(full) == pytest.approx(measure_bytes(model, budget, example), rel=0.02)
    corrected = cost.corrected(full, 0.5 * before)
    assert corrected(full) == pytest.approx(0.5 * before)
    assert cost(full) == before
    short.load_state_dict(corrected.state_dict())
    assert short(full) == corrected(full)
