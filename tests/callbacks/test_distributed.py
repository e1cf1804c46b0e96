"""Trainers on several gloo processes."""

import re
from dataclasses import dataclass

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
)

from lightning_prune import (
    Criterion,
    GlobalAllocation,
    OneShotSchedule,
    PolynomialSchedule,
    PruningCallback,
    SparsityCheckpoint,
    SparsityMonitor,
    TaylorCriterion,
    UniformAllocation,
    WandaCriterion,
)
from lightning_prune.deploy.checkpoints import read_lightning_checkpoint
from lightning_prune.models.torch_floors import TorchFloor
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
from tests.conftest import answers
from tests.versions import refused_before

SECTION = "Replicas and shards"
uneven = refused_before(TorchFloor.UNEVEN_SHARDS)
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("processes")]


@dataclass(frozen=True, kw_only=True)
class GradientSum(Criterion):
    """A criterion of a user that gathers something over the steps."""

    def observe(self, tensor, state):
        gathered = state.get("sum", torch.zeros_like(tensor.mask.kept, dtype=torch.float32))
        return {"sum": gathered + (tensor.parameter.detach() * tensor.parameter.grad).abs()}

    def score(self, tensor, state):
        return state["sum"]


def fit_replicas(folder, criterion):
    pruning, model = PruningCallback(sparsity=0.75, criterion=criterion()), Net(dropout=0.1)

    def differ():
        torch.manual_seed(torch.distributed.get_rank())

    model.on_train_start = differ
    make_trainer(folder, DDPStrategy(), pruning).fit(model, loader())
    return *outcome(pruning, model), torch.rand(())


@pytest.mark.works_with(
    SECTION, "DDP with different random states: the same masks on all processes"
)
@pytest.mark.parametrize("criterion", [*answers(Criterion), GradientSum])
def test_replicas_choose_the_same_masks(criterion, two, tmp_path):
    (masks, weights, random), (other_masks, other_weights, other_random) = two(
        fit_replicas, tmp_path, criterion
    )
    assert random != other_random
    assert_equal(masks, other_masks)
    assert_equal(weights, other_weights)
    assert_pruned(masks, weights)


class Called(Net):
    def forward(self, values):
        return self.net(values)

    def validation_step(self, batch, batch_idx):
        self(batch[0])


def fit_and_report(folder):
    logger, pruning = CSVLogger(folder, name="", version="logs"), PruningCallback(sparsity=0.75)
    trainer = make_trainer(
        folder, DDPStrategy(), pruning, SparsityMonitor(report=True), logger=logger
    )
    trainer.fit(Called(), loader(), loader())
    return trainer.state.finished


def test_the_first_process_reports_on_what_forward_is_called_with(two, tmp_path):
    # Lightning calls the module with the whole batch first, in the place of validation_step.
    assert two(fit_and_report, tmp_path) == [True, True]
    header, *_, last = (tmp_path / "logs" / "metrics.csv").read_text().splitlines()
    logged = dict(zip(header.split(","), last.split(","), strict=True))
    assert float(logged["report/effective_macs"]) == 0.25


def fit_some_replicas(folder, criterion, name, ckpt_path=None):
    """Train two epochs, or only the first if the name is "stopped"; save under the name."""
    schedule = PolynomialSchedule(begin=0.2, every=0.3)
    pruning = PruningCallback(sparsity=0.75, schedule=schedule, criterion=criterion())
    model = Net()
    trainer = make_trainer(folder, DDPStrategy(), pruning)
    if name == "stopped":
        model.on_train_epoch_end = lambda: setattr(trainer, "should_stop", True)
    trainer.fit(model, loader(), ckpt_path=ckpt_path, weights_only=True)
    trainer.save_checkpoint(folder / f"{name}.ckpt")
    return outcome(pruning, model)


