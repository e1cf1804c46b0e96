"""Pruning without training."""

import errno
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins.io import AsyncCheckpointIO
from torch import nn

from lightning_prune import (
    Criterion,
    GlobalAllocation,
    PruningCallback,
    RandomCriterion,
    UniformAllocation,
    prune_once,
)
from tests.conftest import answers
from tests.hooks import registered
from tests.post_training.models import Gradient, Model, WeightTimesGradient, state_of, trainer_with


class GAN(Model):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.other = nn.Linear(8, 4)

    def training_step(self, batch, batch_idx):
        first, second = self.optimizers()
        for index, (optimizer, net) in enumerate([(first, self.net), (second, self.other)]):
            if index == 1 and batch_idx % 2 == 1:
                continue
            optimizer.zero_grad()
            self.manual_backward(nn.functional.cross_entropy(net(batch[0]), batch[1]))
            optimizer.step()
            assert optimizer.param_groups[0]["lr"] == 0.1
        self.modes.append(self.training)

    def configure_optimizers(self):
        return [torch.optim.SGD(net.parameters(), lr=0.1) for net in (self.net, self.other)]


def test_magnitudes_need_no_training_batch():
    model = Model()
    callback = PruningCallback(sparsity=0.75, allocation=UniformAllocation())
    report = prune_once(trainer_with(callback), model, statistics=0)
    assert model.modes == []
    for layer in (model.net[0], model.net[4]):
        assert (layer.weight == 0).float().mean() == 0.75
    assert report.pruner.sparsity == 0.75


def test_a_frozen_layer_that_a_glob_names_is_pruned_too():
    model = Model()
    model.net[0].requires_grad_(False)
    prune_once(trainer_with(PruningCallback(sparsity={"*": 0.75, "net.0": 0.5})), model)
    assert (model.net[0].weight == 0).float().mean() == 0.5
    assert (model.net[4].weight == 0).float().mean() == 0.75


@pytest.mark.parametrize("statistics", [0, 2])
@pytest.mark.parametrize("train_mode", [False, True])
@pytest.mark.parametrize("kind", [Model, GAN])
def test_only_what_is_pruned_changes_and_statistics(kind, train_mode, statistics):
    model = kind()
    model.net[0].eval()
    before, hooks = state_of(model), registered(model)
    modes = [module.training for module in model.modules()]
    callback = PruningCallback(sparsity=0.5, criterion=WeightTimesGradient())
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    report = prune_once(
        trainer_with(callback), model, batches=5, train_mode=train_mode, statistics=statistics
    )
    assert torch.equal(torch.rand(1), expected)
    assert model.modes == [train_mode] * (5 + statistics)
    masks = report.pruner.masks
    assert report.pruner.sparsity == pytest.approx(0.5, abs=0.01)
    renewed = [] if statistics == 0 else list(model.net[1].state_dict(prefix="net.1."))[2:]
    for name, tensor in model.state_dict().items():
        is_as_before = torch.equal(tensor, before[name] * masks.get(name, 1))
        assert is_as_before != (name in renewed), name
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())
    assert registered(model) == hooks


@pytest.mark.parametrize("criterion", answers(Criterion))
def test_every_criterion_prunes_without_training(criterion):
    model = Model()
    hooks, modes = registered(model), [module.training for module in model.modules()]
    callback = PruningCallback(sparsity=0.5, criterion=criterion(), allocation=UniformAllocation())
    report = prune_once(trainer_with(callback), model, batches=3)
    assert report.pruner.sparsity == 0.5
    assert registered(model) == hooks
    assert [module.training for module in model.modules()] == modes


def test_scores_are_those_of_a_plain_loop_in_eval_mode():
    model = Model()
    model.net(torch.randn(32, 8))  # statistics that differ from those of a batch
    model.eval()
    scores = dict.fromkeys(("net.0.weight", "net.4.weight"), 0.0)
    for images, labels in list(model.train_dataloader())[:3]:
        model.zero_grad()
        nn.functional.cross_entropy(model.net(images), labels).backward()
        for name in scores:
            weight = model.get_parameter(name)
            scores[name] = scores[name] + (weight * weight.grad).detach().abs()
    threshold = torch.cat([score.flatten() for score in scores.values()]).sort().values[96]
    model.zero_grad()
    callback = PruningCallback(
        sparsity=0.5, criterion=WeightTimesGradient(), allocation=GlobalAllocation()
    )
    report = prune_once(trainer_with(callback), model, batches=3)
    for name, mask in report.pruner.masks.items():
        assert torch.equal(mask, scores[name] >= threshold)


def test_a_criterion_that_gathers_nothing_sees_the_gradient_of_all_batches():
    model = Model()
    model.eval()
    for images, labels in list(model.train_dataloader())[:3]:
        nn.functional.cross_entropy(model.net(images), labels).backward()
    scores = model.net[0].weight.grad.abs()
    mask = scores >= scores.flatten().sort().values[64]
    model.zero_grad()
    callback = PruningCallback(sparsity=0.5, criterion=Gradient(), allocation=UniformAllocation())
    report = prune_once(trainer_with(callback), model, batches=3)
    assert torch.equal(report.pruner.masks["net.0.weight"], mask)


def test_the_weights_of_each_optimizer_have_their_own_budget():
    model = GAN()
    callback = PruningCallback(
        sparsity=0.5, criterion=WeightTimesGradient(), allocation=GlobalAllocation()
    )
    prune_once(trainer_with(callback), model, batches=4)
    assert (model.other.weight == 0).sum() == 16


