"""Saved steps that are the last of an epoch, from which Lightning cannot be resumed twice."""

import warnings

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, TensorDataset

from lightning_prune import PruningCallback
from tests.callbacks.conftest import Classifier


def fit(folder, *, saving, resume=None, pruning=True, **options):
    """Train for six epochs of seven batches, and return the number of steps."""
    data = TensorDataset(torch.randn(56, 16), torch.arange(56) % 4)
    save = ModelCheckpoint(folder, filename="{step}", save_top_k=-1, **saving)
    trainer = Trainer(
        callbacks=[save, *([PruningCallback()] if pruning else [])],
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **({"max_epochs": 6} | options),
    )
    trainer.fit(Classifier(), DataLoader(data, batch_size=8), ckpt_path=resume)
    return trainer.global_step


@pytest.mark.parametrize(
    ("every", "options", "step"),
    [
        (3, {}, 21),
        (7, {}, 7),
        (1, {}, 7),
        (3, {"accumulate_grad_batches": 2}, 12),
        (6, {}, None),  # the last step of the run, 42, is the first that meets
        (3, {"max_epochs": 3}, None),
        (3, {"max_steps": 21}, None),
        (5, {"accumulate_grad_batches": 2, "max_epochs": 5}, None),
    ],
)
def test_a_saved_step_that_ends_an_epoch_is_warned_of(every, options, step, tmp_path):
    saving = {"every_n_train_steps": every}
    if step is None:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*every_n_train_steps")
            fit(tmp_path, saving=saving, **options)
        return
    steps = 4 if options else 7
    message = (
        rf"every_n_train_steps={every}\) saves at step {step}, the last of an epoch of {steps} "
    )
    with pytest.warns(UserWarning, match=message):
        fit(tmp_path, saving=saving, **options)


@pytest.mark.parametrize("pruning", [False, True])
@pytest.mark.parametrize(
    ("saving", "resumed", "end"),
    [
        ({"every_n_train_steps": 3}, (21, 24), 45),  # three steps too many
        ({"every_n_train_steps": 3}, (18, 24), 42),
        ({"every_n_epochs": 1}, (21, 28), 42),
    ],
)
def test_lightning_resumes_twice_exactly_unless_a_saved_step_ends_an_epoch(
    saving, resumed, end, pruning, tmp_path
):
    options = {"saving": saving, "pruning": pruning}
    assert fit(tmp_path / "0", **options) == 42
    first, second = resumed
    assert fit(tmp_path / "1", resume=tmp_path / f"0/step={first}.ckpt", **options) == 42
    assert fit(tmp_path / "2", resume=tmp_path / f"1/step={second}.ckpt", **options) == end
