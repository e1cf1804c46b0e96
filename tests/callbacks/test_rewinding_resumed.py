"""Runs that go back, resumed from checkpoints and on several processes."""

import io
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch.utils.data import DataLoader

from lightning_prune import MultiStepSchedule, PruningCallback, Rewind
from tests.callbacks.replicas import (
    Net,
    Sharded,
    assert_equal,
    assert_pruned,
    loader,
    make_trainer,
    outcome,
)
from tests.callbacks.rounds import Normalised, in_steps, watched
from tests.callbacks.runs import BATCHES, STEPS, SaliencySum, Save, dataset, fit

REWINDS = {
    "weights to the start": Rewind(),
    "weights to step 3": Rewind(to=3),
    "weights to step 3, the optimizer reset": Rewind(to=3, optimizer="reset"),
    "the learning rate to step 3": Rewind(to=3, what="learning_rate"),
}


@pytest.mark.parametrize(
    "rewind",
    [
        pytest.param(
            rewind,
            id=name,
            marks=pytest.mark.works_with("Stop and resume", f"after any step, `Rewind`, {name}"),
        )
        for name, rewind in REWINDS.items()
    ],
)
def test_a_run_with_rounds_resumed_after_any_step_equals_the_uninterrupted_one(rewind, tmp_path):
    def run(*callbacks, seed=0, **more):
        torch.manual_seed(seed)
        pruning = PruningCallback(
            sparsity=0.75, criterion=SaliencySum(), schedule=in_steps, rewind=rewind
        )
        return fit(*callbacks, pruning=pruning, model=Normalised("sgd"), **more)

    whole, save = run(), Save(tmp_path)
    assert not whole.differences(run(save))
    assert save.saved == list(range(1, STEPS + 1))
    for step in save.saved:
        resumed = run(resume=tmp_path / f"{step}.ckpt", seed=1)
        assert not whole.after(step).differences(resumed), step


@pytest.mark.works_with("Stop and resume", "exactly at a round's end, rounds at the ends of epochs")
@pytest.mark.parametrize("at", ["last batch", "epoch", "validation"])
def test_a_round_that_ends_with_an_epoch_resumes_exactly(at, tmp_path):
    in_order = DataLoader(dataset(), batch_size=8)

    def run(*callbacks, **more):
        pruning = PruningCallback(
            sparsity=0.75,
            schedule=MultiStepSchedule(milestones=(1, 2), unit="epoch"),
            rewind=Rewind(),
        )
        torch.manual_seed(0)
        model = Normalised(plateau=True)
        return fit(*callbacks, pruning=pruning, model=model, loader=in_order, validate=True, **more)

    whole = run()
    run(Save(tmp_path, at={at}))
    for step in (BATCHES, 2 * BATCHES):
        resumed = run(resume=tmp_path / f"{step}.ckpt", seed=1)
        assert not whole.after(step).differences(resumed), step


def size(value: Any) -> int:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.tell()


@pytest.mark.works_with(
    "Stop and resume", "the state of `Rewind`: plain, and loads with `weights_only=True`"
)
def test_what_is_kept_is_on_the_cpu_loads_with_weights_only_and_is_as_large_as_the_model(tmp_path):
    torch.manual_seed(0)
    pruning, _, run = watched(Rewind(to=3), Save(tmp_path), model=Normalised("sgd"))
    state = torch.load(tmp_path / "9.ckpt", weights_only=True)["callbacks"]["PruningCallback"]
    kept = state["rewind"]
    assert {t.device.type for t in kept["tensors"].values()} == {"cpu"}
    model = size(dict(run.model.state_dict()))
    momentum = size(run.trainer.optimizers[0].state_dict())
    assert size(kept) < model + momentum + 2048
    pruning, _, _ = watched(Rewind(), Save(tmp_path), model=Normalised("sgd"))
    assert size(pruning.state_dict()["rewind"]) < model + 2048  # it had gathered nothing yet
    pruning, _, _ = watched(Rewind(what="learning_rate"), Save(tmp_path), model=Normalised("sgd"))
    assert size(pruning.state_dict()["rewind"]) < 3072


