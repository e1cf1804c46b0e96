"""A bad checkpoint, or a Trainer that does not fit, is an error in a line; a bug is a traceback."""

import pickle
import traceback
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from lightning_prune.deploy.checkpoints import read_lightning_checkpoint

MODULE = """
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Model(LightningModule):
    def __init__(self, width: int = 6):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 2))
        self.example_input_array = torch.ones(2, 4)

    def forward(self, values):
        return self.net(values)

    def training_step(self, batch, batch_idx):
        return self(batch[0]).square().mean()

    def validation_step(self, batch, batch_idx):
        self.log("loss", self(batch[0]).square().mean())

    def predict_step(self, batch, batch_idx):
        return self(batch[0])

    test_step = validation_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class Data(LightningDataModule):
    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.ones(4, 4)), batch_size=2)

    val_dataloader = test_dataloader = predict_dataloader = train_dataloader
"""

CONFIG = """
seed_everything: 1
trainer:
  accelerator: cpu
  logger: false
  enable_progress_bar: false
  enable_model_summary: false
  enable_checkpointing: false
  log_every_n_steps: 1
  max_epochs: 2
  callbacks:
    - {class_path: lightning_prune.PruningCallback, init_args: {sparsity: 0.5}}
model: bad_checkpoints.Model
data: bad_checkpoints.Data
"""

LIGHTNING = ("fit", "validate", "test", "predict")
COMMANDS = dict.fromkeys((*LIGHTNING, "prune", "shrink", "export"), ())
COMMANDS["report"] = ("--latency", "false")
COMMANDS["sensitivity"] = ("--monitor", "loss", "--mode", "min", "--plot", "false")
COMMANDS["search"] = (*COMMANDS["sensitivity"], "--tolerance", "1")


@pytest.fixture(autouse=True)
def _project(project):
    project("bad_checkpoints", MODULE, CONFIG)


class Foreign:
    pass


def complete(net=None, **changes):
    """Return a checkpoint as Lightning writes it."""
    torch.manual_seed(0)
    net = net or nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    weights = {f"net.{name}": tensor for name, tensor in net.state_dict().items()}
    training = {"optimizer_states": [], "lr_schedulers": [], "callbacks": {}}
    start = {"epoch": 0, "global_step": 0, "pytorch-lightning_version": "2.6.0"}
    return {"state_dict": weights} | training | start | changes


def save(content):
    torch.save(content, "bad.ckpt")


