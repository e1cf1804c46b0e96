"""A criterion that watches the inputs of layers, in a Trainer."""

import pytest
import torch
from lightning.pytorch import Callback

from lightning_prune import OneShotSchedule, PruningCallback, WandaCriterion
from tests.callbacks.conftest import Classifier
from tests.callbacks.models import LateFinder, Tuned, half_precision
from tests.hooks import hooks


class Watched(Callback):
    """Keeps what was seen of the inputs of the first layer, which are the data, by step."""

    def __init__(self, pruning):
        self.pruning, self.sums = pruning, []

    def on_train_batch_end(self, trainer, pl_module, *_):
        squares = self.pruning.pruner.tensors[0].state.get("squares")
        if squares is not None and self.pruning.pruner.steps[0] > len(self.sums):
            self.sums.append(squares[0])


def watching(end=1.0):
    pruning = PruningCallback(
        sparsity=0.75, schedule=OneShotSchedule(end=end), criterion=WandaCriterion()
    )
    return pruning, Watched(pruning)


def assert_sums(sums, batches, steps):
    """Check that each step added what its batches hold."""
    by_hand = torch.zeros(16)
    assert len(sums) == steps
    for seen, x in zip(sums, batches, strict=False):
        by_hand = by_hand + x.square().sum(0)
        assert torch.allclose(seen, by_hand, rtol=1e-4)


def batches_of(loader, size, epochs=2):
    return list(loader.dataset.tensors[0].split(size)) * epochs


@pytest.mark.parametrize("accumulate", [1, 2])
def test_training_batches_count_and_those_of_validation_do_not(accumulate, make_trainer, loader):
    pruning, watched = watching()
    trainer = make_trainer(pruning, watched, accumulate_grad_batches=accumulate)
    trainer.fit(Classifier(), loader, loader)
    steps = 20 // accumulate
    assert pruning.sparsity == 0.75
    assert_sums(watched.sums, batches_of(loader, 8 * accumulate), steps - 1)


def test_a_finder_in_the_middle_of_training_is_not_counted(make_trainer, loader):
    pruning, watched = watching()
    finder = LateFinder(num_training_steps=14, early_stop_threshold=None)
    trainer = make_trainer(pruning, watched, finder, max_epochs=3)
    trainer.fit(Tuned(loader.dataset, batch_size=8))
    assert_sums(watched.sums, batches_of(loader, 8, 3), 29)


def test_a_step_that_the_scaler_skips_is_not_counted(make_trainer, loader):
    pruning, watched = watching()
    trainer = make_trainer(pruning, watched, plugins=half_precision(), max_epochs=16)
    trainer.fit(Classifier(), loader)
    steps = pruning.pruner.steps[0]
    assert 0 < steps < 110
    assert_sums(watched.sums, batches_of(loader, 8, 16)[160 - steps :], steps - 1)


@pytest.mark.parametrize("failing", [False, True])
def test_no_hook_is_left_on_the_model(failing, make_trainer, loader):
    class Failing(Classifier):
        def training_step(self, batch, batch_idx):
            assert len(hooks(self)) == 2
            if batch_idx == 3 and failing:
                raise KeyError("a fault of the data")
            return super().training_step(batch, batch_idx)

    model, (pruning, _) = Failing(), watching()
    if failing:
        with pytest.raises(KeyError, match="a fault of the data"):
            make_trainer(pruning).fit(model, loader)
    else:
        make_trainer(pruning).fit(model, loader)
    assert not hooks(model)


def test_hooks_go_when_the_schedule_ends(make_trainer, loader):
    class Counting(Callback):
        def __init__(self):
            self.counts = []

        def on_train_batch_end(self, trainer, pl_module, *_):
            self.counts.append(len(hooks(pl_module)))

    (pruning, _), counting = watching(end=0.5), Counting()
    make_trainer(pruning, counting).fit(Classifier(), loader)
    assert counting.counts == [2] * 10 + [0] * 10


@pytest.mark.slow
def test_a_compiled_module_is_refused(make_trainer, loader):
    pruning, _ = watching()
    with pytest.raises(ValueError, match="got a Linear in a compiled Classifier"):
        make_trainer(pruning).fit(torch.compile(Classifier()), loader)
