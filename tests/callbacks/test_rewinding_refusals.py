"""What cannot go back, and is refused."""

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import nn

from lightning_prune import (
    MultiStepSchedule,
    OneShotSchedule,
    PolynomialSchedule,
    PruningCallback,
    Regrow,
    Rewind,
)
from tests.callbacks.conftest import Classifier
from tests.callbacks.models import Gan
from tests.callbacks.rounds import Normalised, in_steps, watched
from tests.callbacks.runs import Save, fit


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"to": -1}, "need a number of steps to >= 0, got to=-1"),
        ({"what": "mask"}, "need what as 'weights' or 'learning_rate', got what='mask'"),
        ({"optimizer": "keep"}, "need optimizer as 'rewind' or 'reset', got optimizer='keep'"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Rewind(**arguments)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (None, r"with rounds .* got PolynomialSchedule; use MultiStepSchedule"),
        (PolynomialSchedule(end=0.5), "got PolynomialSchedule"),
        (MultiStepSchedule(milestones=(0.5, 1)), "need training after the last round"),
    ],
)
def test_schedules_without_rounds_or_training_behind_them_are_refused(schedule, message):
    with pytest.raises(ValueError, match=message):
        PruningCallback(schedule=schedule, rewind=Rewind())


def test_regrowth_is_refused():
    with pytest.raises(ValueError, match="need either rewind or regrow, got both"):
        PruningCallback(schedule=in_steps, rewind=Rewind(), regrow=Regrow())


@pytest.mark.parametrize(
    ("to", "schedule"),
    [
        (0, OneShotSchedule(end=0)),
        (4, OneShotSchedule(end=4, unit="step")),
        (5, MultiStepSchedule(milestones=(1, 2), unit="epoch")),
        (8, OneShotSchedule(end=0.5)),
    ],
)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_at_or_behind_the_first_round_is_refused_when_training_starts(
    to, schedule, accumulate
):
    class Never(Callback):
        def on_train_batch_start(self, *_):
            raise AssertionError

    with pytest.raises(ValueError, match=f"before the first update .* got to={to}"):
        watched(Rewind(to=to), Never(), schedule=schedule, accumulate_grad_batches=accumulate)


@pytest.mark.parametrize(
    ("to", "schedule"),
    [
        (3, in_steps),
        (4, MultiStepSchedule(milestones=(1, 2), unit="epoch")),
        (7, OneShotSchedule(end=0.5)),
    ],
)
def test_the_last_step_before_the_first_round_will_do(to, schedule):
    assert watched(Rewind(to=to), schedule=schedule)[0].sparsity == 0.75


@pytest.mark.parametrize(
    "plan",
    [
        {"to": 3, "schedule": OneShotSchedule(end=1, unit="epoch"), "accumulate_grad_batches": 2},
        {"to": 4, "schedule": OneShotSchedule(end=0.5), "max_steps": 8, "max_epochs": -1},
    ],
)
def test_the_step_is_compared_by_what_is_planned(plan):
    to = plan.pop("to")
    with pytest.raises(ValueError, match=f"before the first update .* got to={to}"):
        watched(Rewind(to=to), **plan)
    assert watched(Rewind(to=to - 1), **plan)[0].sparsity == 0.75


def test_a_dense_checkpoint_from_behind_the_first_round_is_refused(tmp_path):
    torch.manual_seed(0)
    fit(Save(tmp_path), model=Normalised())
    schedule = MultiStepSchedule(milestones=(1, 2), unit="epoch")
    pruning, _, _ = watched(Rewind(), schedule=schedule, resume=tmp_path / "4.ckpt")
    assert pruning.sparsity == 0.75
    with pytest.raises(ValueError, match=r"before the first update .* got to=0"):
        watched(Rewind(), schedule=schedule, resume=tmp_path / "5.ckpt")


def test_several_optimizers_are_refused():
    pruning = PruningCallback(schedule=in_steps, rewind=Rewind())
    with pytest.raises(ValueError, match="need one optimizer with rewind, got 2"):
        fit(pruning=pruning, model=Gan())


def test_averaged_weights_are_refused():
    with pytest.raises(ValueError, match=r"without averaged weights .* got EMAWeightAveraging"):
        watched(Rewind(), EMAWeightAveraging())


def test_weights_that_are_not_there_yet_are_refused_unless_step_1_will_do():
    class Lazy(Classifier):
        def __init__(self):
            super().__init__()
            self.net[2] = nn.LazyLinear(4)

    with pytest.raises(ValueError, match=r"need initialized parameters .*'net.2.weight'; set to=1"):
        watched(Rewind(), model=Lazy())
    pruning = PruningCallback(sparsity=0.75, schedule=in_steps, rewind=Rewind(to=1))
    fit(pruning=pruning, model=Lazy())
    assert set(pruning.masks) == {"net.0.weight", "net.2.weight"}
    assert pruning.sparsity == 0.75


def test_an_optimizer_that_has_gained_parameters_is_refused():
    class Growing(Classifier):
        def configure_optimizers(self):
            return torch.optim.SGD(self.net[0].parameters(), lr=0.1)

        def on_train_epoch_start(self):
            if self.current_epoch == 1:
                self.optimizers().add_param_group({"params": list(self.net[2].parameters())})

    with pytest.raises(RuntimeError, match="the optimizer's parameters of step 0"):
        watched(Rewind(), model=Growing())


def test_tensors_that_have_changed_are_refused():
    class Growing(Classifier):
        def on_train_epoch_start(self):
            self.register_buffer("seen", torch.zeros(1 + self.current_epoch))
            if self.current_epoch == 1:
                self.late = nn.Linear(2, 2)

    with pytest.raises(
        RuntimeError, match=r"other names or shapes now: late.bias, late.weight, seen$"
    ):
        watched(Rewind(), model=Growing(), schedule=OneShotSchedule(end=8, unit="step"))
