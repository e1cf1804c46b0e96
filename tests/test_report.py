import csv
import dataclasses
import importlib.util
import io
import json
import random
import time

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule
from rich.console import Console
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from lightning_prune import Latency, NMPattern, report
from lightning_prune.reporting.latency import Contest, compared


def counted(module, example, **arguments):
    return report(module, example, latency=False, **arguments)


def row(found, name):
    (layer,) = [layer for layer in found.layers if layer.name == name]
    return layer


def zero(weight, zeros):
    with torch.no_grad():
        weight.flatten()[:zeros] = 0
    return weight


def lenet():
    return nn.Sequential(
        nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10)
    )


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


@pytest.mark.parametrize(
    ("zeros", "pattern"),
    [
        ((), "dense"),
        ((slice(None),), "empty"),
        ((slice(3, 6),), "channels: 5 of 8 outputs"),
        ((slice(None), slice(0, 6)), "channels: 10 of 16 inputs"),
        ((slice(4, 8), slice(0, 2)), "blocks of 4 x 18"),
        ((0, 0, 0, 0), "unstructured"),
    ],
)
def test_patterns_are_seen_in_the_weights(zeros, pattern):
    layer = nn.Conv2d(16, 8, 3)
    if zeros:
        nn.init.zeros_(layer.weight[zeros])
    found = counted(layer, torch.randn(1, 16, 4, 4))
    assert found.layers[0].pattern == pattern


@pytest.mark.parametrize(("n", "m"), [(1, 2), (2, 4), (1, 4), (5, 8)])
def test_n_of_m_is_seen_in_the_weights_and_not_in_chance(n, m):
    layer = nn.Conv2d(32, 16, 3)
    scores = layer.weight.detach().abs()
    _, kept = NMPattern(n=n, m=m).bounds(scores, scores > -1, due=scores.numel() * n // m)
    layer.weight.data[~kept] = 0
    found = counted(layer, torch.randn(1, 32, 3, 3))
    assert found.layers[0].pattern == f"{n}:{m}"
    unstructured = nn.Linear(64, 2)
    unstructured.weight.data[torch.rand(2, 64) < 0.95] = 0
    assert counted(unstructured, torch.randn(1, 64)).layers[0].pattern == "unstructured"


def test_both_sides_of_removed_channels_are_counted():
    layer = nn.Linear(8, 6)
    layer.weight.data[2:] = 0
    layer.weight.data[:, :4] = 0
    pattern = counted(layer, torch.randn(1, 8)).layers[0].pattern
    assert pattern == "channels: 2 of 6 outputs, 4 of 8 inputs"


def test_outputs_of_a_transposed_convolution_are_its_second_axis():
    layer = nn.ConvTranspose1d(4, 6, 3)
    layer.weight.data[:, :2] = 0
    pattern = counted(layer, torch.randn(1, 4, 5)).layers[0].pattern
    assert pattern == "channels: 4 of 6 outputs"


def test_peak_memory_by_hand():
    net = nn.Sequential(nn.Linear(10, 100), nn.ReLU(), nn.Linear(100, 1))
    found = counted(net, torch.randn(1, 10))
    assert found.peak_bytes == 4 * (10 + 100 + 100)  # the example, and both sides of the ReLU
    assert row(found, "2").peak_bytes == 4 * (10 + 100 + 1)
    inplace = nn.Sequential(nn.Linear(10, 100), nn.ReLU(inplace=True), nn.Linear(100, 1))
    assert counted(inplace, torch.randn(1, 10)).peak_bytes == 4 * (10 + 100 + 1)


def test_compressed_bytes_are_of_the_parameters_as_they_are_stored():
    net = nn.Linear(1000, 100, bias=False).bfloat16()
    found = counted(net, torch.randn(1, 1000, dtype=torch.bfloat16))
    assert found.total.bytes == 200_000
    dense = found.total.compressed_bytes
    zero(net.weight, 90_000)
    compressed = counted(net, torch.randn(1, 1000, dtype=torch.bfloat16)).total.compressed_bytes
    assert compressed == pytest.approx(dense / 10, rel=0.1)


def test_removed_channels_are_compared_with_the_dense_module_that_is_given():
    dense = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
    shrunk = nn.Sequential(nn.Linear(8, 3), nn.ReLU(), nn.Linear(3, 2))
    found = counted(shrunk, torch.randn(1, 8), dense=dense)
    assert (found.total.dense_parameters, found.total.parameters) == (54 + 14, 27 + 8)
    assert (found.total.dense_macs, found.total.effective_macs) == (48 + 12, 24 + 6)
    assert (found.total.dense_bytes, found.total.bytes) == (4 * 68, 4 * 35)
    assert found.dense_peak_bytes == 4 * (8 + 12)
    assert found.peak_bytes == 4 * (8 + 6)
    assert found.sparsity == 0
    text = shown(found, 100)
    assert "27 of 54" in text
    assert "1.43 times less memory for activations at the peak" in text
    assert "1.94 times fewer parameters than dense" in text
    assert f"{4 * 68 / found.total.compressed_bytes:.2f} times smaller on disk than dense" in text


def test_emptied_layers_and_what_they_make_constant_are_named():
    net = nn.Sequential(
        nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4)
    )
    nn.init.zeros_(net[2].weight)
    found = counted(net, torch.randn(2, 4))
    assert found.emptied == ("2.weight",)
    assert found.constant == ("3", "4", "output")
    text = shown(found, 100)
    assert "warning: all weights are zero in 2.weight" in text
    assert "warning: because of that the output is constant in 3, 4" in text
    assert "the output of the model no longer depends on its input" in text


