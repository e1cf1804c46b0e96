"""Pruned weights that other code brings back while a Trainer runs."""

import pytest
from lightning.pytorch import Callback

from lightning_prune import OneShotSchedule, PruningCallback
from tests.callbacks.conftest import PRUNABLE, zeros

SECTION = "Faults"


class Writer(Callback):
    """Writes into pruned weights once, through their data."""

    def on_train_batch_end(self, trainer, pl_module, *args):
        if trainer.global_step == 8:
            pl_module.net[0].weight.data.fill_(1.0)


@pytest.mark.works_with(SECTION, "pruned weights that other code brings back are found")
@pytest.mark.parametrize("is_first", [True, False])
def test_revived_weights_are_an_error_at_the_next_log_interval(
    is_first, make_model, make_trainer, loader
):
    pruning = PruningCallback(sparsity=0.75, schedule=OneShotSchedule(end=0))
    callbacks = [Writer(), pruning] if is_first else [pruning, Writer()]
    trainer = make_trainer(*callbacks, log_every_n_steps=4)
    with pytest.raises(RuntimeError, match=r"others in 'net\.0\.weight' at step (8|12)"):
        trainer.fit(make_model(), loader)
    assert trainer.global_step == (8 if is_first else 12)


@pytest.mark.works_with(SECTION, "pruned weights that other code brings back are found")
def test_with_a_warning_training_goes_on_with_zeros(make_model, make_trainer, loader):
    model = make_model()
    schedule = OneShotSchedule(end=0)
    pruning = PruningCallback(sparsity=0.75, schedule=schedule, on_revival="warn")
    trainer = make_trainer(pruning, Writer(), log_every_n_steps=4)
    with pytest.warns(UserWarning, match=r"others in 'net\.0\.weight' at step 12 .*masked again"):
        trainer.fit(model, loader)
    assert zeros(model) == round(PRUNABLE * 0.75)
