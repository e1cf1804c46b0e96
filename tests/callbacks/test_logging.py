"""We log only what is new, and everybody finds it at every step nevertheless."""

import pytest
from lightning.pytorch import Callback

from lightning_prune import OneShotSchedule, PolynomialSchedule, PruningCallback
from tests.callbacks.conftest import Classifier
from tests.callbacks.runs import BATCHES, EPOCHS, STEPS, Save, fit

RAMP = PolynomialSchedule(begin=2, end=12, unit="step", every=3)  # updates at 2, 5, 8, 11, 12
NAMES = ("sparsity", "sparsity_target")


class Counting(Classifier):
    """Notes at which batch what is logged."""

    def __init__(self):
        super().__init__()
        self.logged = []

    def log(self, name, value, *args, **kwargs):
        if name in NAMES:
            fit_loop = self.trainer.fit_loop
            self.logged.append((self.trainer.current_epoch, fit_loop.batch_idx, name))
        super().log(name, value, *args, **kwargs)


class Watch(Callback):
    """Keeps by steps what the engine has reached, and what others find of it."""

    def __init__(self, pruning):
        self.pruning, self.reached, self.found = pruning, {}, {}

    def on_train_batch_end(self, trainer, *_):
        pruner, step = self.pruning.pruner, trainer.global_step - 1
        self.reached[step] = {
            "sparsity": pytest.approx(pruner.sparsity),
            "sparsity_target": pytest.approx(pruner.sparsity_target),
        }
        found = trainer.callback_metrics
        self.found[step] = {name: float(found[name]) for name in NAMES if name in found}


def ours(curve):
    points = {step: {n: v for n, v in point.items() if n in NAMES} for step, point in curve.items()}
    return {step: point for step, point in points.items() if point}


def watched(schedule, **options):
    pruning, model = PruningCallback(sparsity=0.75, schedule=schedule), Counting()
    watch = Watch(pruning)
    run = fit(watch, *options.pop("others", ()), pruning=pruning, model=model, **options)
    return run, watch, model


def test_only_what_is_new_is_logged_by_us():
    update = 7  # the third batch of the second epoch
    run, _, model = watched(OneShotSchedule(end=update, unit="step"))
    assert run.trainer.global_step == STEPS == BATCHES * EPOCHS
    at = [(0, 0), (1, 0), (1, update - BATCHES), (2, 0)]
    assert model.logged == [(*place, name) for place in at for name in NAMES]


def test_every_due_point_is_logged_even_if_it_changes_nothing():
    _, _, model = watched(RAMP)
    at = sorted({divmod(step, BATCHES) for step in (2, 5, 8, 11, 12)} | {(i, 0) for i in range(3)})
    assert model.logged == [(*place, name) for place in at for name in NAMES]


@pytest.mark.parametrize("schedule", [OneShotSchedule(end=7, unit="step"), RAMP])
@pytest.mark.parametrize("options", [{}, {"validate": True, "val_check_interval": 2}])
def test_loggers_and_callbacks_find_the_right_values_at_every_step(options, schedule):
    run, watch, _ = watched(schedule, **options)
    assert ours(run.curve) == watch.reached
    assert watch.found == watch.reached
    assert list(watch.reached) == list(range(STEPS))
    assert watch.found[STEPS - 1] == {"sparsity": 0.75, "sparsity_target": 0.75}


@pytest.mark.parametrize("stop", [3, 5, 7, 8, 11])
@pytest.mark.parametrize("schedule", [OneShotSchedule(end=7, unit="step"), RAMP])
def test_so_they_do_after_a_resume(schedule, stop, tmp_path):
    whole, _, _ = watched(schedule, others=[Save(tmp_path)])
    resumed, watch, _ = watched(schedule, resume=tmp_path / f"{stop}.ckpt", seed=1)
    assert ours(resumed.curve) == watch.reached == watch.found
    assert list(watch.reached) == list(range(stop, STEPS))
    assert ours(resumed.curve) == ours(whole.after(stop).curve)


@pytest.mark.parametrize("every", [2, 4])
def test_a_sparser_log_has_the_values_of_its_steps(every):
    run, watch, _ = watched(RAMP, log_every_n_steps=every)
    expected = [step for step in range(STEPS) if (step + 1) % every == 0]
    assert list(ours(run.curve)) == expected
    assert ours(run.curve) == {step: watch.reached[step] for step in expected}


def test_accumulated_batches_find_the_values_of_the_last_step():
    ramp = PolynomialSchedule(begin=2, end=8, unit="step", every=3)
    run, watch, _ = watched(ramp, accumulate_grad_batches=2)
    assert run.trainer.global_step == 9  # the last batch of an epoch steps in any case
    assert list(ours(run.curve)) == list(range(9))
    for step, point in ours(run.curve).items():
        assert point == watch.reached[step]


@pytest.mark.filterwarnings("ignore:weights are 0 and no mask says why")
def test_a_second_fit_logs_afresh():
    pruning, model = PruningCallback(sparsity=0.75, schedule=RAMP), Counting()
    fit(pruning=pruning, model=model)
    model.logged.clear()
    watch = Watch(pruning)
    second = fit(watch, pruning=pruning, model=model)
    assert model.logged[:2] == [(0, 0, name) for name in NAMES]
    assert ours(second.curve) == watch.reached == watch.found