def test_an_emptied_branch_beside_a_path_makes_only_itself_constant():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.last = (nn.Linear(4, 4) for _ in range(3))

        def forward(self, values):
            return self.last(values + self.second(functional.relu(self.first(values))))

    net = Residual()
    nn.init.zeros_(net.first.weight)
    found = counted(net, torch.randn(2, 4))
    assert found.emptied == ("first.weight",)
    assert found.constant == ("second",)


def test_what_is_constant_without_zeros_is_no_warning():
    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Parameter(torch.randn(3, 4))
            self.layer, self.other = nn.Linear(4, 4), nn.LSTM(4, 4)

        def forward(self, values):
            return self.other(values + self.layer(self.table))[0]

    class Table(Positions):
        def forward(self, values):
            return self.layer(self.table)

    found = counted(Positions(), torch.randn(3, 4))
    assert (found.emptied, found.constant, found.notes) == ((), (), ())
    assert counted(Table(), torch.randn(3, 4)).constant == ()


def test_a_model_without_prunable_layers_has_a_report():
    found = counted(nn.BatchNorm1d(4), torch.randn(2, 4))
    assert (found.sparsity, found.total.dense_macs, found.total.parameters) == (0, 0, 8)
    found = counted(nn.ReLU(), torch.randn(2, 4))
    assert (found.layers, found.total.parameters, found.total.bytes) == ((), 0, 0)
    assert "all" in shown(found, 80)


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(3, 2), nn.Linear(4, 2)

    def forward(self, one, *, other):
        return self.left(one) + self.right(other)


def test_examples_are_tensors_tuples_or_dicts():
    tensors = torch.randn(1, 3), torch.randn(1, 4)
    found = counted(Two(), {"one": tensors[0], "other": tensors[1]})
    assert found.total.dense_macs == 14
    assert found.example == "1 x 3 float32, 1 x 4 float32"
    with_two = nn.Bilinear(3, 4, 5)
    assert counted(with_two, tensors).example == found.example


class Lightning(LightningModule):
    def __init__(self):
        super().__init__()
        self.example_input_array = torch.randn(2, 4)
        self.net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))

    def forward(self, values):
        return self.net(values)


def test_a_lightning_module_brings_its_example():
    assert report(Lightning(), latency=False).total.dense_macs == 2 * 16


@pytest.mark.parametrize(
    ("module", "arguments", "message"),
    [
        (
            nn.Linear(2, 2),
            {},
            "need an example of the arguments of forward, got example=None; .*Linear",
        ),
        (Lightning(), {"threads": 0}, "need threads >= 1, got threads=0"),
        (Lightning(), {"blocks": 5}, "need blocks >= 6, got blocks=5"),
    ],
)
def test_what_cannot_be_measured_is_refused(module, arguments, message):
    with pytest.raises(ValueError, match=message):
        report(module, **arguments)


def test_shards_are_refused():
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import distribute_tensor

    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        layer = nn.Linear(4, 4)
        mesh = init_device_mesh("cpu", (1,))
        layer.weight = nn.Parameter(distribute_tensor(layer.weight, mesh))
        with pytest.raises(ValueError, match=r"need whole parameters .* got the sharded 'weight'"):
            counted(layer, torch.randn(1, 4))
    finally:
        distributed.destroy_process_group()


