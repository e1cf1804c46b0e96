"""`PruningYoloCallbacks`: beside a stand-in of the trainer, and in Ultralytics itself."""

import pickle
from contextlib import suppress
from importlib.util import find_spec

import pytest
import torch
from torch import nn

from lightning_prune import (
    CosineSchedule,
    GradientCriterion,
    MultiStepSchedule,
    OneShotSchedule,
    PolynomialSchedule,
    Recipe,
    Regrow,
    Rewind,
    UnstructuredPattern,
    WandaCriterion,
)
from lightning_prune.integrations.ultralytics import FILE, PruningYoloCallbacks
from tests.commands import run_python
from tests.engine.training import pruned_weights
from tests.hooks import hooks
from tests.integrations.yolo_trainer import BATCHES, Model

SECTION = "Other trainers"
needs_ultralytics = pytest.mark.skipif(
    find_spec("ultralytics") is None, reason="needs ultralytics; docs/yolo26.md says how it was run"
)


class KilledError(Exception):
    """Stands for a signal."""


def train(folder, *, watch=None, **options):
    """Return the callbacks and the trainer after training; call ``watch`` at each epoch's end."""
    recipe = {"sparsity": 0.75, **options.pop("recipe", {})}
    pruning = PruningYoloCallbacks(**recipe)
    model = Model(folder)
    pruning.add_to(model)
    if watch is not None:
        model.add_callback("on_train_epoch_end", lambda trainer: watch(pruning, trainer))
    with suppress(KilledError):
        model.train(**options)
    return pruning, model.trainer


def test_the_weights_and_their_average_are_pruned_and_no_hook_is_left(tmp_path):
    def watch(pruning, trainer):
        assert not pruned_weights(trainer.ema.ema, pruning).any()
        assert trainer.lr["sparsity"] == pruning.sparsity
        assert trainer.lr["sparsity_target"] == pruning.pruner.sparsity_target

    pruning, trainer = train(tmp_path, watch=watch)
    assert pruning.sparsity == 0.75
    assert not pruned_weights(trainer.model, pruning).any()
    assert not hooks(trainer.model, trainer.optimizer)
    saved = torch.load(trainer.best)["ema"]
    assert not any(saved[name][~mask].any() for name, mask in pruning.masks.items())


@pytest.mark.parametrize("unit", ["fraction", "epoch", "step"])
def test_each_unit_of_a_schedule_is_read_from_the_trainer(tmp_path, unit):
    end = {"fraction": 0.5, "epoch": 2.0, "step": 2 * BATCHES}[unit]
    reached = []
    schedule = PolynomialSchedule(begin=0.0, end=end, unit=unit)
    train(
        tmp_path,
        recipe={"schedule": schedule},
        watch=lambda pruning, trainer: reached.append(pruning.sparsity),
    )
    # The update comes before the first step of the third epoch.
    assert reached[0] < reached[1] < 0.75 == reached[2] == reached[3]


@pytest.mark.parametrize("accumulate", [1, 3, 4])
def test_the_last_step_serves_the_end_of_the_schedule(tmp_path, accumulate):
    schedule = PolynomialSchedule(begin=0.0, end=1.0)
    recipe = {"schedule": schedule}
    pruning, _ = train(tmp_path, accumulate=accumulate, recipe=recipe)
    assert pruning.sparsity == 0.75
    assert pruning.pruner.steps[0] <= 4 * BATCHES


def test_a_schedule_beyond_the_plan_is_refused(tmp_path):
    schedule = PolynomialSchedule(begin=0.0, end=9.0, unit="epoch")
    with pytest.raises(ValueError, match="need end within the 4 planned epochs"):
        train(tmp_path, recipe={"schedule": schedule})


def test_a_limit_of_time_needs_a_schedule_in_steps_or_epochs(tmp_path):
    with pytest.raises(ValueError, match=r"got time=1\.5; give epochs instead of time, or"):
        train(tmp_path, time=1.5)
    for end, unit in ((2.0, "epoch"), (9, "step")):
        schedule = PolynomialSchedule(begin=0, end=end, unit=unit)
        pruning, _ = train(tmp_path, time=1.5, recipe={"schedule": schedule})
        assert pruning.sparsity == 0.75


def test_a_step_that_the_scaler_skips_is_neither_observed_nor_counted(tmp_path):
    recipe = {"criterion": WandaCriterion(), "pattern": UnstructuredPattern(per_row=True)}
    pruning, _ = train(tmp_path, infinite=(0, 9), recipe=recipe)
    assert pruning.pruner.steps == [4 * BATCHES - 2]
    assert pruning.sparsity == 0.75


