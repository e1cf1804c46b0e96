from copy import deepcopy

import pytest
import torch
from lightning.pytorch import seed_everything
from torch import nn

from lightning_prune import (
    PruningCallback,
    measure_sensitivity,
    prune_once,
    reestimate_statistics,
)
from lightning_prune.models.statistics import find_statistics
from tests.hooks import registered
from tests.post_training.models import Model, state_of, trainer_with


def read_batches(model, count):
    return [images for (images, _), _ in zip(model.train_dataloader(), range(count), strict=False)]


def reestimate(model, *, batches=3, train_mode=False, trainer=None):
    trainer = trainer or trainer_with()
    return reestimate_statistics(trainer, model, statistics=batches, train_mode=train_mode)


@pytest.mark.parametrize("momentum", [0.1, 0.9, None])
def test_statistics_are_the_mean_of_those_of_the_batches(momentum):
    model = Model()
    model.net[1].momentum = momentum
    model.net[1].running_mean.fill_(100)
    reestimate(model)
    with torch.no_grad():
        inputs = [model.net[0](images) for images in read_batches(model, 3)]
    mean = torch.stack([each.mean(0) for each in inputs]).mean(0)
    variance = torch.stack([each.var(0) for each in inputs]).mean(0)
    torch.testing.assert_close(model.net[1].running_mean, mean)
    torch.testing.assert_close(model.net[1].running_var, variance)
    assert model.net[1].num_batches_tracked == 3
    assert model.net[1].momentum == momentum


class Counting(Model):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def training_step(self, batch, batch_idx):
        self.calls += 1
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("train_mode", [False, True])
def test_nothing_else_changes(train_mode):
    model = Counting()
    model.net[3].eval()
    before, hooks = state_of(model), registered(model)
    modes = [module.training for module in model.modules()]
    trainer = trainer_with()
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    reestimate(model, train_mode=train_mode, trainer=trainer)
    assert torch.equal(torch.rand(1), expected)
    changed = {n for n, value in model.state_dict().items() if not torch.equal(value, before[n])}
    names = ("running_mean", "running_var", "num_batches_tracked")
    assert changed == {f"net.1.{name}" for name in names}
    assert [module.training for module in model.modules()] == modes
    assert model.modes == [train_mode] * 3
    assert registered(model) == hooks
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.trainer is trainer


def test_a_later_normalization_sees_no_dropout():
    model = Model()
    model.net = nn.Sequential(nn.Dropout(0.9), nn.BatchNorm1d(8), nn.Linear(8, 4))
    reestimate(model)
    mean = torch.stack([images.mean(0) for images in read_batches(model, 3)]).mean(0)
    torch.testing.assert_close(model.net[1].running_mean, mean)


def test_a_shorter_epoch_gives_all_of_its_batches():
    model = Model()
    assert reestimate(model, batches=7) == (1, 6)
    assert model.net[1].num_batches_tracked == 6


def test_a_normalization_without_running_statistics_has_none_to_estimate():
    norms = nn.ModuleList([nn.BatchNorm1d(2), nn.BatchNorm1d(2, track_running_stats=False)])
    norms += [nn.LayerNorm(2), nn.InstanceNorm1d(2), nn.InstanceNorm1d(2, track_running_stats=True)]
    norms += [nn.LazyBatchNorm1d(), nn.SyncBatchNorm(2)]
    assert find_statistics(norms) == [norms[0], norms[4], norms[6]]
    model = Model()
    del model.net[1]
    assert reestimate(model) == (0, 0)
    assert model.modes == []