def state(module):
    hooks = [name for name in vars(module) if "hooks" in name]
    return {
        "tensors": {name: tensor.clone() for name, tensor in module.state_dict().items()},
        "gradients": {n: p.grad.clone() for n, p in module.named_parameters()},
        "frozen": [p.requires_grad for p in module.parameters()],
        "identities": [id(p) for p in module.parameters()],
        "modes": [m.training for m in module.modules()],
        "hooks": [
            {key: id(hook) for key, hook in (getattr(m, name) or {}).items()}
            for m in module.modules()
            for name in hooks
            if isinstance(getattr(m, name), dict)
        ],
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state()[1],  # noqa: NPY002
        "python": random.getstate(),
        "threads": torch.get_num_threads(),
        "gradient": torch.is_grad_enabled(),
    }


@pytest.mark.slow
@pytest.mark.parametrize("training", [True, False])
def test_the_module_and_all_around_it_are_left_as_they_were(training):
    class Random(Lightning):
        def forward(self, values, offset):
            noise = random.random() + np.random.random()  # noqa: NPY002
            return super().forward(values) + offset + noise * torch.rand_like(values)

    module = Random().bfloat16().train(training)
    example = {"offset": torch.randn(1, 4), "values": torch.randn(2, 4)}
    module.example_input_array = {key: value.bfloat16() for key, value in example.items()}
    module.net[2].train()
    module.net[0].register_forward_hook(lambda *_: None)
    module.net[0].bias.requires_grad_(False).grad = torch.ones(4).bfloat16()
    module(**module.example_input_array).sum().backward()
    before = state(module)
    found = report(module, latency=training, threads=2, blocks=6)
    if training:
        assert [latency.runtime for latency in found.latencies] == ["torch", "ONNX Runtime"]
    torch.testing.assert_close(state(module), before, rtol=0, atol=0)
    assert found.total.dense_bytes == found.total.bytes == 2 * found.total.parameters


SIDES = {"runtime": "torch", "device": "cpu", "threads": 1, "dense": None, "pruned": None}


def judged(dense, pruned) -> Latency:
    return compared(Contest(**SIDES), dense, pruned, calls=1)


def test_the_interval_of_ten_pairs_by_hand():
    ratios = [1.5, 1.1, 1.9, 1.2, 1.4, 1.3, 1.6, 1.8, 1.7, 2.0]
    found = judged(ratios, [1.0] * 10)
    assert found.speedup == pytest.approx(1.55)
    # P(X < 2) = 11/1024, P(X < 3) = 56/1024 > 0.025: the second least and the second greatest.
    assert (found.low, found.high) == (1.2, 1.9)
    assert (found.dense.lower, found.dense.median) == pytest.approx((1.325, 1.55))
    assert found.verdict == "faster"


def test_the_interval_covers_the_median_as_often_as_it_says():
    generator = np.random.default_rng(0)
    intervals = [judged(np.exp(generator.standard_t(2, 31)), np.ones(31)) for _ in range(400)]
    covered = np.mean([found.low <= 1 <= found.high for found in intervals])
    assert 0.93 < covered < 0.99


@pytest.mark.parametrize(
    ("ratios", "verdict"),
    [
        ([2.0] * 51, "faster"),
        ([0.5] * 51, "slower"),
        ([1.0] * 51, "no faster"),
        ([1.09] * 51, "no faster"),  # certain, and within what copies of one network differ by
        ([0.92] * 51, "no faster"),
        ([0.5] * 20 + [3.0] * 31, "no faster"),  # large, and not certain
        ([0.2] * 31 + [1.5] * 20, "no faster"),
        ([0.1] * 10 + [1.5] * 41, "faster"),  # some blocks were disturbed
    ],
)
def test_a_verdict_needs_a_difference_that_is_certain_and_large(ratios, verdict):
    assert judged(ratios, [1.0] * 51).verdict == verdict


def test_drifts_of_the_machine_cancel():
    drift = np.linspace(1, 10, 51)
    found = judged(2 * drift, drift)
    assert (found.speedup, found.low, found.high) == (2, 2, 2)


class Slept(nn.Module):
    def __init__(self, seconds):
        super().__init__()
        self.seconds = seconds

    def forward(self, values):
        time.sleep(self.seconds)
        return values + 1


