import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from lightning_prune import BytesBudget, load_sparse
from lightning_prune.engine.measured_bytes import measure_bytes
from lightning_prune.models.torch_floors import TorchFloor
from tests.commands import ROOT
from tests.versions import needs

MODULE = """
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Model(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(16, 40), nn.BatchNorm1d(40), nn.ReLU(), nn.Linear(40, 4))

    def forward(self, images, *, scale=None):
        return {"logits": self.net(images if scale is None else images * scale), "extra": None}

    def validation_step(self, batch, batch_idx):
        logits = self(batch[0], scale=batch[2])["logits"]
        self.log("val_loss", nn.functional.cross_entropy(logits, batch[1]))
        self.log("val_acc", (logits.argmax(1) == batch[1]).float().mean())


class Silent(Model):
    '''Its validation never calls forward.'''

    def validation_step(self, batch, batch_idx):
        self.log("val_sum", self.net(batch[0]).sum())


class SilentWithExample(Silent):
    def __init__(self):
        super().__init__()
        self.example_input_array = torch.rand(1, 16)


class Lengths(Model):
    '''Its validation calls forward with other lengths than the example's.'''

    def forward(self, images):
        return images.mean(1)

    def validation_step(self, batch, batch_idx):
        self.log("val_mean", self(batch[0][:, : 8 + batch_idx]).mean())


class LengthsWithExample(Lengths):
    def __init__(self):
        super().__init__()
        self.example_input_array = torch.rand(1, 16)


class Data(LightningDataModule):
    def val_dataloader(self):
        generator = torch.Generator().manual_seed(1)
        images = torch.rand(40, 16, generator=generator)
        scales = torch.rand(40, 1, generator=generator)
        return DataLoader(TensorDataset(images, torch.arange(40) % 4, scales), batch_size=16)
"""

CONFIG = """
seed_everything: 1
trainer: {accelerator: cpu, enable_progress_bar: false}
model: deployed.Model
data: deployed.Data
"""


@pytest.fixture
def folder(project):
    return project("deployed", MODULE, CONFIG)


@pytest.fixture
def model(folder):
    from deployed import Model

    torch.manual_seed(0)
    model = Model()
    model.net[0].weight.data[torch.rand(40, 16) < 0.9] = 0.0
    model.net[1].running_var.uniform_(0.5, 2.0)
    torch.save({"state_dict": model.state_dict()}, "best.ckpt")
    return model.eval()


@pytest.fixture
def export(model, prune_cli):
    given = ["export", "--config", "recipe.yaml", "--ckpt_path", "best.ckpt"]
    return lambda *arguments: prune_cli(*given, *arguments)


@pytest.fixture
def files(model, folder):
    before = {path.name for path in folder.iterdir()}
    return lambda: {path.name for path in folder.iterdir()} - before


def row(printed, metric):
    """The numbers of a metric: before, after and the change."""
    (line,) = [line for line in printed.splitlines() if metric in line]
    return [float(cell) for cell in line.split("│")[2:5]]


@needs(TorchFloor.ONNX_OF_NONE)
@pytest.mark.slow
def test_an_onnx_file_is_written_beside_the_checkpoint_and_validated(model, export, files, capsys):
    checkpoint = Path("best.ckpt").read_bytes()
    export()
    assert files() == {"best.onnx"}
    assert Path("best.ckpt").read_bytes() == checkpoint
    printed = capsys.readouterr().out
    size = Path("best.onnx").stat().st_size
    zeros = int((model.net[0].weight == 0).sum())
    assert f"written: best.onnx, {size:,} bytes, " in printed
    assert f"zeros: {zeros:,} of 800 weights, sparsity {zeros / 800:.4f}" in printed
    assert "the file takes batches of any size" in printed
    images, labels, scales = validation_images()
    logits = model(images, scale=scales)["logits"]
    session = onnxruntime.InferenceSession("best.onnx")
    inputs = {"images": images.numpy(), "scale": scales.numpy()}
    np.testing.assert_allclose(session.run(None, inputs)[0], logits.detach(), atol=1e-5)
    loss = torch.nn.functional.cross_entropy(logits, labels).item()
    before, after, change = row(printed, "val_loss")
    assert before == after == pytest.approx(loss, abs=1e-4)
    assert change == 0