def truncate():
    save(complete())
    whole = Path("bad.ckpt").read_bytes()
    Path("bad.ckpt").write_bytes(whole[: len(whole) // 2])


def zip_other_files():
    with zipfile.ZipFile("bad.ckpt", "w") as file:
        file.writestr("data.txt", "text")


def compress():
    save(complete(padding=torch.zeros(100_000)))
    with zipfile.ZipFile("bad.ckpt") as file:
        records = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile("bad.ckpt", "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in records.items():
            file.writestr(name, content)


def save_script():
    torch.jit.script(nn.Linear(1, 1)).save("bad.ckpt")


UNREADABLE = "need a checkpoint that can be loaded, got ckpt_path='bad.ckpt': "
DAMAGED = UNREADABLE + "it is cut off, damaged or of another format"
NO_KEYS = "need a checkpoint of Lightning, got ckpt_path='bad.ckpt' without a state_dict"
FILES = {
    "empty": (lambda: Path("bad.ckpt").touch(), UNREADABLE + "the file is empty"),
    "text": (lambda: Path("bad.ckpt").write_text("seed_everything: 1"), DAMAGED),
    "cut off": (truncate, DAMAGED),
    "another zip": (zip_other_files, DAMAGED),
    "compressed": (compress, DAMAGED),
    "pickle": (lambda: Path("bad.ckpt").write_bytes(pickle.dumps(Foreign())), DAMAGED),
    "objects": (
        lambda: save(complete(hyper_parameters={"other": Foreign()})),
        UNREADABLE + f"it holds objects of '{__name__}.Foreign'; keep them out",
    ),
    "list": (lambda: save([1]), "need a checkpoint, got ckpt_path='bad.ckpt' with a list in it"),
    "state dict": (lambda: save(complete()["state_dict"]), NO_KEYS),
    "strange state dict": (lambda: save({"state_dict": {1: 2}}), NO_KEYS),
    "strange hyperparameters": (
        lambda: save(complete(hyper_parameters=3)),
        "need a checkpoint of Lightning, got ckpt_path='bad.ckpt' without names of hyper",
    ),
}


@pytest.fixture
def refuse(prune_cli, capsys):
    """Run a command that must fail, and return the lines on stderr that are not Lightning's."""

    def run(command, *arguments):
        given = ["--config", "recipe.yaml", *arguments]
        if "--ckpt_path" not in given:
            given += ["--ckpt_path", "bad.ckpt"]
        Path("config.yaml").unlink(missing_ok=True)  # Lightning refuses to write it again
        with pytest.raises(SystemExit) as end:
            prune_cli(command, *given, *COMMANDS[command])
        assert end.value.code == 2
        error = capsys.readouterr().err
        assert "weights_only" not in error
        (line,) = [line for line in error.splitlines() if not line.startswith(INFORMATION)]
        return line.removeprefix("error: ")

    return run


INFORMATION = ("GPU", "TPU", "HPU", "\U0001f4a1", "Restoring", "`Trainer", "Seed set", "Loaded")


@pytest.mark.parametrize("kind", FILES)
def test_a_file_that_is_no_checkpoint_is_refused_with_the_reason(kind):
    write, message = FILES[kind]
    write()
    with pytest.raises(ValueError, match=r"^need a checkpoint") as caught:
        read_lightning_checkpoint("bad.ckpt")
    assert str(caught.value).startswith(message)
    text = "".join(traceback.format_exception(caught.value))
    assert "weights_only=False" not in text


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_says_in_a_line_that_a_file_is_no_checkpoint(command, refuse):
    truncate()
    assert refuse(command) == DAMAGED


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_says_in_a_line_that_a_checkpoint_is_absent_or_of_another_model(
    command, refuse
):
    assert "ckpt_path='absent.ckpt'" in refuse(command, "--ckpt_path", "absent.ckpt")
    save(complete(nn.Sequential(nn.Linear(4, 6), nn.ReLU())))
    line = refuse(command)
    assert line.startswith("need a checkpoint of th")
    assert "got ckpt_path='bad.ckpt'" in line
    assert 'Missing key(s) in state_dict: "net.2.weight", "net.2.bias".' in line


@pytest.mark.parametrize("command", ["test", "export"])
def test_a_weight_of_16_tebibytes_in_a_small_file_is_refused_without_memory(command, refuse):
    checkpoint = complete()
    checkpoint["state_dict"]["net.0.weight"] = torch.zeros(()).expand(2**38, 2**4)
    save(checkpoint)
    assert Path("bad.ckpt").stat().st_size < 8000
    assert "size mismatch for net.0.weight" in refuse(command)


@pytest.mark.parametrize("command", ["fit", "prune"])
def test_a_folder_is_not_taken_for_a_checkpoint(command, refuse):
    assert "folder" in refuse(command, "--ckpt_path", ".")


@pytest.mark.parametrize("command", ["prune", "sensitivity", "search"])
def test_a_shrunk_checkpoint_is_not_pruned_or_measured(command, refuse):
    save(complete(shrunk_attributes={}))
    assert refuse(command).startswith("need a checkpoint that is not shrunk, got ckpt_path='bad.")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"optimizer_states": [{}]}, "KeyError: 'param_groups'"),
        ({"pytorch-lightning_version": "one"}, "Invalid version: 'one'"),
        ({"loops": {"fit_loop": 3}}, "AttributeError: 'int' object has no attribute 'copy'"),
        ({"callbacks": {"PruningCallback": {"masks": 3}}}, "need the state of a Pruner, got a"),
        ({"hyper_parameters": {"_class_path": "no.Such"}}, "'bad.ckpt': unknown module 'no'"),
    ],
)
def test_a_training_state_that_does_not_load_is_a_line(changes, reason, refuse):
    save(complete(**changes))
    assert reason in refuse("fit")


def test_hyperparameters_without_a_class_leave_the_model_to_the_config(prune_cli, capsys):
    save(complete(hyper_parameters={"width": 6, "other": 1}))
    prune_cli("test", "--config", "recipe.yaml", "--ckpt_path", "bad.ckpt")
    assert "loss" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--pruning.sparsity", "{'nothing': 0.5}"), "need a glob that matches"),
        (("--trainer.limit_train_batches", "0.1"), "You requested to check 0.1 of the"),
        (("--ckpt_path", "best"), '`.fit(ckpt_path="best")` is set but'),
    ],
)
def test_a_refusal_of_ours_or_of_lightning_is_a_line(options, message, refuse):
    save(complete())
    assert refuse("fit", *options).startswith(message)


@pytest.mark.parametrize(
    ("method", "error"),
    [
        ("training_step", KeyError("batch")),
        ("configure_optimizers", ValueError("need a rate, got rate=None")),
        ("on_load_checkpoint", RuntimeError("a bug")),
        ("train_dataloader", FileNotFoundError("data.csv")),
    ],
)
def test_a_bug_in_the_code_of_a_user_shows_the_traceback(method, error, prune_cli, monkeypatch):
    import bad_checkpoints

    owner = bad_checkpoints.Data if "loader" in method else bad_checkpoints.Model

    def fail(*arguments):
        raise error

    monkeypatch.setattr(owner, method, fail)
    save(complete())
    with pytest.raises(type(error)):
        prune_cli("fit", "--config", "recipe.yaml", "--ckpt_path", "bad.ckpt")


def test_a_checkpoint_of_an_older_torch_with_code_names_the_version_without(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.9.1")
    path = tmp_path / "averaged.ckpt"
    torch.save({"state_dict": {}, "lr_schedulers": [torch.optim.swa_utils.SWALR]}, path)
    with pytest.raises(ValueError, match=r"got ckpt_path=.*: need torch>=2\.10 to write a check"):
        read_lightning_checkpoint(path)