@pytest.mark.parametrize(
    ("seconds", "verdict"), [((0.002, 0.02), "slower"), ((0.02, 0.002), "faster")]
)
def test_a_module_that_sleeps_is_slower(seconds, verdict, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    dense, pruned = map(Slept, seconds)
    found = report(pruned, torch.randn(1), dense=dense, blocks=6)
    assert found.latencies[0].verdict == verdict
    assert f"times {verdict} in torch (cpu, 1 thread, 6 x " in shown(found, 120)


def test_without_onnx_runtime_the_rest_is_there(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else find(name)
    )
    found = report(nn.Linear(2, 2), torch.randn(1, 2), blocks=6)
    assert [latency.runtime for latency in found.latencies] == ["torch"]
    assert found.notes == (
        "not measured in ONNX Runtime: need onnxruntime: pip install 'lightning-prune[export]'",
    )


@pytest.mark.slow
def test_what_cannot_be_exported_is_said():
    class Branching(nn.Module):
        def forward(self, values):
            return values + 1 if values.sum() > 0 else values

    found = report(Branching(), torch.randn(1, 2), blocks=6)
    assert [latency.runtime for latency in found.latencies] == ["torch"]
    (note,) = found.notes
    assert note.startswith("not measured in ONNX Runtime: ")


def test_zeros_are_filled_where_nothing_else_is_given():
    seen = []

    class Watched(nn.Linear):
        def forward(self, values):
            seen.append(self.weight.clone())
            return super().forward(values)

    layer = Watched(40, 30)
    layer.weight.data *= torch.rand(30, 40) < 0.1
    counted(layer, torch.randn(1, 40))
    pruned, full = seen
    kept = pruned != 0
    assert torch.equal(pruned, layer.weight)
    assert torch.equal(full[kept], pruned[kept])
    assert 0.5e-2 < full[~kept].std() / pruned[kept].std() < 2e-2
    assert (full != 0).all()


def shown(found, width):
    console = Console(width=width, file=io.StringIO())
    console.print(found.table())
    return console.file.getvalue()


@pytest.fixture(scope="module")
def lenet_report():
    net = lenet()
    zero(net[0].weight, 200_000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda name: None)
        found = report(net, torch.randn(1, 784), blocks=6)
    slow = dataclasses.replace(
        found.latencies[0], speedup=0.5, low=0.4, high=0.6, runtime="ONNX Runtime"
    )
    same = dataclasses.replace(found.latencies[0], speedup=1.0, low=0.9, high=1.1)
    return dataclasses.replace(found, latencies=(same, slow), notes=("this",))


def test_the_table_fits_a_terminal_and_says_what_follows(lenet_report):
    for width in (80, 100):
        text = shown(lenet_report, width)
        assert all(len(line.rstrip()) <= width for line in text.splitlines())
        words = " ".join(text.split())
        assert "no faster in torch (cpu, 1 thread, 6 x" in words
        assert "2.00 times slower in ONNX Runtime (cpu, 1 thread, 6 x" in words
        assert "zeros in place are multiplied like any other number" in words
        assert "0.7513 of the prunable weights are zero" in words
        assert "│ all │ 266,610 │ 66,610 │ 0.7502 │" in words
        assert "│ unstructured │" not in words  # 200,000 zeros from the start are no rectangle
        assert "note: this" in words


def test_json_and_csv_hold_every_number(lenet_report):
    values = json.loads(lenet_report.to_json())
    assert values["total"]["dense_macs"] == 266_200
    assert values["layers"][0]["sparsity"] == pytest.approx(200_000 / 235_500)
    assert [latency["verdict"] for latency in values["latencies"]] == ["no faster", "slower"]
    assert values["latencies"][0]["dense"]["median"] > 0
    rows = list(csv.DictReader(io.StringIO(lenet_report.to_csv())))
    assert [line["name"] for line in rows] == ["0", "2", "4", "all"]
    assert rows[-1]["effective_macs"] == "66200"
    assert sum(int(line["bytes"]) for line in rows[:-1]) == int(rows[-1]["bytes"])


def test_markdown_is_a_table_and_a_list(lenet_report):
    text = lenet_report.to_markdown()
    assert "| all | 266,610 | 66,610 | 0.7502 |" in text
    assert "| all | 266,200 | 66,200 | 1.07 MB |" in text
    assert "- 2.00 times slower in ONNX Runtime" in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 2  # three tables of five or six columns


def test_the_suffix_decides_what_is_written(lenet_report, tmp_path):
    (path,) = lenet_report.write(tmp_path / "new" / "a.csv")
    assert path.read_text() == lenet_report.to_csv()
    written = lenet_report.write(tmp_path / "all")
    assert [path.name for path in written] == ["report.json", "report.csv", "report.md"]
    assert written[2].read_text() == lenet_report.to_markdown()
    with pytest.raises(ValueError, match=r"need a folder or a .json, .csv or .md file, got output"):
        lenet_report.write(tmp_path / "a.txt")


def test_a_report_is_a_value(lenet_report):
    for value in (lenet_report, lenet_report.total, lenet_report.latencies[0]):
        with pytest.raises(dataclasses.FrozenInstanceError):
            value.sparsity = 1.0
    hash(lenet_report)
