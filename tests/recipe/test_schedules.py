import itertools
import math

import pytest
from hypothesis import strategies as st

from lightning_prune import (
    CosineSchedule,
    ExponentialSchedule,
    MultiStepSchedule,
    OneShotSchedule,
    PolynomialSchedule,
)

moments = st.floats(0, 1)


def ramp(kind, reference, **kwargs):
    return kind(begin=reference["begin"], end=reference["end"], unit="step", **kwargs)


@pytest.mark.parametrize("name", ["polynomial", "polynomial_from_zero"])
def test_polynomial_meets_the_reference(name, vectors):
    reference = vectors[name]
    initial = reference.get("initial", 0.0)
    schedule = ramp(PolynomialSchedule, reference, power=reference["power"], initial=initial)
    for step, absolute in reference["absolute"].items():
        assert reference["final_sparsity"] * schedule(int(step)) == pytest.approx(absolute)
    assert schedule(reference["begin"] - 1) == 0


def test_cosine_meets_the_reference(vectors):
    schedule = ramp(CosineSchedule, vectors["cosine"])
    for step, relative in vectors["cosine"]["relative"].items():
        assert schedule(int(step)) == pytest.approx(relative)


def test_exponential_meets_the_reference(vectors):
    reference = vectors["exponential"]
    schedule = ramp(ExponentialSchedule, reference, rate=reference["rate"])
    for step, absolute in reference["absolute"].items():
        assert reference["final_sparsity"] * schedule(int(step)) == pytest.approx(absolute)
    assert reference["rate"] == pytest.approx(ExponentialSchedule().rate)


def test_exponential_removes_the_same_share_of_what_is_left():
    schedule = ExponentialSchedule(begin=0, end=4, unit="step", rate=-math.log(1 - 0.9))
    left = [1 - 0.9 * schedule(step) for step in range(5)]
    shares = [after / before for before, after in itertools.pairwise(left)]
    assert shares == pytest.approx([0.1**0.25] * 4)


def test_due_points_meet_the_reference(vectors):
    for case in vectors["updates"]["cases"]:
        schedule = PolynomialSchedule(
            begin=case["begin"], end=case["end"], every=case["every"], unit="step"
        )
        due = {schedule.last_due(step) for step in range(case["end"] + 10)} - {None}
        assert sorted(due) == case["due"]


@pytest.mark.parametrize("end", [0.3, 0.7, 1.0])
def test_a_hundredth_of_the_ramp_is_the_default_interval(end):
    schedule = CosineSchedule(begin=0.1, end=end)
    due = {schedule.last_due(i / 10_000) for i in range(10_001)} - {None}
    assert len(due) == 101
    assert max(due) == end


# What is left after each round that removes a fifth: Frankle & Carbin 2019, figure 1 and 3.
LEFT = (0.8, 0.64, 0.512, 0.4096, 0.32768, 0.262144, 0.2097152)


@pytest.mark.parametrize("rounds", range(1, 8))
def test_a_share_removes_as_much_of_what_is_left_in_each_round(rounds):
    schedule = MultiStepSchedule(milestones=tuple(range(1, rounds + 1)), share=0.2, unit="step")
    final = 1 - LEFT[rounds - 1]
    left = [1 - final * schedule(step) for step in range(1, rounds + 1)]
    assert left == pytest.approx(LEFT[:rounds], abs=1e-12)
    assert schedule(0) == 0
    assert schedule(rounds) == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PolynomialSchedule(begin=0.5, end=0.4), "need end >= begin=0.5, got end=0.4"),
        (lambda: PolynomialSchedule(every=0), "need every > 0"),
        (lambda: PolynomialSchedule(every=-0.1), "need a finite every >= 0, got every=-0.1"),
        (lambda: PolynomialSchedule(every=math.nan), "need a finite every >= 0, got every=nan"),
        (lambda: PolynomialSchedule(every=5), "need every <= 1 with unit='fraction'"),
        (lambda: CosineSchedule(end=math.inf), "need a finite end >= 0, got end=inf"),
        (lambda: OneShotSchedule(unit="Step"), "got unit='Step'"),
        (lambda: MultiStepSchedule(milestones=(0.1, math.nan)), "need a finite milestones"),
        (lambda: MultiStepSchedule(milestones=(1, 2.5), unit="step"), "whole number of steps"),
        (lambda: PolynomialSchedule(begin=-0.1), "need a finite begin >= 0, got begin=-0.1"),
        (lambda: PolynomialSchedule(end=math.nan), "need a finite end >= 0, got end=nan"),
        (lambda: PolynomialSchedule(end=2), "need end <= 1 with unit='fraction'"),
        (lambda: PolynomialSchedule(begin=0, end=1.5, unit="step"), "whole number of steps"),
        (lambda: PolynomialSchedule(unit="steps"), "got unit='steps'"),
        (lambda: PolynomialSchedule(initial=1.1), "need 0 <= initial <= 1, got initial=1.1"),
        (lambda: PolynomialSchedule(power=0), "got power=0"),
        (lambda: ExponentialSchedule(rate=-1), "need a finite rate > 0, got rate=-1"),
        (lambda: CosineSchedule(unit="step"), "number of steps with unit='step', got begin=0.1"),
        (lambda: OneShotSchedule(end=1.1), "need end <= 1"),
        (lambda: MultiStepSchedule(milestones=()), "need rising milestones"),
        (lambda: MultiStepSchedule(milestones=(0.5, 0.5)), "need rising milestones"),
        (lambda: MultiStepSchedule(fractions=(0.5, 1)), "a fraction in"),
        (lambda: MultiStepSchedule(fractions=(0.5, 0.4, 1)), "never falling"),
        (lambda: MultiStepSchedule(share=1.0), "need 0 < share < 1, got share=1.0"),
        (lambda: MultiStepSchedule(share=0.2, fractions=(0, 0, 1)), "either fractions or a share"),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
