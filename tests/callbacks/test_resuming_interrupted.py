"""Runs that an exception or a signal ends, resumed from what they left."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from lightning.pytorch.callbacks import LambdaCallback, ModelCheckpoint

from lightning_prune import PruningCallback
from tests.callbacks.runs import SaliencySum, fit
from tests.commands import ROOT


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")  # no ModelCheckpoint
@pytest.mark.parametrize("exception", [KeyError, KeyboardInterrupt])
@pytest.mark.works_with("Stop and resume", "after an exception or Ctrl-C, `save_on_exception`")
def test_an_exception_in_the_ramp_resumes_exactly(exception, tmp_path):
    def pruning():
        return PruningCallback(criterion=SaliencySum())

    def fail(trainer, module, outputs, batch, batch_idx):
        if trainer.global_step == 8:
            raise exception

    whole = fit(pruning=pruning())
    keep = ModelCheckpoint(dirpath=tmp_path, filename="left", save_on_exception=True)
    with pytest.raises((KeyError, KeyboardInterrupt, SystemExit)):
        fit(LambdaCallback(on_train_batch_end=fail), keep, pruning=pruning())
    (left,) = tmp_path.glob("*left*.ckpt")
    assert torch.load(left, weights_only=True)["callbacks"]["PruningCallback"]["steps"] == [8]
    resumed = fit(pruning=pruning(), resume=left, seed=1)
    assert not whole.after(8).differences(resumed)


KILLED = """
import sys, torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning_prune import PruningCallback
from tests.callbacks.runs import SaliencySum, fit
torch.set_num_threads(1)
keep = ModelCheckpoint(
    dirpath=sys.argv[1], filename="{step}", every_n_train_steps=1, save_top_k=-1
)
fit(keep, pruning=PruningCallback(criterion=SaliencySum()), max_epochs=100)
"""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")  # no ModelCheckpoint
@pytest.mark.works_with("Stop and resume", "after SIGKILL in the ramp, from the last checkpoint")
def test_a_killed_run_resumes_exactly_from_its_last_checkpoint(tmp_path):
    def pruning():
        return PruningCallback(criterion=SaliencySum())

    environment = {**os.environ, "TMPDIR": str(tmp_path)}  # what the victim leaves behind
    folder = tmp_path / "checkpoints"
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, folder], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL
    ) as victim:
        try:
            deadline = time.monotonic() + 120
            while len(list(folder.glob("*.ckpt"))) < 100:
                assert victim.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.01)
        finally:
            victim.kill()
    assert victim.returncode == -signal.SIGKILL
    left = sorted(folder.glob("*.ckpt"), key=lambda path: int(path.stem.split("=")[1]))
    last = int(left[-1].stem.split("=")[1])
    reached = torch.load(left[-1], weights_only=True)["callbacks"]["PruningCallback"]
    assert 0 < reached["due"]["0"] < 0.75
    whole = fit(pruning=pruning(), max_epochs=100)
    resumed = fit(pruning=pruning(), resume=left[-1], seed=1, max_epochs=100)
    assert not whole.after(last).differences(resumed)