@pytest.mark.parametrize("criterion", [TaylorCriterion, WandaCriterion])
def test_resumed_replicas_equal_the_uninterrupted_ones(criterion, two, tmp_path):
    (masks, weights), _ = two(fit_some_replicas, tmp_path, criterion, "whole")
    two(fit_some_replicas, tmp_path, criterion, "stopped")
    observed = torch.load(tmp_path / "stopped.ckpt", weights_only=True)["callbacks"][
        "PruningCallback"
    ]["observed"]
    assert all(observed.values())  # else nothing would be at stake
    for its_masks, its_weights in two(
        fit_some_replicas, tmp_path, criterion, "resumed", tmp_path / "stopped.ckpt"
    ):
        assert_equal(masks, its_masks)
        assert_equal(weights, its_weights)


def fit_shards(
    folder, tensor_parallel=1, allocation=None, *, name="whole", distributed=False, ckpt_path=None
):
    """Train two epochs, or only the first if the name is "stopped"; save under the name."""
    strategy = ModelParallelStrategy(
        tensor_parallel_size=tensor_parallel,
        data_parallel_size=torch.distributed.get_world_size() // tensor_parallel,
        save_distributed_checkpoint=distributed,
    )
    pruning, model = PruningCallback(sparsity=0.75, allocation=allocation), Sharded()
    logger = TensorBoardLogger(folder, name="", version="logs")
    trainer = make_trainer(
        folder, strategy, pruning, SparsityMonitor(histograms_every=1), logger=logger
    )
    if name == "stopped":
        model.on_train_epoch_end = lambda: setattr(trainer, "should_stop", True)
    trainer.fit(model, loader(), loader(), ckpt_path=ckpt_path, weights_only=True)
    trainer.save_checkpoint(folder / f"{name}.ckpt")
    return outcome(pruning, model)


@pytest.mark.works_with(SECTION, "FSDP2 (`ModelParallelStrategy`)")
@pytest.mark.parametrize("allocation", [None, UniformAllocation(), GlobalAllocation()])
def test_fsdp2_lands_exactly(allocation, two, tmp_path):
    first, second = two(fit_shards, tmp_path, 1, allocation)
    assert_equal(first[0], second[0])
    assert_pruned(*first)
    saved = torch.load(tmp_path / "whole.ckpt", weights_only=True)["state_dict"]
    assert_equal(saved, first[1])


@pytest.mark.works_with(SECTION, "Tensor parallelism, alone and under FSDP2")
@pytest.mark.parametrize("world", ["two", pytest.param("four", marks=[uneven, pytest.mark.rare])])
def test_tensor_parallelism_lands_exactly(world, request, tmp_path):
    outcomes = request.getfixturevalue(world)(fit_shards, tmp_path, 2)
    for masks, weights in outcomes:
        assert_equal(masks, outcomes[0][0])
        assert_pruned(masks, weights)


def fit_shards_with(folder, options):
    strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
    pruning, model = PruningCallback(sparsity=0.75), Sharded()
    make_trainer(folder, strategy, pruning, **options).fit(model, loader())
    return outcome(pruning, model)


@pytest.mark.works_with(SECTION, "FSDP2 in bf16, with accumulation, with gradient clipping")
@pytest.mark.parametrize(
    "options",
    [
        {"precision": "bf16-true"},
        {"precision": "bf16-mixed"},
        {"accumulate_grad_batches": 3},
        {"gradient_clip_val": 0.1},
    ],
    ids=str,
)
def test_fsdp2_lands_with_other_options_of_the_trainer(options, two, tmp_path):
    for masks, weights in two(fit_shards_with, tmp_path, options):
        assert_pruned(masks, weights)


def best_of_shards(folder, strategy):
    best = SparsityCheckpoint(dirpath=folder, monitor="val_acc", mode="max")
    model = Sharded() if isinstance(strategy, ModelParallelStrategy) else Net()
    pruning = PruningCallback(sparsity=0.75, schedule=OneShotSchedule(end=0.5))
    trainer = make_trainer(folder, strategy, pruning, best, max_epochs=3, enable_checkpointing=True)
    trainer.fit(model, loader(), loader())
    return best.best_model_path


