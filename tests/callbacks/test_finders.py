"""Trials that Lightning makes and undoes."""

import pytest
from lightning.pytorch.callbacks import BatchSizeFinder, Callback, LearningRateFinder
from lightning.pytorch.tuner import Tuner

from lightning_prune import PolynomialSchedule, PruningCallback
from tests.callbacks.conftest import PRUNABLE, zeros
from tests.callbacks.models import LateFinder, Tuned, at_epoch

SECTION = "Loops"


def with_finder(trainer, model):
    trainer.callbacks.append(LearningRateFinder(num_training_steps=14))


def with_tuner(trainer, model):
    Tuner(trainer).lr_find(model, num_training=14)


def with_late_finder(trainer, model):
    trainer.callbacks.append(LateFinder(num_training_steps=14, early_stop_threshold=None))


def with_size_finder(trainer, model):
    trainer.callbacks.append(BatchSizeFinder(max_trials=3, steps_per_trial=2))


def with_size_tuner(trainer, model):
    Tuner(trainer).scale_batch_size(model, max_trials=3, steps_per_trial=2)


class Trace(Callback):
    """Keeps all that a finder could leave behind, after each batch."""

    def __init__(self, pruning):
        self.pruning, self.seen = pruning, []

    def on_train_batch_end(self, trainer, pl_module, *_):
        pruner = self.pruning.pruner
        state = pruner.state_dict()
        self.seen.append(
            [
                trainer.global_step,
                trainer.optimizers[0].param_groups[0]["lr"],
                self.pruning.sparsity,
                pruner.sparsity_target,
                pruner.updates,
                dict(pruner.changed),
                state["steps"],
                state["due"],
                [mask.tolist() for mask in self.pruning.masks.values()],
                [parameter.tolist() for parameter in pl_module.parameters()],
            ]
        )


@pytest.mark.works_with(
    SECTION,
    "`LearningRateFinder` and `BatchSizeFinder`, as callbacks and by `Tuner`, leave no trace",
)
@pytest.mark.parametrize("used_before", [False, True], ids=["new", "used before"])
@pytest.mark.parametrize(
    "find", [with_finder, with_tuner, with_late_finder, with_size_finder, with_size_tuner]
)
@pytest.mark.slow
def test_a_finder_leaves_no_trace(find, used_before, make_trainer, loader):
    runs = []
    for finder in (find, None):
        pruning = PruningCallback(sparsity=0.75, schedule=PolynomialSchedule(begin=0, end=0.75))
        if used_before:
            make_trainer(pruning).fit(Tuned(loader.dataset, lr=0.1))
        trace = Trace(pruning)
        trainer = make_trainer(pruning, trace, max_epochs=4)
        if finder:
            model = Tuned(loader.dataset)
            finder(trainer, model)
            found = model
        elif find is with_late_finder:
            model = Tuned(loader.dataset)

            def set_lr(trainer, module, lr=found.lr):
                trainer.optimizers[0].param_groups[0]["lr"] = lr

            trainer.callbacks.append(at_epoch(1, set_lr))
        else:
            model = Tuned(loader.dataset, lr=found.lr, batch_size=found.batch_size)
        trainer.fit(model)
        runs.append([*trace.seen, pruning.state_dict()["steps"]])
    assert (found.lr, found.batch_size) != (1e-3, 4)
    assert runs[0] == runs[1]
    assert zeros(model) == round(PRUNABLE * 0.75)
