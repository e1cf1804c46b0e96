"""A teacher of a student whose parameters are shards."""

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch.utils.data import DataLoader, DistributedSampler

from lightning_prune import DistillationCallback, PruningCallback
from tests.callbacks.replicas import (
    Net,
    Sharded,
    assert_equal,
    assert_pruned,
    loader,
    make_trainer,
    outcome,
)

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("processes")]
SECTION = "Distillation"


def shard(tensors=1, *, distributed=False):
    """Return the strategy with as many parts of each layer, and the rest of FSDP2."""
    return ModelParallelStrategy(
        tensor_parallel_size=tensors,
        data_parallel_size=torch.distributed.get_world_size() // tensors,
        save_distributed_checkpoint=distributed,
    )


def fit_by(folder, teacher, tensors, features):
    """Train parts of layers, shards for 1, or replicas for None; return the weights."""
    model, strategy = (Net(), DDPStrategy()) if tensors is None else (Sharded(), shard(tensors))
    distillation = DistillationCallback(teacher, output="net", features=features)
    batches, data = loader(), loader().dataset
    if tensors != 2:  # each process has its own samples
        batches = DataLoader(data, batch_size=8, sampler=DistributedSampler(data, shuffle=False))
    trainer = make_trainer(folder, strategy, distillation, use_distributed_sampler=False)
    trainer.fit(model, batches)
    return {
        name: value.full_tensor() if hasattr(value, "full_tensor") else value.detach()
        for name, value in model.state_dict().items()
    }


@pytest.fixture
def file(tmp_path):
    torch.save({n: v + 0.1 for n, v in Net().state_dict().items()}, tmp_path / "teacher.pt")
    return tmp_path / "teacher.pt"


@pytest.mark.works_with(SECTION, "FSDP2: equal to DDP")
def test_shards_are_taught_as_replicas_are(file, two, tmp_path):
    features = ["net.0"]
    expected, _ = two(fit_by, tmp_path, file, None, features)
    for found in two(fit_by, tmp_path, file, 1, features):
        for name, value in found.items():
            torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-4)


@pytest.mark.works_with(SECTION, "tensor parallelism: equal to one process")
def test_layers_in_parts_are_taught_as_whole_layers_are(file, two, tmp_path):
    distillation, model = DistillationCallback(file, output="net", features=["net.3"]), Net()
    make_trainer(tmp_path, "auto", distillation).fit(model, loader())
    for found in two(fit_by, tmp_path, file, 2, ["net.3"]):
        for name, value in model.state_dict().items():
            torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4)


def try_cut_feature(folder, teacher):
    try:
        fit_by(folder, teacher, 2, ["net.0"])
    except ValueError as error:
        return str(error)
    return None


@pytest.mark.works_with(SECTION, "a feature that tensor parallelism cuts", refused=True)
def test_a_feature_that_is_cut_is_refused_by_name(file, two, tmp_path):
    for said in two(try_cut_feature, tmp_path, file):
        assert "from the feature 'net.0', got (8, 17) of the student and (8, 34)" in said


def fit(folder, name, distributed, ckpt_path=None):
    """Prune under a snapshot, only in the first epoch if the name is "stopped"; save it."""
    model, pruning = Sharded(), PruningCallback(sparsity=0.75)
    if ckpt_path is not None:  # another start, which a new snapshot would teach
        torch.nn.init.zeros_(model.net[0].weight)
    distillation = DistillationCallback(output="net", features=["net.0"])
    strategy = shard(distributed=distributed)
    trainer = make_trainer(folder, strategy, pruning, distillation)
    if name == "stopped":
        model.on_train_epoch_end = lambda: setattr(trainer, "should_stop", True)
    trainer.fit(model, loader(), ckpt_path=ckpt_path, weights_only=True)
    trainer.save_checkpoint(folder / f"{name}.ckpt")
    return outcome(pruning, model)


@pytest.mark.works_with(SECTION, "FSDP2 and `PruningCallback`, a snapshot resumed bit for bit")
@pytest.mark.parametrize("distributed", [False, True], ids=["full", "distributed"])
def test_shards_go_on_under_their_snapshot(distributed, two, tmp_path):
    (masks, weights), _ = two(fit, tmp_path, "whole", distributed)
    assert_pruned(masks, weights)
    two(fit, tmp_path, "stopped", distributed)
    path = tmp_path / "stopped.ckpt"
    for found in two(fit, tmp_path, "resumed", distributed, path):
        assert_equal(masks, found[0])
        assert_equal(weights, found[1])
