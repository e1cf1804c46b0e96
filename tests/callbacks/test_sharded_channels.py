"""Channels under `ModelParallelStrategy`: trained, resumed on fewer processes, and removed."""

from contextlib import redirect_stdout
from io import StringIO

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn

from lightning_prune import (
    ChannelPattern,
    MacsBudget,
    MultiStepSchedule,
    PolynomialSchedule,
    PruningCallback,
    Rewind,
    SparsityMonitor,
    TaylorCriterion,
    shrink,
)
from lightning_prune.deploy.checkpoints import read_lightning_checkpoint
from tests.callbacks.replicas import Net, Sharded, assert_equal, loader, make_trainer, outcome

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("processes")]
SECTION = "Replicas and shards"
EXAMPLE = torch.zeros(1, 16)
HALF = {"sparsity": 0.5, "pattern": ChannelPattern(round_to=1), "criterion": TaylorCriterion()}
SCHEDULE = PolynomialSchedule(begin=0.1, end=0.8, every=0.1)


class Called(Sharded):
    """Calls forward in training, and has no example of the input."""

    def forward(self, values):
        return self.net(values)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])


class WholeCalled(Called):
    """The same in one process."""

    def configure_model(self):
        """Cut nothing."""


def fit(folder, recipe, *, name="whole", distributed=False, ckpt_path=None):
    """Train two epochs, or only the first if the name is "stopped"; save under the name."""
    strategy, kind = "auto", WholeCalled
    if torch.distributed.is_initialized():
        kind, strategy = (
            Called,
            ModelParallelStrategy(
                tensor_parallel_size=1,
                data_parallel_size=torch.distributed.get_world_size(),
                save_distributed_checkpoint=distributed,
            ),
        )
    pruning, model = PruningCallback(**{"schedule": SCHEDULE} | recipe), kind()
    trainer = make_trainer(folder, strategy, pruning, SparsityMonitor(), logger=CSVLogger(folder))
    if name == "stopped":
        model.on_train_epoch_end = lambda: setattr(trainer, "should_stop", True)
    trainer.fit(model, loader(), ckpt_path=ckpt_path, weights_only=True)
    trainer.save_checkpoint(folder / f"{name}.ckpt")
    assert type(model.net).__name__ in ("FSDPSequential", "Sequential")
    return outcome(pruning, model)


def widths(masks):
    """Return the number of inner channels, wherever they lie."""
    alive = masks["net.0.bias"]
    assert torch.equal(masks["net.0.weight"].all(1), alive)
    assert torch.equal(masks["net.0.weight"].any(1), alive)
    assert torch.equal(masks["net.3.weight"].all(0), alive)
    return int(alive.sum())


@pytest.mark.works_with(SECTION, "Channels under FSDP2, with an example or from the first step")
@pytest.mark.parametrize("example", [EXAMPLE, None], ids=["given", "first step"])
def test_channels_of_shards_are_pruned_wherever_they_lie(example, two, tmp_path):
    for masks, weights in two(fit, tmp_path, {**HALF, "example": example}):
        assert widths(masks) == 17
        assert all(torch.equal(weights[name] != 0, mask) for name, mask in masks.items())


def fit_to_budget(folder):
    """Return the masks, and the printed text."""
    recipe = {"budget": MacsBudget(keep=0.5), "pattern": ChannelPattern(round_to=1)}
    with redirect_stdout(StringIO()) as printed:
        masks, _ = fit(folder, {**recipe, "example": EXAMPLE})
    return masks, printed.getvalue()


@pytest.mark.works_with(SECTION, "Channels under FSDP2, to a budget of multiply-adds")
def test_channels_of_shards_land_on_a_budget_and_are_measured(two, tmp_path):
    (masks, printed), (others, nothing) = two(fit_to_budget, tmp_path)
    assert widths(masks) == widths(others) == 17
    words = "asked for at most 340 multiply-adds, predicted 340, measured 340"
    assert words in " ".join(printed.split())
    assert words not in " ".join(nothing.split())


def fit_rounds(folder):
    """Go back to the weights of the first step after the first of two prunings."""
    schedule = MultiStepSchedule(milestones=(0.3, 0.6))
    recipe = {**HALF, "example": EXAMPLE, "rewind": Rewind(to=1), "schedule": schedule}
    return fit(folder, recipe)


@pytest.mark.works_with(SECTION, "Channels under FSDP2 with `Rewind`")
def test_channels_of_shards_are_rewound(two, tmp_path):
    for masks, weights in two(fit_rounds, tmp_path):
        assert widths(masks) == 17
        assert all(torch.equal(weights[name] != 0, mask) for name, mask in masks.items())


@pytest.mark.works_with(SECTION, "Channels under FSDP2, resumed, also by a process alone")
@pytest.mark.parametrize("distributed", [False, True], ids=["full", "distributed"])
def test_channels_of_shards_go_on_bit_for_bit(distributed, two, tmp_path):
    recipe = {**HALF, "example": EXAMPLE}
    (masks, weights), _ = two(fit, tmp_path, recipe)
    two(stop, tmp_path, recipe, distributed)
    for found in two(resume, tmp_path, recipe, distributed):
        assert_equal(masks, found[0])
        assert_equal(weights, found[1])
    if not distributed:
        masks, weights = fit(tmp_path, recipe, name="alone", ckpt_path=tmp_path / "stopped.ckpt")
        assert widths(masks) == 17
        assert all(torch.equal(weights[name] != 0, mask) for name, mask in masks.items())


def stop(folder, recipe, distributed):
    return fit(folder, recipe, name="stopped", distributed=distributed)


def resume(folder, recipe, distributed):
    path = folder / "stopped.ckpt"
    return fit(folder, recipe, name="resumed", distributed=distributed, ckpt_path=path)


@pytest.mark.works_with(SECTION, "`shrink` of a full and of a distributed checkpoint of channels")
def test_full_and_distributed_checkpoints_shrink_to_the_same_model(two, tmp_path):
    recipe = {**HALF, "example": EXAMPLE}
    small = []
    for folder, distributed in ((tmp_path / "full", False), (tmp_path / "cut", True)):
        two(fit_into, folder, recipe, distributed)
        assert (folder / "whole.ckpt").is_dir() == distributed
        model = Net()
        model.load_state_dict(read_lightning_checkpoint(folder / "whole.ckpt")["state_dict"])
        small.append(shrink(model.net, EXAMPLE))
    one, other = small
    assert one[0].out_features == 17
    assert_equal(one.state_dict(), other.state_dict())


def fit_into(folder, recipe, distributed):
    return fit(folder, recipe, distributed=distributed)
