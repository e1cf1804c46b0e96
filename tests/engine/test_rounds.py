"""Where the rounds under a tolerance land, with metrics made by hand."""

import math

import pytest
from hypothesis import given, strategies as st

from lightning_prune import Tolerance
from lightning_prune.engine.rounds import Rounds


def run(rounds, metric, most=10_000):
    """Judge the metric of each sparsity that is due until the rounds settle; count validations."""
    for validation in range(most):
        if rounds.phase == "settled":
            return validation
        rounds.judge(metric(rounds.sparsity))
    raise AssertionError("the rounds do not end")


tolerances = st.builds(
    Tolerance,
    monitor=st.just("metric"),
    tolerance=st.just(0.1),
    begin=st.integers(0, 3),
    share=st.floats(0.05, 0.95),
    recovery=st.integers(1, 3),
    patience=st.integers(0, 3),
    halvings=st.integers(0, 6),
)


@given(tolerance=tolerances, final=st.floats(0.01, 1), limit=st.floats(0, 1))
def test_the_rounds_land_at_the_most_that_holds_up_to_the_halved_step(tolerance, final, limit):
    rounds = Rounds(tolerance=tolerance, final=final)
    validations = run(rounds, lambda sparsity: 0.9 if sparsity <= limit else 0.5)
    assert validations <= tolerance.count_validations(final)
    assert rounds.sparsity <= limit
    if final <= limit:
        assert rounds.sparsity == final
        return
    step = 2.0**-tolerance.halvings / rounds.planned
    assert rounds.failed - rounds.held == pytest.approx(step)


@given(tolerance=tolerances, limit=st.floats(0, 0.9), stop=st.integers(1, 40))
def test_rounds_that_are_restored_decide_alike(tolerance, limit, stop):
    def metric(sparsity):
        return 0.9 - sparsity / 100 if sparsity <= limit else 0.5

    rounds = Rounds(tolerance=tolerance, final=0.9)
    for _ in range(stop):
        rounds.judge(metric(rounds.sparsity))
    again = Rounds.restore(tolerance, 0.9, rounds.state_dict())
    assert again.state_dict() == rounds.state_dict()
    for _ in range(20):
        assert again.judge(metric(again.sparsity)) == rounds.judge(metric(rounds.sparsity))
        assert again.state_dict() == rounds.state_dict()


def test_the_steps_keep_the_same_share_of_the_weights_left():
    rounds = Rounds(tolerance=Tolerance(monitor="metric", share=0.5), final=1 - 0.5**3)
    found = []
    while rounds.phase != "settled":
        rounds.judge(1.0)
        found.append(rounds.sparsity)
    assert found == [pytest.approx(0.5), pytest.approx(0.75), 0.875, 0.875]


def test_a_round_holds_as_soon_as_the_metric_has_recovered():
    rounds = Rounds(tolerance=Tolerance(monitor="metric", recovery=2, patience=2), final=0.75)
    verdicts = [rounds.judge(metric) for metric in (0.9, 0.95, 0.5, 0.5, 0.9, 0.5, 0.5, 0.5, 0.5)]
    waits = ("train on", "train on", "train on")
    assert verdicts == ["keep", *waits, "keep", *waits, "go back"]
    assert rounds.held == 0.5


def test_with_a_given_number_the_training_is_dense_until_it_is_reached():
    rounds = Rounds(tolerance=Tolerance(monitor="metric", dense=0.9, begin=2), final=0.75)
    assert [rounds.judge(metric) for metric in (0.95, 0.5, 0.88, 0.895)] == [
        *("train on", "train on", "train on", "keep")
    ]
    assert rounds.dense == 0.9


def test_once_settled_only_a_better_model_within_the_tolerance_is_kept():
    tolerance = Tolerance(monitor="metric", mode="min", patience=0, halvings=0)
    rounds = Rounds(tolerance=tolerance, final=0.75)
    assert [rounds.judge(metric) for metric in (0.1, 0.105, 0.5)] == ["keep", "keep", "go back"]
    assert rounds.phase == "settled"
    assert [rounds.judge(metric) for metric in (0.108, 0.104, 0.104, math.nan, 0.09)] == [
        *("train on", "keep", "train on", "train on", "keep")
    ]


def test_a_dense_model_without_a_finite_metric_is_refused():
    with pytest.raises(ValueError, match="need a finite metric of the dense model, got metric=nan"):
        Rounds(tolerance=Tolerance(monitor="metric"), final=0.75).judge(math.nan)
