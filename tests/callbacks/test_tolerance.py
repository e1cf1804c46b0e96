"""What a training under a tolerance tries, keeps and comes to."""

import pytest
import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

from lightning_prune import (
    ChannelPattern,
    GlobalAllocation,
    PruningCallback,
    SparsityMonitor,
    Tolerance,
    WandaCriterion,
)
from tests.callbacks.conftest import Classifier
from tests.callbacks.models import Gan, half_precision
from tests.callbacks.runs import Save, dataset, fit, frozen
from tests.callbacks.within import FINAL, WITHIN, Fragile, fit_within


def test_training_lands_at_the_most_that_holds_and_ends_with_the_validated_model(tmp_path):
    pruning, validated, run = fit_within(tmp_path, limit=0.8)
    rounds = [0.0, 0.5, 0.75, 0.875, 0.875, 0.8232, 0.8232, 0.7898]
    found = [round(sparsity, 4) for sparsity, _, _ in validated.models]
    assert found[: len(rounds)] == pytest.approx(rounds, abs=1e-3)
    assert pruning.sparsity == pytest.approx(0.7898, abs=1e-3)
    best = max(
        (model for model in validated.models if model[0] == pruning.sparsity), key=lambda m: m[1]
    )
    assert run.weights == best[2]
    assert set(found[len(rounds) :]) == {found[-1]}  # the rest of the plan trains that model


def test_the_checkpoint_that_is_kept_is_the_model_that_training_ends_with(tmp_path):
    _, _, run = fit_within(tmp_path)
    saved = torch.load(tmp_path / "checkpoints" / "within_tolerance.ckpt", weights_only=True)
    assert frozen(dict(saved["state_dict"])) == run.weights


def test_masks_nest_except_that_a_round_that_fails_goes_back_to_the_masks_that_held(tmp_path):
    _, validated, _ = fit_within(tmp_path, limit=0.8)
    falls = 0
    seen = []
    for masks, sparsity in zip(validated.masks, validated.sparsities, strict=True):
        if seen and sparsity < seen[-1][1]:
            falls += 1
            held = next(each for each, s in reversed(seen) if s == pytest.approx(0.75, abs=1e-3))
        elif seen:
            held = seen[-1][0]
        if seen:
            assert all(not (masks[name] & ~held[name]).any() for name in masks)
        seen.append((masks, sparsity))
    assert falls == 2


def test_going_back_restores_weights_buffers_and_statistics_but_not_the_learning_rate(tmp_path):
    class Start(SparsityMonitor):
        def on_train_batch_start(self, trainer, pl_module, *_):
            (optimizer,) = trainer.optimizers
            self.starts = getattr(self, "starts", {})
            state = frozen(optimizer.state_dict()["state"])
            rate = optimizer.param_groups[0]["lr"]
            self.starts[trainer.global_step] = frozen(dict(pl_module.state_dict())), state, rate

        on_train_start = on_train_batch_end = on_validation_end = on_train_end = lambda *_: None

    start = Start(histograms_every=None)
    fit_within(tmp_path, start, limit=0.8)
    held, after = start.starts[15 - 5], start.starts[25 - 5]  # after 2 rounds, after the third
    assert held[:2] == after[:2]
    assert held[2] != after[2]


def test_where_all_rounds_hold_the_final_sparsity_is_reached(tmp_path):
    pruning, validated, _ = fit_within(tmp_path, limit=1.0, max_epochs=4)
    assert pruning.sparsity == pytest.approx(FINAL)
    assert [round(s, 4) for s, _, _ in validated.models][:4] == pytest.approx(
        [0, 0.5, 0.75, 0.875], abs=1e-3
    )


def test_where_no_round_holds_the_model_stays_dense(tmp_path):
    tolerance = Tolerance(monitor="quality", tolerance=0.1, patience=0, halvings=1)
    pruning, validated, run = fit_within(tmp_path, tolerance=tolerance, limit=0.0, max_epochs=5)
    assert pruning.sparsity == 0
    dense = [model for model in validated.models if model[0] == 0]
    assert run.weights == max(dense, key=lambda model: model[1])[2]


def test_training_that_stops_in_a_round_ends_with_the_model_that_held_and_warns(tmp_path):
    with pytest.warns(UserWarning, match="training stopped in round 3, at sparsity 0.8750"):
        pruning, _, _ = fit_within(tmp_path, limit=0.8, max_epochs=3)
    assert pruning.sparsity == pytest.approx(0.75)


def test_the_dense_model_is_trained_for_the_first_validations(tmp_path):
    tolerance = Tolerance(monitor="quality", tolerance=0.1, begin=2)
    pruning, validated, _ = fit_within(tmp_path, tolerance=tolerance, limit=1.0, max_epochs=6)
    assert [s > 0 for s, _, _ in validated.models] == [False] * 3 + [True] * 4
    assert pruning.sparsity == pytest.approx(FINAL)


def test_training_that_stops_before_the_first_round_says_that_nothing_is_pruned(tmp_path):
    tolerance = Tolerance(monitor="quality", begin=3)
    with pytest.warns(UserWarning, match="training stopped before the first round of pruning"):
        pruning, _, _ = fit_within(tmp_path, tolerance=tolerance, max_epochs=2)
    assert pruning.sparsity == 0