@pytest.mark.works_with(SECTION, "`SparsityCheckpoint` under DDP and FSDP2")
@pytest.mark.parametrize(
    "strategy",
    [
        DDPStrategy(),
        ModelParallelStrategy(
            data_parallel_size=2, tensor_parallel_size=1, save_distributed_checkpoint=False
        ),
    ],
    ids=["ddp", "fsdp2"],
)
def test_the_best_checkpoint_is_sparse_on_several_processes(strategy, two, tmp_path):
    path, same = two(best_of_shards, tmp_path, strategy)
    assert path == same
    weights = torch.load(path, weights_only=True)["state_dict"]
    assert sum(int((weights[f"net.{i}.weight"] != 0).sum()) for i in (0, 3)) == round(TOTAL / 4)


def resume_shards(folder, tensor_parallel, distributed):
    return fit_shards(
        folder,
        tensor_parallel,
        name="resumed",
        distributed=distributed,
        ckpt_path=folder / "stopped.ckpt",
    )


def stop_shards(folder, distributed):
    return fit_shards(folder, name="stopped", distributed=distributed)


@pytest.mark.works_with(SECTION, "FSDP2: full and distributed checkpoints, resumed bit for bit")
@pytest.mark.parametrize("distributed", [False, True])
def test_a_resumed_sharded_run_equals_the_uninterrupted_one(distributed, two, tmp_path):
    (masks, weights), _ = two(fit_shards, tmp_path)
    (_, stopped), _ = two(stop_shards, tmp_path, distributed)
    assert (tmp_path / "stopped.ckpt").is_dir() == distributed
    assert_equal(read_lightning_checkpoint(tmp_path / "stopped.ckpt")["state_dict"], stopped)
    assert any(not torch.equal(weights[name], stopped[name]) for name in weights)
    for its_masks, its_weights in two(resume_shards, tmp_path, 1, distributed):
        assert_equal(masks, its_masks)
        assert_equal(weights, its_weights)


def assert_nested(masks, before):
    for name, mask in masks.items():
        assert not (mask & ~before[name]).any()


@pytest.mark.works_with(SECTION, "Resume on another number of processes")
@pytest.mark.parametrize(
    ("world", "tensor_parallel", "distributed"),
    [("two", 2, False), pytest.param("four", 2, True, marks=uneven)],
)
def test_shards_resume_on_another_layout(
    world, tensor_parallel, distributed, two, request, tmp_path
):
    (before, _), _ = two(stop_shards, tmp_path, distributed)
    run = request.getfixturevalue(world)
    for masks, weights in run(resume_shards, tmp_path, tensor_parallel, distributed):
        assert_pruned(masks, weights)
        assert_nested(masks, before)


@pytest.mark.works_with(SECTION, "Resume on another number of processes")
def test_a_sharded_run_goes_on_in_one_process(two, tmp_path):
    (before, _), _ = two(stop_shards, tmp_path, False)
    pruning, model = PruningCallback(sparsity=0.75), Net()
    trainer = make_trainer(tmp_path, "auto", pruning, SparsityMonitor())
    trainer.fit(model, loader(), ckpt_path=tmp_path / "stopped.ckpt", weights_only=True)
    masks, weights = outcome(pruning, model)
    assert trainer.global_step > 8
    assert_pruned(masks, weights)
    assert_nested(masks, before)


@pytest.mark.works_with(SECTION, "FSDP1 (`FSDPStrategy`), DeepSpeed", refused=True)
@pytest.mark.parametrize(
    ("strategy", "refusal"),
    [
        (FSDPStrategy, "need a strategy that keeps the shape of parameters, got FSDPStrategy"),
        (DeepSpeedStrategy, "got DeepSpeedStrategy: at every stage of ZeRO it steps on flat"),
    ],
)
def test_strategies_that_flatten_parameters_are_refused(strategy, refusal, tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path, "auto")
    # Neither can be had without a GPU.
    monkeypatch.setattr(Trainer, "strategy", strategy.__new__(strategy))
    with pytest.raises(ValueError, match=re.escape(refusal) + ".*; use ModelParallelStrategy"):
        PruningCallback().setup(trainer, Net(), "fit")