def validation_images():
    from deployed import Data

    return Data().val_dataloader().dataset[:]


class TestExecutorch:
    """Of a file that takes batches of a single size."""

    @pytest.fixture(autouse=True)
    def _library(self):
        pytest.importorskip("executorch", reason="needs lightning-prune[executorch]")

    @pytest.mark.slow
    def test_the_file_is_validated_in_pieces_of_the_size_of_the_example(
        self, model, export, files, capsys
    ):
        export("--format", "executorch")
        assert files() == {"best.pte"}
        printed = capsys.readouterr().out
        zeros = int((model.net[0].weight == 0).sum())
        assert f"written: best.pte, {Path('best.pte').stat().st_size:,} bytes, " in printed
        assert f"zeros: {zeros:,} of 800 weights, sparsity {zeros / 800:.4f}" in printed
        assert "the file takes batches of 16 only, the size of the example" in printed
        images, labels, scales = validation_images()  # 40, so the last batch has 8
        logits = model(images, scale=scales)["logits"]
        loss = torch.nn.functional.cross_entropy(logits, labels).item()
        before, after, change = row(printed, "val_loss")
        assert before == after == pytest.approx(loss, abs=1e-4)
        assert change == 0

    @pytest.mark.slow
    def test_a_validation_of_other_shapes_measures_nothing_and_says_so(self, export, capsys):
        export("--model", "deployed.LengthsWithExample", "--format", "executorch")
        assert (
            "the quality of the file was not measured: validation calls forward with a shape of"
            in capsys.readouterr().out
        )


def test_a_sparse_file_loads_back_into_the_model(model, export, files, capsys):
    export("--format", "sparse")
    assert files() == {"best.safetensors"}
    printed = capsys.readouterr().out
    assert "the file loads back bit for bit, so it keeps the quality of the model" in printed
    loaded = load_sparse("best.safetensors")
    assert list(loaded) == list(model.state_dict())
    assert all(torch.equal(loaded[name], t) for name, t in model.state_dict().items())


def test_a_sparse_file_has_the_types_of_training_and_the_bytes_of_a_budget(model, export):
    export("--format", "sparse", "--trainer.precision", "bf16-true")
    loaded = load_sparse("best.safetensors")
    assert loaded["net.0.weight"].dtype == torch.bfloat16
    size = Path("best.safetensors").stat().st_size
    assert size == measure_bytes(model.bfloat16(), BytesBudget(keep=0.5))


def test_a_rounded_sparse_file_is_validated(export, files, capsys):
    export("--format", "sparse", "--precision", "fp16")
    assert files() == {"best-fp16.safetensors"}
    before, after, _ = row(capsys.readouterr().out, "val_loss")
    assert before == pytest.approx(after, abs=1e-3)


@needs(TorchFloor.ONNX_OF_NONE)
@pytest.mark.slow
def test_a_validation_without_forward_measures_nothing_and_says_so(export, files, capsys):
    export("--model", "deployed.SilentWithExample")
    assert files() == {"best.onnx"}
    printed = capsys.readouterr().out
    assert (
        "the quality of the file was not measured: validation never calls the model's forward"
        in printed
    )
    assert "val_sum" not in printed


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Lengths", "LengthsWithExample"])
def test_a_validation_of_other_shapes_measures_nothing_and_says_so(name, export, capsys):
    export("--model", f"deployed.{name}")
    printed = capsys.readouterr().out
    assert (
        "the quality of the file was not measured: validation calls forward with a shape of"
        in printed
    )