def test_a_given_number_takes_the_place_of_the_dense_metric(tmp_path):
    tolerance = Tolerance(monitor="quality", tolerance=0.1, dense=0.45)
    pruning, _, _ = fit_within(tmp_path, tolerance=tolerance, limit=0.2, max_epochs=3)
    assert pruning.sparsity == pytest.approx(FINAL)


@pytest.mark.parametrize(
    "options",
    [
        {"precision": "bf16-mixed"},
        {"accumulate_grad_batches": 2},
        {"val_check_interval": 2, "max_epochs": 6},
        {"check_val_every_n_epoch": 2, "max_epochs": 24},
        {"gradient_clip_val": 0.1},
        {"num_sanity_val_steps": 0},
    ],
    ids=str,
)
def test_training_lands_alike_with_other_options_of_the_trainer(options, tmp_path):
    pruning, _, _ = fit_within(tmp_path, **options)
    assert pruning.sparsity == pytest.approx(0.7898, abs=1e-3)


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
def test_steps_that_the_scaler_skips_delay_the_rounds(tmp_path):
    pruning, _, run = fit_within(tmp_path, plugins=[half_precision()], max_epochs=40)
    assert run.trainer.global_step > sum(pruning.pruner.steps)
    assert pruning.sparsity == pytest.approx(0.7898, abs=1e-3)


def test_each_of_two_optimizers_goes_back(tmp_path):
    class Pair(Gan):
        def validation_step(self, batch, batch_idx):
            zeros = sum((net.weight == 0).sum() for net in (self.generator, self.discriminator))
            self.log("quality", 0.9 if zeros <= 0.8 * 512 else 0.5)

    pruning, _, _ = fit_within(tmp_path, model=Pair())
    assert pruning.sparsity == pytest.approx(0.7898, abs=1e-3)


@pytest.mark.parametrize(
    "recipe",
    [
        {"allocation": GlobalAllocation()},
        {"criterion": WandaCriterion(), "allocation": GlobalAllocation()},
    ],
    ids=str,
)
def test_training_lands_alike_with_other_answers(recipe, tmp_path):
    pruning, _, _ = fit_within(tmp_path, limit=0.84, recipe=recipe, max_epochs=14)
    assert pruning.sparsity == pytest.approx(0.8232, abs=2e-3)


@pytest.mark.slow
def test_channels_go_back_too(tmp_path):
    class Channels(Fragile):
        example_input_array = torch.zeros(2, 16, device="cpu")

        def forward(self, x):
            return self.net(x)

        def validation_step(self, batch, batch_idx):
            channels = (self.net[0].weight == 0).all(1).double().mean()
            self.log("quality", 0.9 if channels <= self.limit else 0.5)

    model = Channels(0.8)
    pruning, validated, _ = fit_within(
        tmp_path, model=model, recipe={"pattern": ChannelPattern(round_to=1)}
    )
    assert max(validated.sparsities) == pytest.approx(0.875)
    assert pruning.sparsity == pytest.approx(0.78125)  # 25 of 32 channels
    assert int((model.net[0].weight == 0).all(1).sum()) == 25


def test_the_monitor_sees_each_sparsity_and_the_logger_each_decision(tmp_path):
    monitor = SparsityMonitor(quality="quality")
    _, _, run = fit_within(tmp_path, monitor)
    qualities = {round(s, 3): q for s, q in monitor.quality_curve}
    assert qualities[0.0] > 0.8 > qualities[0.875]
    logged = [point for point in run.curve.values() if "tolerance/round" in point]
    held = [point["tolerance/sparsity_held"] for point in logged]
    assert sorted(held) == held
    assert held[0] == 0
    assert {round(point["tolerance/worst_allowed"], 1) for point in logged} == {0.8}


def test_it_says_what_it_costs_and_what_it_decides(tmp_path, capsys):
    fit_within(tmp_path, tolerance=WITHIN)
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("tolerance:")]
    assert "up to 3 rounds to sparsity 0.8750, and up to 2 rounds with half" in said[0]
    assert "all take at most 11, with one before the training" in said[0]
    assert "round 3 at sparsity 0.8750 does not hold" in "".join(said)
    assert "training goes on at sparsity 0.7891, the most that has held" in "".join(said)
    assert "the model has sparsity 0.7891" in said[-2]


def test_a_checkpoint_of_a_dense_training_is_pruned_within_a_tolerance(tmp_path):
    fit(Save(tmp_path, at={"epoch"}), model=Classifier(), max_epochs=2)
    pruning = PruningCallback(sparsity=0.75, tolerance=Tolerance(monitor="val_acc", tolerance=1))
    fit(
        pruning=pruning,
        model=Classifier(),
        resume=tmp_path / "10.ckpt",
        validate=True,
        max_epochs=6,
        default_root_dir=tmp_path,
    )
    assert pruning.sparsity == pytest.approx(0.75, abs=1e-3)


def test_a_trial_run_works(tmp_path):
    trainer = Trainer(
        fast_dev_run=True,
        accelerator="cpu",
        callbacks=[PruningCallback(tolerance=WITHIN)],
        default_root_dir=tmp_path,
    )
    loader = DataLoader(dataset(), batch_size=8)
    trainer.fit(Fragile(1.0), loader, loader)
    assert not list(tmp_path.rglob("*.ckpt"))
