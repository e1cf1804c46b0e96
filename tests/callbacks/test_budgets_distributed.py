"""Budgets on several processes."""

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import nn
from torch.utils.data import DataLoader, Dataset

from lightning_prune import (
    ChannelPattern,
    GlobalAllocation,
    MacsBudget,
    ParameterBudget,
    PruningCallback,
    RandomCriterion,
    SparsityCheckpoint,
    TaylorCriterion,
    UniformAllocation,
)
from tests.callbacks.replicas import Net, Sharded, assert_equal, loader, make_trainer, outcome

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("processes")]
PARAMETERS = 16 * 34 + 34 * 4 + 34 + 4
HALF = ParameterBudget(keep=0.5)


def count_nonzeros(weights):
    return sum(int((weight != 0).sum()) for weight in weights.values())


class Called(Net):
    """Calls forward in validation, and has no example of the input."""

    def forward(self, values):
        return self.net(values)

    def validation_step(self, batch, batch_idx):
        accuracy = (self(batch[0]).argmax(1) == batch[1]).float().mean()
        self.log("val_acc", accuracy, sync_dist=True)


def fit_replicas(folder, recipe):
    pruning, model = PruningCallback(**recipe), Called(dropout=0.1)
    model.on_train_start = lambda: torch.manual_seed(torch.distributed.get_rank())
    best = SparsityCheckpoint(monitor="val_acc", mode="max", dirpath=folder)
    trainer = make_trainer(folder, DDPStrategy(), pruning, best, enable_checkpointing=True)
    trainer.fit(model, loader(), loader())
    (expense, *_) = pruning.pruner.spending
    return *outcome(pruning, model), pruning.pruner.spending.is_met, expense.limit.dense


@pytest.mark.parametrize(
    "recipe",
    [
        {"budget": [MacsBudget(keep=0.5), HALF], "criterion": TaylorCriterion()},
        {"budget": HALF, "allocation": GlobalAllocation(), "criterion": RandomCriterion()},
        {"budget": MacsBudget(keep=0.5), "pattern": ChannelPattern(round_to=1)},
    ],
)
def test_replicas_on_other_data_choose_the_same_masks(recipe, two, tmp_path):
    (masks, weights, met, dense), (other_masks, other_weights, other_met, other_dense) = two(
        fit_replicas, tmp_path, recipe
    )
    assert met
    assert other_met
    assert dense == other_dense
    assert_equal(masks, other_masks)
    assert_equal(weights, other_weights)
    best = torch.load(next(tmp_path.glob("*.ckpt")), weights_only=True)["state_dict"]
    assert count_nonzeros(best) <= count_nonzeros(weights) + 34 + 4


class Sentences(Dataset):
    """Sequences whose length differs from process to process."""

    def __len__(self):
        return 16

    def __getitem__(self, index):
        length = 3 + 4 * torch.distributed.get_rank()
        generator = torch.Generator().manual_seed(index)
        return torch.randn(length, 6, generator=generator), torch.tensor(index % 2)


class Reader(Called):
    """Multiplies as often as a sequence is long."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 2))

    def forward(self, values):
        return self.net(values).mean(1)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])


def fit_readers(folder, validates):
    pruning, model = PruningCallback(budget=MacsBudget(keep=0.5)), Reader()
    data = DataLoader(Sentences(), batch_size=4)
    trainer = make_trainer(folder, DDPStrategy(), pruning)
    trainer.fit(model, data, data if validates else None)
    (expense,) = pruning.pruner.spending
    return *outcome(pruning, model), expense.limit.dense


@pytest.mark.parametrize("validates", [True, False], ids=["sanity check", "first step"])
def test_the_example_of_the_first_process_counts_for_all(validates, two, tmp_path):
    (masks, weights, dense), (other_masks, other_weights, other_dense) = two(
        fit_readers, tmp_path, validates
    )
    assert dense == other_dense == 3 * (6 * 10 + 10 * 2)
    assert_equal(masks, other_masks)
    assert_equal(weights, other_weights)


def fit_some(folder, name, ckpt_path=None):
    pruning, model = PruningCallback(budget=MacsBudget(keep=0.5)), Called()
    trainer = make_trainer(folder, DDPStrategy(), pruning)
    if name == "stopped":
        model.on_train_epoch_end = lambda: setattr(trainer, "should_stop", True)
    trainer.fit(model, loader(), loader(), ckpt_path=ckpt_path, weights_only=True)
    trainer.save_checkpoint(folder / f"{name}.ckpt")
    return outcome(pruning, model)


def test_resumed_replicas_equal_the_uninterrupted_ones(two, tmp_path):
    (masks, weights), _ = two(fit_some, tmp_path, "whole")
    two(fit_some, tmp_path, "stopped")
    for found in two(fit_some, tmp_path, "resumed", tmp_path / "stopped.ckpt"):
        assert_equal(masks, found[0])
        assert_equal(weights, found[1])


class CalledShards(Sharded):
    """Has a forward, by which multiply-adds are counted."""

    def forward(self, values):
        return self.net(values)


def fit_shards(folder, recipe, name="whole", ckpt_path=None):
    if torch.distributed.is_initialized():
        strategy = ModelParallelStrategy(
            tensor_parallel_size=1, data_parallel_size=2, save_distributed_checkpoint=False
        )
        model = CalledShards()
    else:
        strategy, model = "auto", Called()
    pruning = PruningCallback(**recipe)
    trainer = make_trainer(folder, strategy, pruning)
    if name == "stopped":
        model.on_train_epoch_end = lambda: setattr(trainer, "should_stop", True)
    trainer.fit(model, loader(), ckpt_path=ckpt_path)
    trainer.save_checkpoint(folder / f"{name}.ckpt")
    return *outcome(pruning, model), pruning.pruner.spending.is_met


@pytest.mark.parametrize("allocation", [None, UniformAllocation(), GlobalAllocation()])
def test_shards_land_on_a_budget_and_resume(allocation, two, tmp_path):
    recipe = {"budget": HALF, "allocation": allocation}
    (masks, weights, met), _ = two(fit_shards, tmp_path, recipe)
    assert met
    assert count_nonzeros(weights) == PARAMETERS // 2
    two(fit_shards, tmp_path, recipe, "stopped")
    for found in two(fit_shards, tmp_path, recipe, "resumed", tmp_path / "stopped.ckpt"):
        assert_equal(masks, found[0])
        assert_equal(weights, found[1])


def fit_macs(folder):
    recipe = {"budget": MacsBudget(keep=0.5), "example": torch.zeros(1, 16)}
    return fit_shards(folder, recipe)


def test_shards_land_on_a_budget_of_multiply_adds_as_one_process_does(two, tmp_path):
    whole, _, _ = fit_macs(tmp_path)
    for masks, _, met in two(fit_macs, tmp_path):
        assert met
        assert {name: int(mask.sum()) for name, mask in masks.items()} == {
            name: int(mask.sum()) for name, mask in whole.items()
        }