@pytest.mark.works_with(
    "Stop and resume", "a checkpoint written without `Rewind`, before step `to`"
)
def test_a_checkpoint_from_before_the_step_may_lack_the_rewind(tmp_path):
    def run(rewind, *callbacks, **more):
        torch.manual_seed(0)
        pruning = PruningCallback(sparsity=0.75, schedule=in_steps, rewind=rewind)
        return fit(*callbacks, pruning=pruning, model=Normalised(), **more)

    run(None, Save(tmp_path))
    resumed = run(Rewind(to=3), resume=tmp_path / "3.ckpt")
    assert not run(Rewind(to=3)).after(3).differences(resumed)


@pytest.mark.works_with(
    "Stop and resume", "a checkpoint of another `Rewind`, after step `to`", refused=True
)
@pytest.mark.parametrize(
    "other",
    [None, Rewind(to=2), Rewind(to=3, what="learning_rate"), Rewind(to=3, optimizer="reset")],
)
def test_a_checkpoint_that_cannot_be_gone_back_from_is_refused(other, tmp_path):
    watched(other, Save(tmp_path))
    with pytest.raises(
        ValueError, match=r"written with the same rewind.* got a checkpoint of step 9 with"
    ):
        watched(Rewind(to=3), resume=tmp_path / "9.ckpt")


def test_a_reset_needs_what_the_optimizer_began_with(tmp_path):
    watched(None, Save(tmp_path))
    with pytest.raises(ValueError, match=r"got a checkpoint of step 2 with no rewind"):
        watched(Rewind(to=3, optimizer="reset"), resume=tmp_path / "2.ckpt")


def fit_replicas_in_rounds(folder):
    pruning = PruningCallback(
        sparsity=0.75, schedule=MultiStepSchedule(milestones=(0.3, 0.6)), rewind=Rewind(to=1)
    )
    model = Net()
    make_trainer(folder, DDPStrategy(), pruning).fit(model, loader())
    return *outcome(pruning, model), pruning.state_dict()["rewind"]["tensors"]


@pytest.mark.slow
@pytest.mark.xdist_group("processes")
@pytest.mark.works_with("Replicas and shards", "DDP with `Rewind`: the same on all processes")
def test_replicas_go_back_to_the_same_weights(two, tmp_path):
    (masks, weights, kept), (other_masks, other_weights, other_kept) = two(
        fit_replicas_in_rounds, tmp_path
    )
    assert_equal(masks, other_masks)
    assert_equal(weights, other_weights)
    assert_equal(kept, other_kept)
    assert_pruned(masks, weights)


def fit_shards_in_rounds(folder, name="whole", ckpt_path=None):
    """Train two epochs, or only the first if the name is "stopped"; save under the name."""
    strategy = ModelParallelStrategy(
        data_parallel_size=2, tensor_parallel_size=1, save_distributed_checkpoint=False
    )
    schedule = MultiStepSchedule(milestones=(0.3, 0.6))
    pruning, model = PruningCallback(sparsity=0.75, schedule=schedule, rewind=Rewind()), Sharded()
    trainer = make_trainer(folder, strategy, pruning)
    if name == "stopped":
        model.on_train_epoch_end = lambda: setattr(trainer, "should_stop", True)
    trainer.fit(model, loader(), ckpt_path=ckpt_path, weights_only=True)
    trainer.save_checkpoint(folder / f"{name}.ckpt")
    return *outcome(pruning, model), pruning.state_dict()["rewind"]["tensors"]


def go_on_in_rounds(folder):
    return fit_shards_in_rounds(folder, "resumed", folder / "stopped.ckpt")


@pytest.mark.slow
@pytest.mark.xdist_group("processes")
@pytest.mark.works_with("Replicas and shards", "FSDP2 with `Rewind`, resumed bit for bit")
def test_shards_go_back_and_go_on_as_the_uninterrupted_ones(two, tmp_path):
    (masks, weights, kept), _ = two(fit_shards_in_rounds, tmp_path)
    assert_pruned(masks, weights)
    assert_equal(kept, Net().state_dict())
    two(fit_shards_in_rounds, tmp_path, "stopped")
    for resumed, its_weights, its_kept in two(go_on_in_rounds, tmp_path):
        assert_equal(resumed, masks)
        assert_equal(its_weights, weights)
        assert_equal(its_kept, kept)
