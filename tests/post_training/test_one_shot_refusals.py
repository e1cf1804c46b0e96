"""Pruning without training that cannot work: errors, and a model that stays as it was."""

import os

import pytest
import torch
from lightning.pytorch import LightningModule
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lightning_prune import (
    PruningCallback,
    UniformAllocation,
    prune_once,
)
from tests.post_training.models import Model, WeightTimesGradient, state_of, trainer_with


def test_an_error_in_the_training_step_leaves_the_model_as_it_was(monkeypatch):
    model = Model()
    trainer = trainer_with(PruningCallback(sparsity=0.5, criterion=WeightTimesGradient()))
    step = model.training_step

    def failing(batch, batch_idx):
        if batch_idx == 1:
            raise RuntimeError("not in eval mode")
        model.net[1](torch.randn(4, 16))
        return step(batch, batch_idx)

    monkeypatch.setattr(model, "training_step", failing)
    before, modes = state_of(model), [module.training for module in model.modules()]
    with pytest.raises(RuntimeError, match="not in eval mode"):
        prune_once(trainer, model, train_mode=True, batches=4)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert model.trainer is trainer
    assert all(parameter.grad is None for parameter in model.parameters())


class Stream(IterableDataset):
    def __init__(self, batches=3):
        self.batches = batches

    def __iter__(self):
        yield from [(torch.randn(8, 8), torch.arange(8) % 4)] * self.batches


class Unlearning(LightningModule):
    """A network without training batches."""

    def __init__(self):
        super().__init__()
        self.net = Model().net

    training_step, validation_step = Model.training_step, Model.validation_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters())

    def val_dataloader(self):
        return DataLoader(TensorDataset(torch.randn(8, 8), torch.arange(8) % 4), batch_size=8)


class Emptied(Unlearning):
    def train_dataloader(self):
        return []


@pytest.mark.parametrize(
    ("kind", "limit", "found"),
    [(Unlearning, 1.0, "no train_dataloader in Unl"), (Model, 0, "limit_train_batches=0")],
)
def test_without_training_batches_only_the_statistics_cannot_be_had(kind, limit, found):
    model = kind()
    before = state_of(model)
    pruning = PruningCallback(sparsity=0.75, allocation=UniformAllocation())
    trainer = trainer_with(pruning, limit_train_batches=limit)
    with pytest.raises(ValueError, match=f"got {found}.*; set statistics=0"):
        prune_once(trainer, model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert prune_once(trainer, model, statistics=0).pruner.sparsity == 0.75
    assert (model.net[0].weight == 0).float().mean() == 0.75
    model = kind()
    del model.net[1]
    assert prune_once(trainer, model).pruner.sparsity == 0.75
    pruning = PruningCallback(sparsity=0.75, criterion=WeightTimesGradient())
    trainer = trainer_with(pruning, limit_train_batches=limit)
    with pytest.raises(ValueError, match=f"need batches=16 training batches, got {found}"):
        prune_once(trainer, model)


@pytest.mark.filterwarnings("ignore:Total length of")
def test_an_empty_loader_is_refused():
    trainer, model = trainer_with(PruningCallback()), Emptied()
    with pytest.raises(ValueError, match="need a training batch, got an empty train_dataloader"):
        prune_once(trainer, model, statistics=0)
    assert (model.net[0].weight != 0).all()


def test_an_empty_stream_leaves_the_model_dense(monkeypatch):
    model = Unlearning()
    before = state_of(model)
    stream = DataLoader(Stream(0), batch_size=None)
    monkeypatch.setattr(model, "train_dataloader", lambda: stream)
    with pytest.raises(ValueError, match="new statistics, got none; set statistics=0"):
        prune_once(trainer_with(PruningCallback()), model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_new_statistics_that_fail_leave_the_model_dense(monkeypatch):
    model = Model()
    before = state_of(model)

    def fail(batch, batch_idx):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(model, "training_step", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        prune_once(trainer_with(PruningCallback()), model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("stream", [None, Stream()])
def test_too_few_batches_are_refused(stream, monkeypatch):
    model = Model()
    if stream is not None:
        loader = DataLoader(stream, batch_size=None)
        monkeypatch.setattr(model, "train_dataloader", lambda: loader)
        monkeypatch.setattr(
            model, "configure_optimizers", lambda: torch.optim.SGD(model.parameters())
        )
    trainer = trainer_with(PruningCallback(criterion=WeightTimesGradient()))
    found = 6 if stream is None else 3
    with pytest.raises(ValueError, match=f"need at least batches=16 training .* got {found}"):
        prune_once(trainer, model)
    assert len(model.modes) == (0 if stream is None else 3)


def test_what_cannot_work_is_refused_before_anything_happens(tmp_path):
    pruning = trainer_with(PruningCallback())
    torch.save({"state_dict": {}}, tmp_path / "dense.ckpt")
    os.link(tmp_path / "dense.ckpt", tmp_path / "linked.ckpt")
    dense = {"ckpt_path": tmp_path / "dense.ckpt"}
    unwritable = tmp_path / "dense.ckpt" / "pruned.ckpt"
    for trainer, arguments, message in [
        (trainer_with(), {}, "need a PruningCallback .* got none"),
        (trainer_with(PruningCallback(), devices=2), {}, "need one process .* got world_size=2"),
        (pruning, {"batches": 0}, "need batches >= 1, got batches=0"),
        (pruning, {"statistics": -1}, "need statistics >= 0, got statistics=-1"),
        (pruning, {"ckpt_path": tmp_path / "no"}, "need an existing checkpoint, got ckpt_path="),
        (pruning, {"output": tmp_path}, "need the name of a file to write, got the folder"),
        (pruning, {"output": unwritable}, "that can be written, got output=.*: Not a directory"),
        (pruning, dense | {"output": f"{tmp_path}/./dense.ckpt"}, "need an output other than ckpt"),
        (pruning, dense | {"output": tmp_path / "linked.ckpt"}, "need an output other than ckpt"),
    ]:
        model = Model()
        with pytest.raises(ValueError, match=message):
            prune_once(trainer, model, **arguments)
        with pytest.raises(RuntimeError, match="not attached to a `Trainer`"):
            model.trainer  # noqa: B018