@pytest.mark.parametrize("fitness", [(0.9, 0.8, 0.3, 0.2), (0.1, 0.2, 0.3, 0.4)])
def test_only_epochs_at_the_final_sparsity_count_as_the_best(tmp_path, fitness):
    schedule = PolynomialSchedule(begin=0.0, end=2.0, unit="epoch")  # reached in the third epoch
    pruning, trainer = train(tmp_path, fitness=fitness, recipe={"schedule": schedule})
    best = torch.load(trainer.best)
    assert best["best_fitness"] == max(fitness[2:])
    zeros = sum(int((best["ema"][name] == 0).sum()) for name in pruning.masks)
    assert zeros == 0.75 * sum(mask.numel() for mask in pruning.masks.values())


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_training_that_was_killed_resumes_with_the_same_masks_and_counts(tmp_path, at):
    at_end = {}

    def kill(pruning, trainer):
        if trainer.epoch == at + 1:
            raise KilledError
        at_end.update(masks=pruning.masks, steps=pruning.pruner.steps)

    schedule = PolynomialSchedule(begin=0.0, end=0.8)
    options = {"recipe": {"schedule": schedule}, "fitness": (0.9, 0.8, 0.1, 0.2)}
    _, trainer = train(tmp_path, watch=kill, **options)
    assert not hooks(trainer.model, trainer.optimizer)

    resumed = PruningYoloCallbacks(sparsity=0.75, schedule=schedule)
    model = Model(tmp_path)
    resumed.add_to(model)

    def compare(trainer):
        assert resumed.pruner.steps == at_end["steps"] == [(at + 1) * BATCHES]
        for name, mask in resumed.masks.items():
            assert torch.equal(mask, at_end["masks"][name])

    model.add_callback("on_train_start", compare)
    model.train(resume=tmp_path / "last.pt", fitness=options["fitness"])
    assert resumed.sparsity == 0.75
    assert resumed.pruner.steps == [4 * BATCHES]
    best = torch.load(tmp_path / "best.pt")
    assert best["epoch"] == 3  # no earlier epoch ends at the final sparsity


def test_another_file_than_last_pt_is_refused_on_resume(tmp_path):
    train(tmp_path, epochs=2)
    with pytest.raises(ValueError, match=r"need last.pt to resume from, .* got .*best.pt; write"):
        train(tmp_path, resume=tmp_path / "best.pt")
    (tmp_path / FILE).unlink()
    with pytest.raises(ValueError, match=f"need an existing checkpoint, got .*{FILE}"):
        train(tmp_path, resume=tmp_path / "last.pt")


@pytest.mark.parametrize("regrows", [False, True])
def test_masks_go_back_with_the_weights_after_a_loss_of_nan(tmp_path, regrows):
    regrow = Regrow(criterion=GradientCriterion(), schedule=CosineSchedule(every=0.1))
    recipe = {
        "schedule": PolynomialSchedule(begin=0.0, end=0.7),
        "regrow": regrow if regrows else None,
    }
    pruning, trainer = train(tmp_path, broken=2, recipe=recipe)
    assert pruning.sparsity == 0.75
    assert pruning.pruner.steps == [5 * BATCHES]
    assert not pruned_weights(trainer.model, pruning).any()


def test_the_same_callbacks_prune_one_training_after_another(tmp_path):
    pruning = PruningYoloCallbacks(sparsity=0.75)
    model = Model(tmp_path)
    pruning.add_to(model)
    for _ in range(2):
        model.train()
        assert pruning.sparsity == 0.75
        assert pruning.pruner.steps == [4 * BATCHES]


def test_callbacks_travel_into_other_processes_as_their_recipe(tmp_path):
    pruning, _ = train(tmp_path, recipe={"schedule": OneShotSchedule()})
    again = pickle.loads(pickle.dumps(pruning.on_train_start)).__self__
    assert again.recipe == pruning.recipe
    assert again.masks == {}
    model = Model(tmp_path)
    again.add_to(model)
    model.train()
    assert again.sparsity == 0.75


def test_a_recipe_that_goes_back_is_refused():
    recipe = Recipe(rewind=Rewind(to=1), schedule=MultiStepSchedule(milestones=(0.5,)))
    with pytest.raises(ValueError, match="never goes back to earlier weights, got rewind=Rewind"):
        PruningYoloCallbacks.from_recipe(recipe)
    with pytest.raises(TypeError, match="unexpected keyword argument 'sparsty'"):
        PruningYoloCallbacks(sparsty=0.3)


def test_a_model_without_callbacks_is_refused():
    with pytest.raises(TypeError, match="got Linear; run pip install ultralytics"):
        PruningYoloCallbacks().add_to(nn.Linear(2, 2))


@needs_ultralytics
@pytest.mark.slow
@pytest.mark.works_with(
    SECTION, "Ultralytics: YOLO26n, YOLO11n and YOLOv8n, trained, averaged and exported with zeros"
)
@pytest.mark.parametrize("name", ["yolo26n", "yolo11n", "yolov8n"])
def test_ultralytics_trains_averages_and_exports_a_sparse_model(tmp_path, name):
    environment = {
        "YOLO_OFFLINE": "true",
        "YOLO_AUTOINSTALL": "false",
        "YOLO_CONFIG_DIR": str(tmp_path),
    }
    run_python("-m", "tests.integrations.yolo_runs", name, tmp_path, environment=environment)
