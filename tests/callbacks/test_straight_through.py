"""Straight-through training in a Trainer."""

import warnings

import pytest
import torch
from lightning.pytorch.callbacks import (
    EMAWeightAveraging,
    LambdaCallback,
    StochasticWeightAveraging,
)
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy

from lightning_prune import (
    GlobalAllocation,
    MagnitudeCriterion,
    NMPattern,
    PolynomialSchedule,
    PruningCallback,
    StraightThrough,
)
from tests.callbacks.conftest import PRUNABLE, Record, zeros
from tests.callbacks.models import Gan, Tuned
from tests.callbacks.replicas import (
    Net,
    Sharded,
    assert_equal,
    assert_pruned,
    loader as replica_loader,
    make_trainer as make_replica_trainer,
    outcome,
)
from tests.callbacks.runs import STEPS, SaliencySum, Save, fit
from tests.callbacks.test_finders import Trace, with_finder, with_late_finder


def make_pruning(every=1, **recipe):
    return PruningCallback(straight_through=StraightThrough(every=every), **recipe)


@pytest.mark.works_with("Stop and resume", "after any step, `straight_through`")
@pytest.mark.parametrize(
    "recipe",
    [
        {},
        {"every": 3, "allocation": GlobalAllocation()},
        {"criterion": SaliencySum()},
        {"pattern": NMPattern(), "sparsity": 0.5},
    ],
    ids=["every step", "every third step, global", "a criterion with state", "2:4"],
)
def test_a_run_resumed_after_any_step_equals_the_uninterrupted_one(recipe, tmp_path):
    whole, save = fit(pruning=make_pruning(**recipe)), Save(tmp_path)
    assert not whole.differences(fit(save, pruning=make_pruning(**recipe)))
    assert save.saved == list(range(1, STEPS + 1))
    for step in save.saved:
        resumed = fit(pruning=make_pruning(**recipe), resume=tmp_path / f"{step}.ckpt", seed=1)
        assert not whole.after(step).differences(resumed), step


@pytest.mark.works_with(
    "Precision and compilation",
    "`straight_through`: zeros after each batch, with clipping, accumulation and bf16",
)
@pytest.mark.parametrize(
    "options",
    [{"gradient_clip_val": 0.1}, {"accumulate_grad_batches": 2}, {"precision": "bf16-mixed"}],
    ids=str,
)
def test_after_each_batch_and_in_each_checkpoint_the_zeros_are_exact(
    options, make_model, make_trainer, loader, tmp_path
):
    pruning, model = make_pruning(sparsity=0.75), make_model()
    record, counts = Record(pruning), []
    look = LambdaCallback(on_train_batch_end=lambda *_: counts.append(zeros(model)))
    make_trainer(pruning, record, look, max_epochs=4, **options).fit(model, loader, loader)
    assert counts == [round(PRUNABLE * sparsity) for sparsity in record.sparsities]
    assert counts[-1] == round(PRUNABLE * 0.75)


@pytest.mark.works_with("Averaging", "`straight_through` beside EMA and SWA")
@pytest.mark.parametrize("pruning_first", [True, False])
@pytest.mark.parametrize(
    "make_averaging",
    [
        lambda: EMAWeightAveraging(decay=0.9),
        lambda: StochasticWeightAveraging(swa_lrs=1e-2, swa_epoch_start=1),
    ],
    ids=["ema", "swa"],
)
def test_an_average_is_zero_where_the_masks_prune(
    make_averaging, pruning_first, make_model, make_trainer, loader
):
    model, pruning = make_model(), make_pruning(sparsity=0.75)
    callbacks = [pruning, make_averaging()]
    if not pruning_first:
        callbacks.reverse()
    make_trainer(*callbacks, max_epochs=4).fit(model, loader, loader)
    parameters = dict(model.named_parameters())
    for name, mask in pruning.masks.items():
        assert not parameters[name][~mask].any()
        assert parameters[name].any()
    assert zeros(model) >= round(PRUNABLE * 0.75)


