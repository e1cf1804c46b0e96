"""Which models are considered for the best, and which sparsities are refused."""

from datetime import timedelta
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import LambdaCallback, ModelCheckpoint

from lightning_prune import OneShotSchedule, PolynomialSchedule, PruningCallback, SparsityCheckpoint
from tests.callbacks.best_models import ZEROS, best, epochs, works_with, zeros


@works_with("the best model is chosen among the models at the final sparsity")
def test_the_best_is_the_best_of_the_sparse_ones(fit, tmp_path):
    plain = ModelCheckpoint(tmp_path / "plain", monitor="score", mode="max")
    sparse = best(dirpath=tmp_path / "sparse")
    fit(plain, sparse)
    assert epochs(tmp_path / "plain") == [0]
    assert epochs(tmp_path / "sparse") == [4]
    assert zeros(plain.best_model_path) < zeros(sparse.best_model_path) == ZEROS
    assert float(sparse.best_model_score) == pytest.approx(0.7)


@works_with("`save_top_k`: 2, all or none; without `monitor`, the newest model")
@pytest.mark.parametrize(
    ("arguments", "kept"),
    [
        ({"save_top_k": 2}, [4, 5]),
        ({"save_top_k": -1}, [3, 4, 5]),
        ({"save_top_k": 0}, []),
        ({"monitor": None}, [5]),
        ({"monitor": None, "save_top_k": -1}, [3, 4, 5]),
        ({"mode": "min"}, [3]),
    ],
)
def test_only_sparse_models_are_among_the_best_k(arguments, kept, fit, tmp_path):
    fit(best(dirpath=tmp_path / "best", **arguments))
    assert epochs(tmp_path / "best") == kept


@works_with("a `sparsity` below the final sparsity")
def test_a_named_sparsity_lets_the_earlier_ones_in(fit, tmp_path):
    sparse = best(sparsity=0.4, save_top_k=-1, dirpath=tmp_path)
    fit(sparse)
    kept = [zeros(path) for path in sparse.best_k_models]
    assert 0.4 / 0.75 * ZEROS <= min(kept) < max(kept) == ZEROS
    assert epochs(tmp_path)[-1] == 5
    assert 0 not in epochs(tmp_path)


@works_with("a target that rounding misses by a little")
@pytest.mark.parametrize("named", [None, 0.333])
def test_a_target_reached_but_for_rounding_counts(named, fit, tmp_path):
    pruning = PruningCallback(sparsity=0.333, schedule=OneShotSchedule(end=3, unit="epoch"))
    fit(best(sparsity=named, save_top_k=-1, dirpath=tmp_path), pruning=pruning)
    assert pruning.sparsity < 0.333
    assert epochs(tmp_path) == [3, 4, 5]


TRIGGERS = {
    "every_n_epochs": {"every_n_epochs": 2},
    "every_n_train_steps": {"every_n_train_steps": 2},
    "train_time_interval": {"train_time_interval": timedelta(0)},
    "save_on_train_epoch_end": {"save_on_train_epoch_end": True},
    "after validation": {"save_on_train_epoch_end": False},
}


@works_with("every trigger: epochs, steps, time, before and after validation")
@pytest.mark.parametrize("monitor", ["score", None])
@pytest.mark.parametrize("trigger", TRIGGERS.values(), ids=TRIGGERS)
def test_no_trigger_saves_a_denser_model_as_best(trigger, monitor, fit, tmp_path):
    sparse = best(dirpath=tmp_path / "sparse", save_top_k=-1, monitor=monitor, **trigger)
    plain = ModelCheckpoint(
        tmp_path / "plain", save_top_k=-1, monitor=monitor, mode="max", **trigger
    )
    fit(sparse, plain, limit_train_batches=3)
    kept = [zeros(path) for path in Path(tmp_path / "sparse").glob("*.ckpt")]
    assert set(kept) == {ZEROS}
    dense = [zeros(path) for path in Path(tmp_path / "plain").glob("*.ckpt")]
    assert min(dense) < ZEROS
    if monitor is None:
        assert len(kept) == dense.count(ZEROS)


@works_with("saving between validations: the score of a denser model does not count")
def test_a_score_of_the_last_validation_counts_for_the_model_that_was_validated(fit, tmp_path):
    pruning = PruningCallback(sparsity=0.75, schedule=OneShotSchedule(end=33, unit="step"))
    sparse = best(dirpath=tmp_path, save_top_k=-1, every_n_train_steps=5)
    plain = ModelCheckpoint(
        tmp_path / "plain", monitor="score", mode="max", save_top_k=-1, every_n_train_steps=5
    )
    fit(sparse, plain, pruning=pruning)
    steps = sorted(int(path.stem.rpartition("=")[2]) for path in tmp_path.glob("*.ckpt"))
    assert steps == [45, 50, 55, 60]  # 35 and 40 would have the score of the end of epoch 2
    assert float(sparse.best_model_score) == pytest.approx(0.7)
    stale = [score for path, score in plain.best_k_models.items() if "step=35" in path]
    assert float(stale[0]) == pytest.approx(0.97)


