"""What a report says of a model, and in which forms."""

import csv
import dataclasses
import importlib.util
import io
import json
import random

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn

from lightning_prune import report
from lightning_prune.reporting.latency import LEAST_BLOCKS
from tests.hooks import registered
from tests.reporting.reports import counted, lenet, row, shown, zero


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


@pytest.mark.parametrize(
    "dtypes", [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)]
)
def test_a_dense_module_of_another_precision_is_counted_in_its_own(dtypes):
    shrunk, dense = nn.Linear(8, 3).to(dtypes[0]), nn.Linear(8, 6).to(dtypes[1])
    found = report(shrunk, torch.randn(1, 8), dense=dense, blocks=LEAST_BLOCKS)
    total = found.total
    assert (total.dense_macs, total.effective_macs) == (48, 24)
    assert (total.dense_bytes, total.bytes) == (54 * dtypes[1].itemsize, 27 * dtypes[0].itemsize)
    assert found.latencies


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
    return {
        "tensors": {name: tensor.clone() for name, tensor in module.state_dict().items()},
        "gradients": {n: p.grad.clone() for n, p in module.named_parameters()},
        "frozen": [p.requires_grad for p in module.parameters()],
        "identities": [id(p) for p in module.parameters()],
        "modes": [m.training for m in module.modules()],
        "hooks": [id(hook) for hook in registered(module)],
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
    cells = " ".join(text.split())
    assert "| all | 266,610 | 66,610 | 0.7502 |" in cells
    assert "| all | 266,200 | 66,200 | 1.07 MB |" in cells
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
