"""Running statistics from before the last update of the masks."""

import warnings

import pytest
from torch import nn

from lightning_prune import OneShotSchedule, PolynomialSchedule, PruningCallback, Regrow

STEPS = 20  # of two epochs


@pytest.fixture
def fit(make_model, make_trainer, loader):
    def run(schedule, norm, **options):
        model = make_model()
        model.net.insert(1, norm)
        callback = PruningCallback(sparsity=0.5, schedule=schedule, **options.pop("answers", {}))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            make_trainer(callback, max_epochs=2, **options).fit(model, loader)
        assert callback.sparsity == pytest.approx(0.5, abs=0.01)
        return [str(each.message) for each in caught if "reestimate" in str(each.message)]

    return run


@pytest.mark.parametrize(
    "schedule",
    [
        OneShotSchedule(end=1.0),
        OneShotSchedule(end=STEPS - 1, unit="step"),
        PolynomialSchedule(begin=0.0, end=1.0),
    ],
)
def test_an_update_in_the_last_batch_is_told_once_with_the_remedy(schedule, fit):
    (told,) = fit(schedule, nn.BatchNorm1d(32))
    assert "training ended with an update of the masks, so 1 normalizations have" in told
    assert "lightning-prune reestimate --config" in told
    assert "reestimate_statistics(trainer, model, datamodule)" in told


@pytest.mark.parametrize("norm", [nn.LayerNorm(32), nn.BatchNorm1d(32, track_running_stats=False)])
def test_nothing_is_told_of_a_model_without_running_statistics(norm, fit):
    assert fit(OneShotSchedule(end=1.0), norm) == []


@pytest.mark.parametrize(
    ("schedule", "options"),
    [
        (PolynomialSchedule(begin=0.0, end=0.5), {}),
        (OneShotSchedule(end=STEPS - 2, unit="step"), {}),
        # 7 steps of 3 batches; the last updates after 18 of 20 batches.
        (OneShotSchedule(end=5, unit="step"), {"accumulate_grad_batches": 3}),
    ],
)
def test_nothing_is_told_where_a_batch_has_followed(schedule, options, fit):
    assert fit(schedule, nn.BatchNorm1d(32), **options) == []


def test_weights_that_grow_back_in_the_last_batch_change_the_inputs_too(fit):
    regrow = Regrow(share=0.3, schedule=PolynomialSchedule(begin=0.0, end=1.0))
    (told,) = fit(
        PolynomialSchedule(begin=0.0, end=0.5), nn.BatchNorm1d(32), answers={"regrow": regrow}
    )
    assert "reestimate" in told
