import pytest
import torch
from torch import nn

from lightning_prune import PruningCallback, measure_sensitivity
from lightning_prune.post_training.statistics import find_statistics, reestimate_statistics
from tests.hooks import registered
from tests.post_training.models import Model, state_of, trainer_with


def read_batches(model, count):
    return [images for (images, _), _ in zip(model.train_dataloader(), range(count), strict=False)]


def reestimate(model, *, batches=3, train_mode=False, trainer=None):
    trainer = trainer or trainer_with()
    reestimate_statistics(trainer, model, None, batches=batches, train_mode=train_mode)


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


def test_too_few_batches_are_refused():
    model = Model()
    before = state_of(model)
    with pytest.raises(ValueError, match=r"need at least batches=7 training batches .* got 6"):
        reestimate(model, batches=7)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.net[1].momentum == 0.1


def test_a_normalization_without_running_statistics_has_none_to_estimate():
    norms = nn.ModuleList([nn.BatchNorm1d(2), nn.BatchNorm1d(2, track_running_stats=False)])
    norms += [nn.LayerNorm(2), nn.InstanceNorm1d(2), nn.InstanceNorm1d(2, track_running_stats=True)]
    assert find_statistics(norms) == [norms[0], norms[4]]


def test_curves_with_new_statistics_leave_the_model_unchanged():
    model = Model()
    before = state_of(model)
    trainer = trainer_with(PruningCallback())
    arguments = {"monitor": "val_loss", "mode": "min", "batches": 2, "sparsities": (0.5, 0.9)}
    old, new = (
        measure_sensitivity(trainer, model, reestimate=reestimate, **arguments)
        for reestimate in (False, True)
    )
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert new.dense == old.dense
    assert new.metrics["net.0.weight"] != old.metrics["net.0.weight"]
