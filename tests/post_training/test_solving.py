"""The choice of levels, against all choices, for costs that add up and costs that do not."""

import math
from itertools import product
from types import SimpleNamespace

import pytest
from hypothesis import given, strategies as st

from lightning_prune.engine.costs import AxisCost, Cost
from lightning_prune.engine.extents import Axis
from lightning_prune.post_training.curves import Curve
from lightning_prune.post_training.solving import Solver

GRID = (0.0, 0.25, 0.5, 0.75)
SIZE = 8


def make_curve(name, losses):
    return Curve(
        groups=(SimpleNamespace(name=name, size=SIZE),),
        producers=(name,),
        sparsities=GRID,
        losses=(0.0, *losses),
        kept=tuple({name: round(SIZE * (1 - sparsity))} for sparsity in GRID),
    )


def make_cost(*parts):
    """Return a cost of products, as of matrices between two layers."""
    axes = {name: Axis(length=SIZE, spans=((name, SIZE, 1),)) for name in "abc"}
    return AxisCost(
        "macs", [("".join(names), total, [axes[n] for n in names]) for names, total in parts]
    )


SEPARATE = make_cost(("a", 80), ("b", 160), ("c", 40), ("", 30))
CHAIN = make_cost(("a", 80), ("ab", 640), ("bc", 320), ("c", 80))


@st.composite
def curves(draw):
    losses = st.lists(st.integers(0, 20).map(lambda n: n / 64), min_size=3, max_size=3)
    return tuple(make_curve(name, sorted(draw(losses))) for name in "abc")


def list_choices(solver):
    return list(product(range(len(GRID)), repeat=3))


@given(curves(), st.integers(0, 60).map(lambda n: n / 64))
def test_the_cheapest_within_a_tolerance_is_the_cheapest_of_all(found, tolerance):
    solver = Solver(found, SEPARATE)
    levels = solver.find_cheapest(tolerance)
    assert solver.sum_losses(levels) <= tolerance
    fitting = [c for c in list_choices(solver) if solver.sum_losses(c) <= tolerance]
    assert solver.count_cost(levels) == min(map(solver.count_cost, fitting))


@given(curves(), st.floats(0.33, 1))
def test_the_best_within_a_limit_is_the_best_of_all(found, share):
    solver = Solver(found, SEPARATE)
    limit = share * solver.count_cost(solver.dense)
    levels = solver.find_best(limit)
    fitting = [c for c in list_choices(solver) if solver.count_cost(c) <= limit]
    assert solver.count_cost(levels) <= limit
    best = min(map(solver.sum_losses, fitting))
    # The worth of an even division is at most a thousandth of the largest loss.
    largest = max(curve.losses[-1] for curve in found)
    assert solver.sum_losses(levels) <= best + 1e-3 * largest


@given(curves(), st.floats(0.12, 1))
def test_a_choice_for_channels_is_within_the_limit(found, share):
    solver = Solver(found, CHAIN)
    limit = share * solver.count_cost(solver.dense)
    levels = solver.find_best(limit)
    assert solver.count_cost(levels) <= limit


@given(curves(), st.integers(0, 60).map(lambda n: n / 64))
def test_a_choice_for_channels_is_within_the_tolerance(found, tolerance):
    solver = Solver(found, CHAIN)
    levels = solver.find_cheapest(tolerance)
    assert solver.sum_losses(levels) <= tolerance
    assert solver.count_cost(levels) <= solver.count_cost(solver.dense)


def test_no_choice_is_below_the_sparsest():
    solver = Solver([make_curve(name, (0.1, 0.2, 0.3)) for name in "abc"], CHAIN)
    least = solver.count_cost(solver.sparsest)
    assert solver.find_best(least) == solver.sparsest == (3, 3, 3)
    assert solver.find_best(least - 1) is None


def test_without_any_loss_all_are_pruned_evenly():
    solver = Solver([make_curve(name, (0.0, 0.0, 0.0)) for name in "abc"], SEPARATE)
    assert solver.find_best(0.5 * 280 + 30) == (2, 2, 2)


def test_a_level_without_a_loss_is_never_chosen():
    found = (make_curve("a", (0.0, math.nan, math.nan)), make_curve("b", (0.0, 0.0, math.nan)))
    solver = Solver(found, make_cost(("a", 80), ("b", 160)))
    assert solver.sparsest == (1, 2)
    assert solver.find_cheapest(1.0) == (1, 2)
    assert solver.find_best(0.0) is None


class Steps(Cost):
    """A cost that only falls in steps, as the latency of kernels."""

    unit = "latency"

    def __call__(self, kept):
        return float(sum(math.ceil(number / 4) for number in kept.values()))

    def dense_parts(self):
        return {}


@pytest.mark.parametrize("limit", [3, 4, 5, 6])
def test_a_cost_in_steps_is_within_the_limit(limit):
    solver = Solver([make_curve(name, (0.1, 0.2, 0.4)) for name in "abc"], Steps())
    assert solver.count_cost(solver.find_best(limit)) == limit
