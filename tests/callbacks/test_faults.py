import errno
import pickle
import resource
import signal
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from lightning_prune import MagnitudeCriterion, PruningCallback
from tests.callbacks.conftest import Classifier
from tests.callbacks.runs import SaliencySum, Save, fit
from tests.commands import run_python


def pruning() -> PruningCallback:
    return PruningCallback(criterion=SaliencySum())


def keep(folder: Path) -> ModelCheckpoint:
    """Overwrites one file after each step."""
    return ModelCheckpoint(
        dirpath=folder, filename="last", every_n_train_steps=1, enable_version_counter=False
    )


class SmallDisk(Callback):
    """From a step on no file may grow beyond a few bytes, as the kernel sees to it."""

    def __init__(self, full_at: int) -> None:
        self.full_at = full_at

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == self.full_at:
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))


@pytest.fixture
def _large_disk_again():
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def assert_resumes_exactly(path: Path, step: int, *callbacks: Callback, **options: Any) -> None:
    assert torch.load(path, weights_only=True)["global_step"] == step
    whole = fit(pruning=pruning(), **options)
    resumed = fit(*callbacks, pruning=pruning(), resume=path, seed=1, **options)
    assert not whole.after(step).differences(resumed)


@pytest.mark.usefixtures("_large_disk_again")
@pytest.mark.works_with("Faults", "the disk fills up while a checkpoint is written")
def test_a_full_disk_is_an_error_and_leaves_the_last_checkpoint_as_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))  # as on one file system
    victim = pruning()
    with pytest.raises(OSError) as error:  # noqa: PT011
        fit(SmallDisk(full_at=7), keep(tmp_path), pruning=victim)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    assert error.value.errno in (errno.EFBIG, errno.ENOSPC)
    assert 0 < victim.sparsity < 0.9  # the callback can still be asked
    assert_resumes_exactly(tmp_path / "last.ckpt", 6, keep(tmp_path))


KILLED_WHILE_WRITING = """
import os, resource, signal, sys, torch
from pathlib import Path
from tests.callbacks.runs import fit
from tests.callbacks.test_faults import SmallDisk, keep, pruning
torch.set_num_threads(1)
signal.signal(signal.SIGXFSZ, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
fit(SmallDisk(full_at=7), keep(Path(sys.argv[1])), pruning=pruning())
"""


@pytest.mark.slow
@pytest.mark.works_with("Faults", "SIGKILL while a checkpoint is written")
def test_a_kill_during_the_write_leaves_the_last_checkpoint_as_it_was(tmp_path):
    folder, scratch = tmp_path / "checkpoints", tmp_path / "scratch"
    scratch.mkdir()
    run_python(
        "-c",
        KILLED_WHILE_WRITING,
        folder,
        codes=[-signal.SIGKILL],
        environment={"TMPDIR": str(scratch)},
    )
    assert {path.stat().st_size for path in scratch.iterdir()} == {4096}  # half a checkpoint
    assert_resumes_exactly(folder / "last.ckpt", 6, keep(folder))


@pytest.mark.works_with("Faults", "a truncated checkpoint")
def test_a_truncated_checkpoint_is_an_error_and_the_one_before_it_resumes(tmp_path):
    fit(Save(tmp_path), pruning=pruning())
    last = tmp_path / "9.ckpt"
    with zipfile.ZipFile(last) as archive:
        assert archive.testzip() is None
    complete, victim = last.read_bytes(), pruning()
    for size in (0, 1, 100, 4096, len(complete) // 2, len(complete) - 1):
        last.write_bytes(complete[:size])
        assert not zipfile.is_zipfile(last)  # how to find out
        with pytest.raises((EOFError, OSError, RuntimeError, pickle.UnpicklingError)):  # torch's
            fit(pruning=victim, resume=last)
    whole = fit(pruning=pruning())
    resumed = fit(pruning=victim, resume=tmp_path / "8.ckpt", seed=1)
    assert not whole.after(8).differences(resumed)


class Wider(Classifier):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 4))


class Newcomer(Classifier):
    strict_loading = False

    def __init__(self):
        super().__init__()
        self.body, self.net = self.net, nn.Identity()

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.body(batch[0]), batch[1])


@pytest.mark.works_with("Faults", "the checkpoint of another model", refused=True)
@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Wider, r"size mismatch for net.0.weight.*\[32, 16\].*\[64, 16\]"),
        (Newcomer, r"'net.0.weight' is \[32, 16\] in the state and absent.*'net.2.weight'"),
    ],
)
def test_the_checkpoint_of_another_model_is_refused_with_the_differences(model, message, tmp_path):
    fit(Save(tmp_path), pruning=pruning())
    victim = pruning()
    with pytest.raises((RuntimeError, ValueError), match=f"(?s){message}"):
        fit(pruning=victim, model=model(), resume=tmp_path / "9.ckpt")
    fit(pruning=victim, model=model())
    assert victim.sparsity == pytest.approx(0.9, abs=1e-3)


class Poison(Callback):
    """Writes a NaN into a weight before a step."""

    def __init__(self, at: int) -> None:
        self.at = at

    def on_train_batch_start(self, trainer: Any, module: Classifier, *_: Any) -> None:
        if trainer.global_step == self.at:
            weights = module.net[2].weight.detach()
            weights[weights != 0] = torch.nan


@pytest.mark.works_with("Faults", "NaN in a weight when an update is due")
@pytest.mark.parametrize("criterion", [MagnitudeCriterion(), SaliencySum()])
def test_nan_in_a_weight_is_an_error_that_names_the_tensor(criterion, tmp_path):
    def callback():
        return PruningCallback(criterion=criterion)

    save = Save(tmp_path)
    with pytest.raises(ValueError, match=r"NaN or infinite.*'net.[02].weight' at step 7"):
        fit(Poison(7), save, pruning=callback())
    assert save.saved == list(range(1, 8))
    whole = fit(pruning=callback())
    resumed = fit(pruning=callback(), resume=tmp_path / "7.ckpt", seed=1)
    assert not whole.after(7).differences(resumed)


@pytest.mark.works_with("Faults", "NaN everywhere after the last update: zeros stay zeros")
def test_pruned_weights_stay_zero_where_all_others_become_nan():
    clip = {"gradient_clip_val": 1.0}  # by a norm that is NaN: so is each gradient
    pruning, model = PruningCallback(), Classifier()
    fit(Poison(13), pruning=pruning, model=model, **clip)
    parameters = dict(model.named_parameters())
    for name, mask in pruning.masks.items():
        assert torch.equal(parameters[name].isnan(), mask)
        assert not parameters[name][~mask].any()