@pytest.mark.works_with("Loops", "`straight_through`: the finders leave no trace")
@pytest.mark.slow
@pytest.mark.parametrize("find", [with_finder, with_late_finder])
def test_a_finder_leaves_no_trace(find, make_trainer, loader):
    runs = []
    model = Tuned(loader.dataset)
    for finds in (True, False):
        schedule = PolynomialSchedule(begin=0, end=0.75)
        pruning = make_pruning(sparsity=0.75, schedule=schedule)
        trace = Trace(pruning)
        trainer = make_trainer(pruning, trace, max_epochs=4)
        if finds:
            find(trainer, model)
            trainer.fit(model)
        elif find is with_finder:
            trainer.fit(Tuned(loader.dataset, lr=model.lr))
        else:
            continue
        runs.append(trace.seen)
    assert zeros(model) == round(PRUNABLE * 0.75)
    assert runs[0] == runs[-1]


@pytest.mark.works_with("Loops", "`straight_through` under manual optimization of two networks")
def test_two_optimizers_by_hand_each_keep_the_values_of_their_own_weights(tmp_path):
    pruning = make_pruning(sparsity=0.5)
    run = fit(pruning=pruning, model=Gan())
    assert run.state["rest"].keys() == run.state["masks"].keys()
    assert pruning.sparsity == pytest.approx(0.5, abs=0.01)
    parameters = dict(run.model.named_parameters())
    for name, mask in pruning.masks.items():
        assert not parameters[name][~mask].any()


def fit_replicas(folder, pattern):
    recipe = {"pattern": pattern} if pattern else {"criterion": MagnitudeCriterion()}
    pruning, model = make_pruning(sparsity=0.5, **recipe), Net(dropout=0.1)

    def differ():
        torch.manual_seed(torch.distributed.get_rank())

    model.on_train_start = differ
    make_replica_trainer(folder, DDPStrategy(), pruning).fit(model, replica_loader())
    return *outcome(pruning, model), pruning.state_dict()["rest"], torch.rand(())


@pytest.mark.works_with(
    "Replicas and shards", "`straight_through` on DDP: the same masks and values on all replicas"
)
@pytest.mark.slow
@pytest.mark.xdist_group("processes")
@pytest.mark.parametrize("pattern", [None, NMPattern(n=1, m=2)])
def test_replicas_choose_the_same_masks_and_hold_the_same_values(pattern, two, tmp_path):
    one, other = two(fit_replicas, tmp_path, pattern)
    assert one[3] != other[3]
    for mine, others in zip(one[:3], other[:3], strict=True):
        assert_equal(mine, others)
    assert_pruned(one[0], one[1], sparsity=0.5)


def fit_shards(folder, name, allocation):
    """Train two epochs, only the first if the name is "stopped", or only the second."""
    strategy = ModelParallelStrategy(
        data_parallel_size=2, tensor_parallel_size=1, save_distributed_checkpoint=False
    )
    pruning, model = make_pruning(sparsity=0.75, allocation=allocation), Sharded()
    trainer = make_replica_trainer(folder, strategy, pruning)
    if name == "stopped":
        model.on_train_epoch_end = lambda: setattr(trainer, "should_stop", True)
    ckpt_path = folder / "stopped.ckpt" if name == "resumed" else None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "training stopped before the schedule's end")
        trainer.fit(model, replica_loader(), ckpt_path=ckpt_path, weights_only=True)
    trainer.save_checkpoint(folder / f"{name}.ckpt")
    return *outcome(pruning, model), pruning.state_dict()["rest"]


@pytest.mark.works_with(
    "Replicas and shards", "`straight_through` on FSDP2: exact, and resumed with all values"
)
@pytest.mark.slow
@pytest.mark.xdist_group("processes")
@pytest.mark.parametrize("allocation", [None, GlobalAllocation()])
def test_shards_land_exactly_and_resume_with_all_values(allocation, two, tmp_path):
    (whole, same), _, (resumed, _) = (
        two(fit_shards, tmp_path, name, allocation) for name in ("whole", "stopped", "resumed")
    )
    assert_pruned(*whole[:2])
    for parts in (same, resumed):
        for one, other in zip(whole, parts, strict=True):
            assert_equal(one, other)
