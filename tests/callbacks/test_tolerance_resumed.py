"""Runs under a tolerance, resumed from checkpoints and on several processes."""

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch.utils.data import DataLoader

from lightning_prune import GlobalAllocation, PruningCallback, Tolerance
from tests.callbacks.replicas import (
    TOTAL,
    Net,
    Sharded,
    assert_equal,
    assert_pruned,
    loader,
    make_trainer,
    outcome,
)
from tests.callbacks.runs import BATCHES, SaliencySum, Save, dataset
from tests.callbacks.within import fit_within

EPOCHS = 9  # two after the last round


def run_within(folder, *callbacks, seed=0, **more):
    recipe = {"criterion": SaliencySum(), "allocation": GlobalAllocation()}
    _, _, run = fit_within(
        folder / "root", *callbacks, recipe=recipe, seed=seed, max_epochs=EPOCHS, **more
    )
    return run


@pytest.mark.slow
@pytest.mark.works_with("Stop and resume", "after any step, `Tolerance`")
def test_a_run_resumed_after_any_step_decides_as_the_uninterrupted_one(tmp_path):
    whole, save = run_within(tmp_path), Save(tmp_path)
    assert not whole.differences(run_within(tmp_path, save))
    assert save.saved == list(range(1, EPOCHS * BATCHES + 1))
    for step in save.saved:
        resumed = run_within(tmp_path, resume=tmp_path / f"{step}.ckpt", seed=1)
        assert not whole.after(step).differences(resumed), step


@pytest.mark.works_with("Stop and resume", "between a decision and the next step, `Tolerance`")
def test_a_run_resumed_after_a_decision_goes_back_as_the_uninterrupted_one(tmp_path):
    in_order = DataLoader(dataset(), batch_size=8)
    whole = run_within(tmp_path, loader=in_order)
    run_within(tmp_path, Save(tmp_path, at={"validation"}), loader=in_order)
    for epoch in (2, 4):  # the second holds, the fourth does not hold
        path = tmp_path / f"{epoch * BATCHES}.ckpt"
        resumed = run_within(tmp_path, loader=in_order, resume=path, seed=1)
        assert not whole.after(epoch * BATCHES).differences(resumed), epoch


def test_the_checkpoint_of_the_last_model_that_held_resumes(tmp_path):
    whole = run_within(tmp_path)
    path = tmp_path / "root" / "checkpoints" / "within_tolerance.ckpt"
    step = torch.load(path, weights_only=True)["global_step"]
    resumed = run_within(tmp_path, resume=path, seed=1)
    assert not whole.after(step).differences(resumed)


def test_a_training_that_stopped_in_a_round_goes_on_with_that_round(tmp_path):
    class Stop(Save):
        def on_train_end(self, trainer, pl_module):
            self.save(trainer)

    with pytest.warns(UserWarning, match="training stopped in round 3"):
        fit_within(tmp_path, Stop(tmp_path, at={}), max_epochs=3)
    pruning, _, _ = fit_within(tmp_path, resume=tmp_path / "15.ckpt", seed=1)
    assert pruning.sparsity == pytest.approx(0.7898, abs=1e-3)


@pytest.mark.works_with("Stop and resume", "a checkpoint of another `Tolerance`", refused=True)
def test_a_checkpoint_of_another_tolerance_is_refused(tmp_path):
    fit_within(tmp_path, Save(tmp_path, at={"epoch"}))
    other = Tolerance(monitor="quality", tolerance=0.2)
    with pytest.raises(ValueError, match="written with the same tolerance"):
        fit_within(tmp_path, tolerance=other, resume=tmp_path / "10.ckpt")


@pytest.mark.works_with("Stop and resume", "the state of `Tolerance`: plain, on the CPU")
def test_the_state_loads_with_weights_only_and_is_on_the_cpu(tmp_path):
    fit_within(tmp_path, Save(tmp_path, at={"epoch"}))
    state = torch.load(tmp_path / "20.ckpt", weights_only=True)["callbacks"]["PruningCallback"]
    snapshot = state["tolerance"]["snapshot"]
    assert {tensor.device.type for tensor in snapshot["tensors"].values()} == {"cpu"}
    assert not any(tensor.is_inference() for tensor in snapshot["tensors"].values())


class Uneven(Net):
    """Logs on each process another quality, and does not reduce it."""

    def validation_step(self, batch, batch_idx):
        zeros = sum(int((self.net[place].weight == 0).sum()) for place in (0, 3))
        drop = 0.3 if zeros > 0.6 * TOTAL else 0.0
        self.log("quality", 0.9 - drop * self.global_rank, sync_dist=False)


@pytest.mark.filterwarnings("ignore:It is recommended to use `self.log")
def fit_replicas_within(folder):
    tolerance = Tolerance(monitor="quality", tolerance=0.1, patience=0, halvings=0)
    pruning = PruningCallback(sparsity=0.75, tolerance=tolerance)
    model = Uneven()
    make_trainer(folder, DDPStrategy(), pruning, max_epochs=4).fit(model, loader(), loader())
    return *outcome(pruning, model), pruning.sparsity


@pytest.mark.slow
@pytest.mark.xdist_group("processes")
@pytest.mark.works_with("Replicas and shards", "DDP with `Tolerance`: the same on all processes")
def test_replicas_decide_alike_where_the_metric_differs(two, tmp_path):
    (masks, weights, sparsity), (other_masks, other_weights, _) = two(fit_replicas_within, tmp_path)
    assert_equal(masks, other_masks)
    assert_equal(weights, other_weights)
    assert_pruned(masks, weights, sparsity=0.5)
    assert sparsity == pytest.approx(0.5)


class UnevenShards(Uneven, Sharded):
    """Measures the quality of the whole weights."""

    def validation_step(self, batch, batch_idx):
        weights = [self.net[place].weight for place in (0, 3)]
        whole = [each.full_tensor() if hasattr(each, "full_tensor") else each for each in weights]
        zeros = sum(int((each == 0).sum()) for each in whole)
        self.log("quality", 0.9 - (0.3 if zeros > 0.6 * TOTAL else 0.0), sync_dist=True)


def fit_shards_within(folder):
    strategy = ModelParallelStrategy(
        data_parallel_size=2, tensor_parallel_size=1, save_distributed_checkpoint=False
    )
    tolerance = Tolerance(monitor="quality", tolerance=0.1, patience=0, halvings=0)
    pruning, model = PruningCallback(sparsity=0.75, tolerance=tolerance), UnevenShards()
    make_trainer(folder, strategy, pruning, max_epochs=4).fit(model, loader(), loader())
    return *outcome(pruning, model), pruning.state_dict()["tolerance"]["snapshot"]["tensors"]


@pytest.mark.slow
@pytest.mark.xdist_group("processes")
@pytest.mark.works_with("Replicas and shards", "FSDP2 with `Tolerance`")
def test_shards_go_back_to_the_last_model_within_the_tolerance(two, tmp_path):
    for masks, weights, kept in two(fit_shards_within, tmp_path):
        assert_pruned(masks, weights, sparsity=0.5)
        assert_equal(weights, kept)