def test_a_score_of_training_counts_at_once(fit, tmp_path):
    log = LambdaCallback(
        on_train_batch_end=lambda trainer, module, *_: module.log("seen", trainer.global_step)
    )
    pruning = PruningCallback(sparsity=0.75, schedule=OneShotSchedule(end=33, unit="step"))
    fit(
        log,
        best(dirpath=tmp_path, save_top_k=-1, monitor="seen", every_n_train_steps=5),
        pruning=pruning,
    )
    steps = sorted(int(path.stem.rpartition("=")[2]) for path in tmp_path.glob("*.ckpt"))
    assert steps == [35, 40, 45, 50, 55, 60]


@works_with("a sparsity outside [0, 1]", refused=True)
@pytest.mark.parametrize("sparsity", [-0.1, 1.1, float("nan")])
def test_a_sparsity_out_of_range_is_refused(sparsity):
    with pytest.raises(ValueError, match=rf"need 0 <= sparsity <= 1, got sparsity={sparsity}"):
        SparsityCheckpoint(sparsity=sparsity)


@works_with("no `PruningCallback` beside it", refused=True)
def test_a_checkpoint_without_pruning_is_refused(make_model, make_trainer, loader):
    late = LambdaCallback(on_fit_start=lambda *_: pytest.fail("refused too late"))
    trainer = make_trainer(SparsityCheckpoint(), late, enable_checkpointing=True)
    with pytest.raises(ValueError, match="need a PruningCallback beside a SparsityCheckpoint"):
        trainer.fit(make_model(), loader)
    trainer.validate(make_model(), loader, verbose=False)  # where nothing is saved


@works_with("a sparsity above the final target", refused=True)
def test_a_sparsity_that_will_not_be_reached_is_refused(fit):
    with pytest.raises(ValueError, match=r"need sparsity <= 0\.7500.*got sparsity=0\.8 of Spars"):
        fit(best(sparsity=0.8))
    mean = PruningCallback(sparsity={"net.0": 0.9, "net.2": 0.3})
    with pytest.raises(ValueError, match=r"need sparsity <= 0\.7800.*got sparsity=0\.8 of Spars"):
        fit(best(sparsity=0.8), pruning=mean)


@works_with("a model that is sparser than the target, by `keep_zeros`")
def test_zeros_that_are_kept_count(fit, make_model, tmp_path):
    model = make_model()
    with torch.no_grad():
        model.net[0].weight[:, ::2] = 0.0
    pruning = PruningCallback(0.75, OneShotSchedule(end=3, unit="epoch"), keep_zeros=True)
    fit(best(sparsity=0.4, dirpath=tmp_path), pruning=pruning, model=model)
    assert epochs(tmp_path) == [0]


def test_a_mean_of_equal_targets_can_be_named(fit, tmp_path):
    pruning = PruningCallback(sparsity={"net.0": 0.9, "net.2": 0.3}, schedule=OneShotSchedule())
    fit(best(sparsity=0.78, dirpath=tmp_path), pruning=pruning)
    assert pruning.pruner.final_sparsity == pytest.approx(0.78)
    assert epochs(tmp_path)


@works_with("layers that are unfrozen later")
@pytest.mark.filterwarnings("ignore:nothing is pruned until a weight is trained")
@pytest.mark.parametrize("named", [0.75, None])
def test_what_is_frozen_at_the_start_can_still_reach_the_sparsity(named, fit, make_model, tmp_path):
    def unfreeze(trainer, module):
        if trainer.current_epoch == 2:
            module.net[0].requires_grad_(True)

    model = make_model()
    model.net[0].requires_grad_(False)
    pruning = PruningCallback(
        sparsity={"*": 0.75, "net.2": None},
        schedule=PolynomialSchedule(begin=0, end=1, unit="epoch"),
    )
    sparse = best(sparsity=named, save_top_k=-1, dirpath=tmp_path)
    fit(sparse, LambdaCallback(on_train_epoch_start=unfreeze), pruning=pruning, model=model)
    assert epochs(tmp_path) == [2, 3, 4, 5]
    model.net[0].requires_grad_(False)
    with pytest.raises(ValueError, match=r"need sparsity <= 0\.7500"):
        fit(best(sparsity=0.8), pruning=PruningCallback(0.75), model=model)


def stop_at(epoch):
    return LambdaCallback(
        on_train_epoch_end=lambda trainer, _: setattr(
            trainer, "should_stop", trainer.current_epoch == epoch
        )
    )


@works_with("a run that ends before the sparsity is reached warns with the numbers")
@pytest.mark.filterwarnings("ignore:training stopped before the schedule's end")
def test_a_fit_without_a_best_model_warns(fit, tmp_path):
    sparse = best(dirpath=tmp_path)
    with pytest.warns(UserWarning, match=r"no model: reached sparsity 0\.4719 of 0\.7500; end"):
        fit(sparse, stop_at(1))
    assert sparse.best_model_path == ""
    assert not epochs(tmp_path)
    fit(best(dirpath=tmp_path, save_top_k=0), stop_at(1))  # wants none


def test_a_fit_without_a_save_says_so(fit, tmp_path):
    with pytest.warns(UserWarning, match=r"reached sparsity 0\.7500 of 0\.7500; no save was due"):
        fit(best(dirpath=tmp_path, every_n_epochs=10))


def test_a_second_fit_is_judged_alone(fit, tmp_path):
    sparse = best(dirpath=tmp_path, every_n_epochs=6)
    fit(sparse)
    with pytest.warns(UserWarning, match="has considered no model"):
        fit(sparse, max_epochs=5)


def test_a_trial_run_does_not_warn(fit):
    fit(best(), fast_dev_run=3)
