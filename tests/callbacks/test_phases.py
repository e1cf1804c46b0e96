"""Dense and sparse phases in a Trainer."""

import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, LambdaCallback

from lightning_prune import OneShotSchedule, Phases, PruningCallback
from tests.callbacks.conftest import PRUNABLE, Record, zeros
from tests.callbacks.runs import STEPS, SaliencySum, Save, fit


def make_pruning(**recipe):
    phases = Phases(begin=0.1, end=0.8, rounds=3)
    return PruningCallback(**{"schedule": OneShotSchedule(end=0), "phases": phases, **recipe})


@pytest.mark.works_with("Stop and resume", "after any step, `phases`")
@pytest.mark.parametrize("recipe", [{}, {"criterion": SaliencySum()}], ids=["plain", "with state"])
def test_a_run_resumed_after_any_step_equals_the_uninterrupted_one(recipe, tmp_path):
    whole, save = fit(pruning=make_pruning(**recipe)), Save(tmp_path)
    assert not whole.differences(fit(save, pruning=make_pruning(**recipe)))
    for step in range(1, STEPS + 1):
        resumed = fit(pruning=make_pruning(**recipe), resume=tmp_path / f"{step}.ckpt", seed=1)
        assert not whole.after(step).differences(resumed), step


@pytest.mark.works_with("Loops", "`phases`: dense and sparse in turns, and sparse at the end")
def test_phases_take_turns_and_the_fit_ends_sparse(make_model, make_trainer, loader):
    model, pruning = make_model(), make_pruning(sparsity=0.75)
    record = Record(pruning)
    make_trainer(pruning, record, EMAWeightAveraging(), max_epochs=8).fit(model, loader)
    pairs = zip(record.sparsities, record.sparsities[1:], strict=False)
    assert [after for before, after in pairs if after != before] == [
        0.75,
        0,
        0.75,
        0,
        0.75,
        0,
        0.75,
    ]
    parameters = dict(model.named_parameters())
    assert not any(parameters[name][~mask].any() for name, mask in pruning.masks.items())
    assert zeros(model) == round(PRUNABLE * 0.75)


@pytest.mark.works_with(
    "Loops", "`phases`: a fit that stops in a dense phase warns and leaves zeros"
)
def test_a_fit_that_stops_in_a_dense_phase_warns_and_leaves_zeros(make_model, make_trainer, loader):
    model, pruning = make_model(), make_pruning(sparsity=0.75)
    record = Record(pruning)

    def stop(trainer, *_):
        trainer.should_stop = record.sparsities[-2:] == [0.75, 0]

    stopping = LambdaCallback(on_train_batch_end=stop)
    with pytest.warns(UserWarning, match="stopped before the last sparse phase"):
        make_trainer(pruning, record, stopping, max_epochs=8).fit(model, loader)
    assert record.sparsities[-1] == 0
    assert zeros(model) == round(PRUNABLE * 0.75)
    assert torch.equal(model.net[0].weight != 0, pruning.masks["net.0.weight"])