def test_metrics_are_those_of_validation_before_and_after(capsys):
    model = Model()
    trainer = trainer_with(PruningCallback(sparsity=0.9), enable_model_summary=True)
    (before,) = trainer.validate(model, verbose=False)
    report = prune_once(trainer, model)
    (after,) = trainer.validate(model, verbose=False)
    assert (report.before, report.after) == (before, after)
    assert before != after
    printed = capsys.readouterr().out
    change = after["val_loss"] - before["val_loss"]
    for shown in ("To be pruned", "Pruned", "at sparsity 0.9", "val_acc", f"{change:+.4f}"):
        assert shown in printed


def test_the_checkpoint_is_a_plain_one_that_fit_resumes_sparse(tmp_path):
    dense, sparse = tmp_path / "dense.ckpt", tmp_path / "sparse.ckpt"
    trained = Model()
    trainer = trainer_with(EarlyStopping("val_loss"))
    trainer.fit(trained)
    trainer.save_checkpoint(dense, weights_only=False)
    report = prune_once(
        trainer_with(
            PruningCallback(sparsity=0.75, criterion=WeightTimesGradient()),
            EarlyStopping("val_loss"),
        ),
        Model(),
        batches=2,
        ckpt_path=dense,
        output=sparse,
    )
    checkpoint = torch.load(sparse, weights_only=True)
    assert list(checkpoint["callbacks"]) == ["PruningCallback"]
    plain = Model()
    plain.load_state_dict(checkpoint["state_dict"], strict=True)
    for name, mask in report.pruner.masks.items():
        assert torch.equal(plain.get_parameter(name), trained.get_parameter(name) * mask)

    callback = PruningCallback(sparsity=0.75, criterion=RandomCriterion())
    trainer = trainer_with(callback, max_epochs=1)
    resumed = Model()
    trainer.fit(resumed, ckpt_path=sparse)
    assert trainer.global_step == 6
    assert callback.pruner.steps == [6]
    for name, mask in report.pruner.masks.items():
        assert torch.equal(callback.masks[name], mask)
        assert torch.equal(resumed.get_parameter(name) != 0, mask)
        assert not torch.equal(resumed.get_parameter(name), plain.get_parameter(name))


def test_nothing_of_an_earlier_training_is_in_the_checkpoint(tmp_path):
    trainer, model = trainer_with(PruningCallback(), EarlyStopping("val_loss")), Model()
    trainer.fit(model)
    prune_once(trainer, model, output=tmp_path / "pruned.ckpt")
    checkpoint = torch.load(tmp_path / "pruned.ckpt", weights_only=True)
    assert (checkpoint["epoch"], checkpoint["global_step"]) == (0, 0)
    assert (checkpoint["optimizer_states"], checkpoint["lr_schedulers"]) == ([], [])
    assert list(checkpoint["callbacks"]) == ["PruningCallback"]
    assert "loops" not in checkpoint


def test_the_file_is_there_when_checkpoints_are_written_in_the_background(tmp_path):
    trainer, model = trainer_with(PruningCallback(), plugins=[AsyncCheckpointIO()]), Model()
    prune_once(trainer, model, output=tmp_path / "new" / "pruned.ckpt")
    saved = torch.load(tmp_path / "new" / "pruned.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(saved[name], tensor) for name, tensor in state_of(model).items())


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(errno.ENOSPC, "no space")])
def test_a_write_that_fails_leaves_the_older_checkpoint(error, tmp_path, monkeypatch):
    def fail(path, content):
        path.touch()
        raise error

    output = tmp_path / "pruned.ckpt"
    output.write_text("older")
    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(type(error) if isinstance(error, OSError) else error):
        prune_once(trainer_with(PruningCallback()), Model(), output=output)
    assert output.read_text() == "older"
    assert list(tmp_path.iterdir()) == [output]


def test_schedulers_of_the_learning_rate_do_not_run(monkeypatch):
    model = Model()

    def configure_optimizers():
        optimizer = torch.optim.SGD(model.parameters())
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": plateau, "monitor": "val_loss"},
        }

    monkeypatch.setattr(model, "configure_optimizers", configure_optimizers)
    trainer = trainer_with(PruningCallback(sparsity=0.5, criterion=WeightTimesGradient()))
    assert prune_once(trainer, model, batches=6).pruner.sparsity == 0.5


def test_nothing_is_logged_and_the_trainer_is_given_back(tmp_path):
    logger = CSVLogger(tmp_path)
    callback = PruningCallback(sparsity=0.5, criterion=WeightTimesGradient())
    trainer = trainer_with(callback, logger=logger)
    model = Model()
    prune_once(trainer, model, batches=2)
    assert trainer.loggers == [logger]
    assert model.trainer is trainer
    assert list(tmp_path.iterdir()) == []


def test_zeros_stay_with_keep_zeros():
    model = Model()
    nn.init.zeros_(model.net[0].weight[:4])
    callback = PruningCallback(
        sparsity=0.5, criterion=RandomCriterion(), allocation=UniformAllocation(), keep_zeros=True
    )
    prune_once(trainer_with(callback), model)
    assert (model.net[0].weight[:4] == 0).all()
    assert (model.net[0].weight == 0).sum() == 64


def test_the_schedule_of_the_recipe_is_left_alone():
    callback = PruningCallback(sparsity=0.5, criterion=WeightTimesGradient())
    schedule = callback.pruner.recipe.schedule
    report = prune_once(trainer_with(callback, max_steps=1), Model(), batches=2)
    assert report.pruner.sparsity == 0.5
    assert callback.pruner.recipe.schedule is schedule
    assert callback.pruner.tensors == ()
