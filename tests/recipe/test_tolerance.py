import math
from dataclasses import replace

import pytest

from lightning_prune import MultiStepSchedule, PruningCallback, Recipe, Regrow, Rewind, Tolerance


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tolerance": -0.1}, "need a finite tolerance >= 0, got tolerance=-0.1"),
        ({"tolerance": math.inf}, "need a finite tolerance >= 0, got tolerance=inf"),
        ({"dense": math.nan}, "need a finite metric of the dense model, got dense=nan"),
        ({"share": 1.0}, "need 0 < share < 1, got share=1.0"),
        ({"share": 0.0}, "need 0 < share < 1, got share=0.0"),
        ({"begin": -1}, "need begin >= 0, got begin=-1"),
        ({"recovery": 0}, "need recovery >= 1, got recovery=0"),
        ({"patience": -1}, "need patience >= 0, got patience=-1"),
        ({"halvings": -1}, "need halvings >= 0, got halvings=-1"),
        ({"monitor": "val/Loss"}, "need mode='min' for a loss, got mode='max'"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Tolerance(**{"monitor": "val_acc", **arguments})


@pytest.mark.parametrize(
    ("mode", "inside", "outside"), [("max", 0.87, 0.8699), ("min", 0.89, 0.8901)]
)
def test_a_tolerance_is_in_the_unit_of_the_metric_and_counts_from_the_dense_model(
    mode, inside, outside
):
    within = Tolerance(monitor="metric", tolerance=0.01, mode=mode)
    assert within.allows(inside, dense=0.88)
    assert not within.allows(outside, dense=0.88)
    assert not within.allows(math.nan, dense=0.88)


def test_the_rounds_take_the_place_of_the_schedule():
    recipe = Recipe(tolerance=Tolerance(monitor="val_acc"))
    for moment in (0.0, 0.25, 1.0):
        assert recipe.schedule(moment) == moment
    assert replace(recipe, sparsity=0.5).schedule == recipe.schedule
    assert PruningCallback(tolerance=Tolerance(monitor="val_acc")).recipe == recipe


def test_the_most_that_is_tried_is_what_the_user_gives_or_a_sparsity_of_99_hundredths():
    within = Tolerance(monitor="val_acc")
    assert Recipe(tolerance=within).targets == {"*": 0.99}
    assert Recipe(tolerance=within, sparsity=0.8).targets == {"*": 0.8}
    assert Recipe().targets == {"*": 0.9}


@pytest.mark.parametrize(
    ("clash", "message"),
    [
        ({"schedule": MultiStepSchedule()}, "need either tolerance or a schedule, got both"),
        ({"regrow": Regrow()}, "need either tolerance or regrow, got both"),
        ({"rewind": Rewind()}, "need either tolerance or rewind, got both"),
    ],
)
def test_answers_that_clash_with_a_tolerance_are_refused(clash, message):
    with pytest.raises(ValueError, match=message):
        Recipe(tolerance=Tolerance(monitor="val_acc"), **clash)
    with pytest.raises(ValueError, match=message):
        PruningCallback(tolerance=Tolerance(monitor="val_acc"), **clash)
