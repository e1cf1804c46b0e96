"""A growing penalty inside a Lightning Trainer: resumed, and on replicas."""

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy

from lightning_prune import GrowingPenalty, PolynomialSchedule, PruningCallback, TaylorCriterion
from tests.callbacks.replicas import Net, assert_equal, loader, make_trainer, outcome
from tests.callbacks.runs import STEPS, Save, fit

PENALTY = GrowingPenalty(largest=3.0, ahead=0.5)


@pytest.mark.works_with("Stop and resume", "after any step, `penalty`")
@pytest.mark.parametrize("criterion", [None, TaylorCriterion()], ids=str)
def test_a_run_resumed_after_any_step_equals_the_uninterrupted_one(criterion, tmp_path):
    def pruning():
        schedule = PolynomialSchedule(begin=0.3, end=0.8, every=0.2)
        return PruningCallback(criterion=criterion, schedule=schedule, penalty=PENALTY)

    whole, save = fit(pruning=pruning()), Save(tmp_path)
    assert not whole.differences(fit(save, pruning=pruning()))
    for step in range(1, STEPS + 1, 2):
        resumed = fit(pruning=pruning(), resume=tmp_path / f"{step}.ckpt", seed=1)
        assert not whole.after(step).differences(resumed), step


def fit_replicas(folder, penalty):
    pruning, model = PruningCallback(sparsity=0.75, penalty=penalty), Net(dropout=0.1)

    def differ():
        torch.manual_seed(torch.distributed.get_rank())

    model.on_train_start = differ
    make_trainer(folder, DDPStrategy(), pruning).fit(model, loader())
    return outcome(pruning, model)


@pytest.mark.works_with("Replicas and shards", "`penalty` on DDP: the same weights on all replicas")
@pytest.mark.slow
@pytest.mark.xdist_group("processes")
def test_replicas_shrink_the_same_weights(two, tmp_path):
    first, second = two(fit_replicas, tmp_path, PENALTY)
    assert_equal(first[0], second[0])
    assert_equal(first[1], second[1])
    without, _ = two(fit_replicas, tmp_path, None)
    assert any(not torch.equal(first[1][name], without[1][name]) for name in without[1])
