import math
from itertools import product

import pytest
from hypothesis import given, strategies as st

from lightning_prune.post_training.knapsack import choose_levels


@st.composite
def instances(draw, numbers):
    levels = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    values = [[draw(st.floats(0, 1)) for _ in range(count)] for count in levels]
    weights = [[draw(numbers) for _ in range(count)] for count in levels]
    return values, weights, draw(numbers) * draw(st.sampled_from([0.5, 1, 2, 3]))


def totals(table, levels):
    return math.fsum(item[level] for item, level in zip(table, levels, strict=True))


def best_by_trying_all(values, weights, limit):
    choices = product(*(range(len(item)) for item in values))
    fitting = [totals(values, c) for c in choices if totals(weights, c) <= limit]
    return min(fitting, default=None)


@given(instances(st.integers(0, 60)))
def test_whole_weights_are_solved_exactly(instance):
    values, weights, limit = instance
    levels = choose_levels(*instance)
    best = best_by_trying_all(*instance)
    if best is None:
        assert levels is None
    else:
        assert totals(weights, levels) <= limit
        assert totals(values, levels) == pytest.approx(best, abs=1e-12)


@given(instances(st.floats(0, 1)))
def test_any_weights_are_solved_exactly_while_the_sums_are_few(instance):
    values, weights, limit = instance
    levels = choose_levels(*instance)
    if levels is not None:
        assert totals(weights, levels) <= limit + 1e-12
        best = best_by_trying_all(values, weights, limit + 1e-12)
        worst = best_by_trying_all(values, weights, limit - 1e-12)
        assert best - 1e-12 <= totals(values, levels)
        assert worst is None or totals(values, levels) <= worst + 1e-12
    else:
        assert best_by_trying_all(values, weights, limit - 1e-12) is None


@given(instances(st.floats(0, 1)), st.sampled_from([1, 2, 5, 20]))
def test_buckets_cost_at_most_a_bucket_for_each_item(instance, buckets):
    values, weights, limit = instance
    levels = choose_levels(*instance, buckets=buckets)
    if levels is not None:
        assert totals(weights, levels) <= limit + 1e-12
        bucket = (limit - sum(map(min, weights))) / buckets
        best = best_by_trying_all(values, weights, limit - len(values) * bucket - 1e-12)
        assert best is None or totals(values, levels) <= best + 1e-12


def test_a_level_without_a_value_is_not_chosen():
    nan = float("nan")
    assert choose_levels([[5.0, nan], [1.0, 0.0]], [[3, 1], [1, 2]], 9) == (0, 1)
    assert choose_levels([[nan, nan]], [[1, 2]], 9) is None


def test_the_number_of_items_does_not_lose_exactness():
    values = [[0.0, 1.0, 3.0]] * 200
    weights = [[10, 5, 0]] * 200
    levels = choose_levels(values, weights, 1000)
    assert totals(weights, levels) <= 1000
    assert totals(values, levels) == 200
