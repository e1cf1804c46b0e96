import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers.logger import DummyLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_prune import PruningCallback, SparsityMonitor, export_onnx, report, shrink
from lightning_prune.models.compiled import (
    copy_module,
    is_compiled,
    run_uncompiled,
    unwrap_compiled,
)
from lightning_prune.models.names import named_modules, named_parameters


class Model(LightningModule):
    def __init__(self):
        super().__init__()
        self.example_input_array = torch.randn(2, 4)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))

    def forward(self, x, *, scale=1.0):
        return self.net(x) * scale

    def training_step(self, batch, batch_idx):
        return self(batch[0], scale=2.0).square().mean()

    validation_step = training_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")
def test_a_copy_of_weights_that_hooks_have_computed_runs_by_its_own_weights():
    layer = nn.utils.weight_norm(nn.Linear(3, 2))
    x = torch.randn(4, 3)
    expected = layer(x)
    copied = copy_module(layer)
    assert torch.equal(copied(x), expected)
    with torch.no_grad():
        copied.weight_g.zero_()
    assert torch.equal(copied(x), copied.bias.expand(4, 2))
    assert torch.equal(layer(x), expected)


def compiled_in_place():
    model = Model()
    model.compile(backend="eager")
    return model


def compiled_by_lightning():
    """Return the LightningModule as a Trainer unwraps it."""
    from lightning.pytorch.utilities.compile import from_compiled

    return from_compiled(torch.compile(Model(), backend="eager"))


def wrapped():
    return torch.compile(Model(), backend="eager")


def with_a_compiled_part():
    model = Model()
    model.net[0] = torch.compile(model.net[0], backend="eager")
    return model


MADE = [Model, compiled_in_place, compiled_by_lightning, wrapped, with_a_compiled_part]


@pytest.mark.parametrize("make", MADE)
def test_a_copy_runs_by_its_own_weights(make):
    model, x = make(), torch.randn(3, 4)
    expected = model(x)
    copied = copy_module(model)
    assert torch.equal(copied(x), expected)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    assert not copied(x).any()
    assert torch.equal(model(x), expected)
    assert type(copied) is type(model)


@pytest.mark.parametrize("make", MADE)
def test_names_have_no_part_of_the_compiler(make):
    model = make()
    assert list(named_parameters(model)) == list(dict(Model().named_parameters()))
    assert isinstance(named_modules(model)["net.0"], nn.Linear)
    assert type(unwrap_compiled(model)) is Model


def test_what_is_compiled_is_known():
    assert [is_compiled(make()) for make in (Model, compiled_in_place, wrapped)] == [0, 1, 1]
    assert is_compiled(with_a_compiled_part().net[0])


def test_compiled_parts_run_uncompiled_inside_the_block():
    torch.compiler.reset()  # other tests may have reached the limit of compilations
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    module = nn.Sequential(torch.compile(nn.Linear(4, 2), backend=backend))
    with run_uncompiled(module):
        module(torch.randn(1, 4))
    assert not compiled
    module(torch.randn(1, 4))
    assert compiled


@pytest.mark.parametrize("make", MADE)
def test_zeros_of_a_compiled_model_are_counted(make):
    model = make()
    with torch.no_grad():
        unwrap_compiled(model).net[2].weight.view(-1)[::2] = 0.0
    total = report(model, latency=False).total
    assert (total.dense_macs, total.effective_macs) == (2 * 48, 2 * (32 + 8))


@pytest.mark.slow
@pytest.mark.parametrize("make", MADE[1:])
def test_a_compiled_model_is_shrunk_and_exported_by_its_own_weights(make, tmp_path):
    model = make()
    net = unwrap_compiled(model).net
    with torch.no_grad():
        for zero in (net[0].weight[:4], net[0].bias[:4], net[2].weight[:, :4]):
            zero.zero_()
    smaller = shrink(model)
    assert unwrap_compiled(smaller).net[2].in_features == 4
    x = torch.randn(3, 4)
    torch.testing.assert_close(smaller(x), model(x))
    assert export_onnx(smaller, tmp_path / "smaller.onnx").zeros == 0
    assert export_onnx(model, tmp_path / "model.onnx").zeros == 16 + 8


class Refilled(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4))

    def forward(self, inputs):
        return nn.functional.linear(inputs, self.weight + 1)


@pytest.mark.slow
def test_lost_zeros_of_a_compiled_part_are_noticed(tmp_path):
    layer = Refilled()
    nn.init.zeros_(layer.weight[:2])
    module = nn.Sequential(torch.compile(layer, backend="eager"))
    with pytest.raises(ValueError, match=r"need the 8 zeros of the weights .* got zeros=0"):
        export_onnx(module, tmp_path / "net.onnx", example=torch.rand(2, 4))


@pytest.mark.slow
@pytest.mark.parametrize("make", [wrapped, compiled_in_place])
def test_the_monitor_reports_on_a_compiled_model_without_an_example(make, monkeypatch):
    logged = {}

    class Logger(DummyLogger):
        def log_metrics(self, metrics, step=None):
            logged.update(metrics)

    model = make()
    unwrap_compiled(model).example_input_array = None
    loader = DataLoader(TensorDataset(torch.randn(8, 4)), batch_size=4)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)  # leaves ONNX out
    Trainer(
        accelerator="cpu",
        max_epochs=2,
        logger=[Logger()],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[PruningCallback(sparsity=0.5), SparsityMonitor(report=True)],
    ).fit(model, loader, loader)
    assert logged["report/effective_macs"] == pytest.approx(0.5)