@pytest.mark.parametrize("kind", [nn.InstanceNorm1d, nn.BatchNorm1d, nn.SyncBatchNorm])
def test_a_shared_normalization_gets_the_mean_over_all_calls(kind):
    model = Model()
    norm = kind(2, track_running_stats=True)
    model.net = nn.Sequential(nn.Unflatten(1, (2, 4)), norm, nn.Tanh(), norm, nn.Flatten())
    model.net.append(nn.Linear(8, 4))
    reestimate(model)
    means, variances = [], []
    for images in read_batches(model, 3):
        values = images.view(8, 2, 4)
        for _ in range(2):
            per_sample = isinstance(norm, nn.InstanceNorm1d)
            axes = [2] if per_sample else [0, 2]
            means.append(values.mean(axes, keepdim=True).mean(0).flatten())
            variances.append(values.var(axes, keepdim=True).mean(0).flatten())
            spread = values.var(axes, keepdim=True, correction=0)
            values = (values - values.mean(axes, keepdim=True)) / (spread + norm.eps).sqrt()
            values = values.tanh()
    torch.testing.assert_close(norm.running_mean, torch.stack(means).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack(variances).mean(0))


class Beside(Model):
    """A network with a normalization that only validation reaches, and one that it freezes."""

    def __init__(self):
        super().__init__()
        self.unused, self.frozen = nn.BatchNorm1d(8), nn.BatchNorm1d(8)
        for norm in (self.unused, self.frozen):
            norm.running_mean.fill_(5)

    def on_train_epoch_start(self):
        self.frozen.eval()

    def training_step(self, batch, batch_idx):
        with torch.no_grad():
            self.net[4].bias += 1  # as an average of weights that the step itself updates
        return super().training_step([self.frozen(batch[0]), batch[1]], batch_idx)


@pytest.mark.parametrize("train_mode", [False, True])
def test_normalizations_that_no_batch_reaches_in_train_mode_keep_their_statistics(train_mode):
    model = Beside()
    before = state_of(model)
    assert reestimate(model, train_mode=train_mode) == (1, 3)
    changed = {n for n, value in model.state_dict().items() if not torch.equal(value, before[n])}
    names = ("running_mean", "running_var", "num_batches_tracked")
    assert changed == {f"net.1.{name}" for name in names}


def test_statistics_are_measured_by_a_compiled_network_too():
    model, compiled = Model(), Model()
    compiled.load_state_dict(model.state_dict())
    compiled.net.compile(backend="eager")
    compiled.net(torch.randn(8, 8))
    compiled.net[1].load_state_dict(model.net[1].state_dict())
    for each in (model, compiled):
        assert reestimate(each) == (1, 3)
    assert torch.equal(compiled.net[1].running_mean, model.net[1].running_mean)
    assert torch.equal(compiled.net[1].running_var, model.net[1].running_var)


def test_what_cannot_work_is_refused():
    model = Model()
    before = state_of(model)
    for trainer, batches, message in [
        (trainer_with(), 0, "need statistics >= 1, got statistics=0"),
        (trainer_with(limit_train_batches=0), 1, "got limit_train_batches=0; set statistics=0"),
        (trainer_with(devices=2), 1, "need one process for new statistics, got world_size=2"),
    ]:
        with pytest.raises(ValueError, match=message):
            reestimate(model, batches=batches, trainer=trainer)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.net[1].momentum == 0.1


def test_curves_with_new_statistics_leave_the_model_unchanged():
    model = Model()
    before = state_of(model)
    trainer = trainer_with(PruningCallback())
    arguments = {"monitor": "val_loss", "mode": "min", "sparsities": (0.5, 0.9)}
    old, new = (
        measure_sensitivity(trainer, model, statistics=statistics, **arguments)
        for statistics in (0, 2)
    )
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert new.dense == old.dense
    assert new.metrics["net.0.weight"] != old.metrics["net.0.weight"]


@pytest.mark.slow
def test_the_demo_keeps_its_accuracy_in_one_shot_with_new_statistics_only():
    from examples.digits import DigitsClassifier, DigitsDataModule

    seed_everything(0, verbose=False)
    dense, data = DigitsClassifier(), DigitsDataModule()
    trainer_with(max_epochs=10).fit(dense, data)
    accuracies = []
    for statistics in (0, 16):
        model = deepcopy(dense)
        trainer = trainer_with(PruningCallback(sparsity=0.9))
        accuracies.append(prune_once(trainer, model, data, statistics=statistics).after["val_acc"])
    old, new = accuracies
    assert new > 0.9
    assert new > old + 0.1
