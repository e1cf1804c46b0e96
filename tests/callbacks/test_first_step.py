"""The first call of forward in the first training step is the example of a model without one."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger
from torch import nn

from lightning_prune import (
    ChannelPattern,
    MacsBudget,
    OneShotSchedule,
    PruningCallback,
    Rewind,
    SparsityCheckpoint,
    SparsityMonitor,
    StraightThrough,
    TaylorCriterion,
    Tolerance,
)
from tests.callbacks.conftest import Classifier
from tests.callbacks.runs import STEPS, Save, fit

RECIPES = {
    "channels, gradients": {
        "sparsity": 0.5,
        "pattern": ChannelPattern(round_to=1),
        "criterion": TaylorCriterion(),
    },
    "channels, at once": {
        "sparsity": 0.5,
        "pattern": ChannelPattern(round_to=1),
        "schedule": OneShotSchedule(end=0.0),
    },
    "multiply-adds, straight-through": {
        "budget": MacsBudget(keep=0.5),
        "straight_through": StraightThrough(),
    },
}


class Called(Classifier):
    """Calls forward in training, and has no example of the input."""

    def forward(self, values):
        return self.net(values)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(values=batch[0]), batch[1])


class Closures(Called):
    """Computes the loss several times in a step."""

    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=2)


def run(recipe, *callbacks, kind=Called, example=None, seed=0, **options):
    torch.manual_seed(seed)
    return fit(
        *callbacks, pruning=PruningCallback(**recipe, example=example), model=kind(), **options
    )


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("name", RECIPES)
def test_a_run_that_sees_its_example_in_the_first_step_equals_one_that_is_given_it(
    name, accumulate
):
    given, seen = (
        run(RECIPES[name], example=example, accumulate_grad_batches=accumulate)
        for example in (torch.zeros(1, 16), None)
    )
    assert given.weights == seen.weights
    assert given.optimizers == seen.optimizers
    assert "forward" not in vars(seen.model)  # nothing records any longer
    if accumulate == 1:
        assert given.curve == seen.curve


def test_a_step_of_several_closures_begins_once():
    recipe = RECIPES["channels, gradients"]
    given, seen = (run(recipe, kind=Closures, example=e) for e in (torch.zeros(1, 16), None))
    assert given.weights == seen.weights


def test_a_resumed_run_knows_the_example_of_the_first_step(tmp_path):
    recipe = RECIPES["channels, gradients"]
    whole, save = run(recipe), Save(tmp_path)
    run(recipe, save)
    for step in (1, 7):
        resumed = run(recipe, seed=1, resume=tmp_path / f"{step}.ckpt")
        assert not whole.after(step).differences(resumed), step


def test_other_callbacks_wait_as_well(tmp_path):
    best = SparsityCheckpoint(dirpath=tmp_path / "best", every_n_train_steps=1)
    callbacks = best, SparsityMonitor(histograms_every=None)
    recipe = RECIPES["channels, gradients"]
    logger = CSVLogger(tmp_path)
    trained = run(recipe, *callbacks, logger=logger, accumulate_grad_batches=2)
    assert trained.pruning.sparsity == 0.5
    assert Path(best.best_model_path).exists()
    logged = (Path(logger.log_dir) / "metrics.csv").read_text()
    assert "sparsity/net.0.weight" in logged


@pytest.mark.parametrize(
    "goes_back",
    [
        {"rewind": Rewind(), "schedule": OneShotSchedule()},
        {"tolerance": Tolerance(monitor="val_acc")},
    ],
)
def test_a_recipe_that_goes_back_to_earlier_weights_cannot_wait_for_an_example(goes_back):
    steps = []

    class Counts(Callback):
        def on_train_batch_start(self, *_):
            steps.append(1)

    recipe = {"sparsity": 0.5, "pattern": ChannelPattern(round_to=1), **goes_back}
    with pytest.raises(ValueError, match="example_input_array"):
        run(recipe, Counts(), validate=True)
    assert not steps


def test_without_a_call_of_forward_the_error_comes_before_a_weight_moves():
    class Silent(Called):
        def training_step(self, batch, batch_idx):
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    torch.manual_seed(0)
    model = Silent()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match="no call of forward in the first training_step; set self"):
        fit(pruning=PruningCallback(**RECIPES["channels, gradients"]), model=model)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert "forward" not in vars(model)


def test_the_masks_of_the_last_training_are_gone_before_the_first_step():
    class Look(Callback):
        def on_train_batch_start(self, trainer, *_):
            self.masks.append(len(trainer.callbacks[0].masks))

    pruning, look = PruningCallback(**RECIPES["channels, gradients"]), Look()
    for masks in ([], [0, 0, 3]):
        look.masks = []
        fit(look, pruning=pruning, model=Called(), accumulate_grad_batches=2)
        assert look.masks[: len(masks)] == masks


def test_a_training_without_steps_prunes_nothing():
    trained = run(RECIPES["channels, gradients"], limit_train_batches=0)
    assert trained.pruning.masks == {}
    assert "forward" not in vars(trained.model)


def test_the_plan_counts_the_first_step():
    schedule = OneShotSchedule(end=STEPS - 1, unit="step")
    recipe = {**RECIPES["channels, gradients"], "schedule": schedule}
    trained = run(recipe)
    assert trained.pruning.sparsity == 0.5
    assert trained.curve[STEPS - 2]["sparsity"] == 0