@pytest.mark.slow
def test_a_file_for_any_length_is_validated_and_holds_the_recipe(export, capsys):
    checkpoint = torch.load("best.ckpt", weights_only=True)
    torch.save(checkpoint | {"callbacks": {"P": {"recipe": "sparsity: 0.5\n"}}}, "best.ckpt")
    export("--model", "deployed.LengthsWithExample", "--dynamic", "images:1")
    printed = capsys.readouterr().out
    assert "val_mean" in printed
    assert "not measured" not in printed
    facts = onnxruntime.InferenceSession("best.onnx").get_modelmeta().custom_metadata_map
    assert facts["lightning_prune.recipe"] == "sparsity: 0.5\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batches", "0"], "need batches >= 1, got batches=0"),
        (["--reduce_range", "true"], "need int8 for reduce_range=True, got precision=fp32"),
        (["--format", "sparse", "--precision", "int8"], "need fp32 or fp16 for a sparse file, got"),
        (
            ["--format", "executorch", "--precision", "int8"],
            "need fp32 for an ExecuTorch file, got precision=int8",
        ),
        (
            ["--format", "executorch", "--reduce_range", "true"],
            "need int8 for reduce_range=True, got precision=fp32",
        ),
        (["--dynamic", "images"], "need names and dimensions, such as ids:1,mask:1, got dynamic="),
        (["--dynamic", "image:1"], "got 'image'; the inputs are images"),
        (
            ["--format", "sparse", "--dynamic", "images:1"],
            "need format=onnx for dynamic=images:1, got format=sparse",
        ),
        (["--precision", "int4"], "int4"),
        (["--outptu", "x"], "did you mean 'output'?"),
        (["--output", "."], "need the name of a file to write, got the folder output='.'"),
        (["--output", "best.ckpt"], "need an output other than ckpt_path, got output='best.ckpt'"),
        (["--ckpt_path", "no.ckpt"], "need an existing checkpoint, got ckpt_path='no.ckpt'"),
        (["--ckpt_path", "other.ckpt"], "need a checkpoint of Lightning, got ckpt_path='other"),
        (["--ckpt_path", "small.ckpt"], "need a checkpoint of the model, got ckpt_path='small"),
        (["--trainer.devices", "2"], "need one process to export, got world_size=2"),
        (
            ["--model", "deployed.Silent"],
            "need an example of the arguments of forward, got no",
        ),
        (
            ["--model", "deployed.SilentWithExample", "--precision", "int8"],
            "need a validation_step that calls forward (as self(...)) to calibrate int8",
        ),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_written(
    arguments, message, export, folder, files, capsys
):
    torch.save({}, folder / "other.ckpt")
    torch.save({"state_dict": {"net.0.weight": torch.rand(2, 2)}}, folder / "small.ckpt")
    with pytest.raises(SystemExit) as end:
        export(*arguments)
    assert end.value.code == 2
    assert message in capsys.readouterr().err
    assert files() == {"other.ckpt", "small.ckpt"}


def test_a_missing_library_is_named_with_its_extra(export, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(SystemExit):
        export()
    assert "need onnxscript for files to deploy, got none; pip" in capsys.readouterr().err


def test_a_missing_executorch_is_named_with_its_extra(export, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "executorch", None)
    with pytest.raises(SystemExit):
        export("--format", "executorch")
    assert "pip install 'lightning-prune[executorch]'" in capsys.readouterr().err


@pytest.mark.slow
def test_the_demo_is_exported(tmp_path, monkeypatch, prune_cli, capsys):
    monkeypatch.chdir(ROOT)

    def main(command, *arguments):
        arguments += ("--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "no")
        arguments += ("--trainer.logger.save_dir", tmp_path)
        prune_cli(command, "--config", "configs/digits.yaml", *arguments)

    main("fit", "--trainer.max_epochs", "1")
    (checkpoint,) = tmp_path.glob("**/last.ckpt")
    options = ["--precision", "int8", "--reduce_range", "false"]
    for more in ([], options, ["--format", "sparse"]):
        main("export", "--ckpt_path", str(checkpoint), *more)
        printed = capsys.readouterr().out
        assert "zeros: 76,40" in printed
        if more == options:
            assert "the weights use 8 of 8 bits (reduce_range=False)" in printed
            before, after, change = row(printed, "val_loss")
            assert 0 < abs(change) < 0.1
            assert after == pytest.approx(before + change, abs=2e-4)
    names = {path.name for path in checkpoint.parent.iterdir()}
    assert names >= {"last.onnx", "last-int8.onnx", "last.safetensors"}
    assert len(list(tmp_path.glob("lightning_logs/*"))) == 1
