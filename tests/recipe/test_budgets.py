"""Budgets as a user writes them: checked in the constructor, with the remedy."""

import math

import pytest
import yaml
from hypothesis import given, strategies as st

from lightning_prune import (
    BytesBudget,
    ChannelPattern,
    LatencyBudget,
    MacsBudget,
    NMPattern,
    ParameterBudget,
    PruningCallback,
    Recipe,
)

SHARES = (MacsBudget, ParameterBudget, BytesBudget)


@pytest.mark.parametrize("kind", SHARES)
@given(keep=st.floats(0, 1, exclude_min=True, exclude_max=True), dense=st.integers(1, 10**12))
def test_a_fraction_of_the_dense_cost_may_remain(kind, keep, dense):
    assert kind(keep=keep).limit(dense) == keep * dense


@pytest.mark.parametrize("kind", SHARES)
def test_a_number_may_remain_at_any_dense_cost(kind):
    assert kind(at_most=1_234_567).limit(10) == kind(at_most=1_234_567.0).limit(1e9) == 1_234_567


def test_a_latency_is_divided_by_the_speedup_or_given():
    assert LatencyBudget(speedup=2).limit(3.0) == 1.5
    assert LatencyBudget(at_most_ms=0.7).limit(3.0) == 0.7


@pytest.mark.parametrize("kind", SHARES)
@pytest.mark.parametrize("both", [{}, {"keep": 0.5, "at_most": 1e6}])
def test_exactly_one_of_two_arguments_is_given(kind, both):
    with pytest.raises(ValueError, match=f"exactly one of keep and at_most in {kind.__name__}"):
        kind(**both)


@pytest.mark.parametrize("both", [{}, {"speedup": 2.0, "at_most_ms": 3.0}])
def test_a_latency_has_exactly_one_of_two_arguments(both):
    with pytest.raises(ValueError, match="exactly one of speedup and at_most_ms in LatencyBudget"):
        LatencyBudget(**both)


def test_swapped_arguments_are_told_the_other_name():
    with pytest.raises(ValueError, match=r"for a number of macs, write at_most=1000000\.0$"):
        MacsBudget(keep=1e6)
    with pytest.raises(ValueError, match=r"for a fraction, write keep=0\.5$"):
        ParameterBudget(at_most=0.5)


@pytest.mark.parametrize("keep", [0.0, 1.0, -0.5, math.nan, math.inf])
def test_a_fraction_out_of_range_is_refused_without_a_remedy_that_fails_too(keep):
    with pytest.raises(ValueError, match=f"need 0 < keep < 1, .* got keep={keep}$"):
        MacsBudget(keep=keep)


@pytest.mark.parametrize("at_most", [0, -5.0, math.nan, math.inf])
def test_a_number_out_of_range_is_refused_without_a_remedy_that_fails_too(at_most):
    with pytest.raises(ValueError, match=f"need a finite at_most >= 1, .*at_most={at_most}$"):
        MacsBudget(at_most=at_most)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"speedup": 1.0}, "need speedup > 1, got speedup=1.0"),
        ({"speedup": math.nan}, "need speedup > 1, got speedup=nan"),
        ({"at_most_ms": 0.0}, "need at_most_ms > 0, got at_most_ms=0.0"),
        ({"speedup": 2.0, "threads": 0}, "need threads >= 1, got threads=0"),
        ({"speedup": 2.0, "batch_size": 0}, "need batch_size >= 1, got batch_size=0"),
    ],
)
def test_a_latency_out_of_range_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        LatencyBudget(**arguments)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MacsBudget(keep="0.5"), "need keep as a number or None, got keep='0.5'"),
        (lambda: MacsBudget(at_most=True), "need at_most as a number or None, got at_most=True"),
        (lambda: BytesBudget(keep=0.5, file="zip"), "need file as 'sparse', 'onnx'"),
        (lambda: PruningCallback(budget=0.5), "need budget as a Budget .*got budget=0.5"),
        (lambda: PruningCallback(budget=[0.5]), r"need budget\[0\] as a Budget"),
        (lambda: PruningCallback(budget=MacsBudget), r"write budget=MacsBudget\(\)"),
        (lambda: PruningCallback(budget="MacsBudget"), r"write budget=MacsBudget\(\)"),
    ],
)
def test_another_type_is_refused_by_name(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()


@pytest.mark.parametrize(
    "budget",
    [
        MacsBudget(at_most=1_234_567),
        ParameterBudget(keep=0.3),
        BytesBudget(at_most=1e6, file="onnx"),
        LatencyBudget(speedup=2.125),
    ],
)
def test_a_budget_describes_itself_as_python_reads_it(budget):
    kinds = {kind.__name__: kind for kind in (*SHARES, LatencyBudget)}
    assert eval(budget.describe(), kinds) == budget


@pytest.mark.parametrize("budget", [[], ()])
def test_an_empty_list_of_budgets_is_refused(budget):
    with pytest.raises(ValueError, match=r"need at least one budget, got budget=\[\]; leave it"):
        Recipe(budget=budget)


def test_two_budgets_of_a_unit_are_refused():
    with pytest.raises(ValueError, match="need budgets of different units, got macs, macs"):
        Recipe(budget=[MacsBudget(keep=0.5), MacsBudget(at_most=1e6)])


def test_a_pattern_that_says_how_much_is_refused_beside_a_budget():
    with pytest.raises(ValueError, match=r"MacsBudget\(keep=0.5\), got pattern=NMPattern\(n=2"):
        Recipe(budget=MacsBudget(keep=0.5), pattern=NMPattern())


@pytest.mark.parametrize("budget", [LatencyBudget(speedup=2), BytesBudget(keep=0.5, file="onnx")])
def test_what_zeros_in_place_do_not_lower_is_refused_without_channels(budget):
    with pytest.raises(ValueError, match=r"need channels that can be removed .*ChannelPattern\(\)"):
        Recipe(budget=budget)
    assert Recipe(budget=budget, pattern=ChannelPattern()).budgets == (budget,)


def test_without_a_budget_nothing_has_changed():
    assert Recipe().targets == {"*": 0.9} == PruningCallback().recipe.targets
    assert Recipe(sparsity={"head": 0.5}).targets == {"head": 0.5}
    assert Recipe().budgets == ()


def test_beside_a_budget_a_mapping_caps_and_the_rest_is_open():
    recipe = Recipe(budget=MacsBudget(keep=0.5), sparsity={"head": None, "body": 0.5}, most=0.9)
    (rest, head, body) = recipe.targets.values()
    assert (head, body) == (None, 0.5)
    assert 0.999 < rest < 1  # an atom stays
    assert (recipe.cap(rest), recipe.cap(body)) == (0.9, 0.5)


def test_a_recipe_with_budgets_is_written_as_yaml():
    budgets = [MacsBudget(keep=0.5), ParameterBudget(at_most=1_000_000)]
    written = yaml.safe_load(Recipe(budget=budgets, most=0.98).to_yaml())
    assert written["most"] == 0.98
    assert [(one["class_path"], one["init_args"]) for one in written["budget"]] == [
        ("lightning_prune.MacsBudget", {"keep": 0.5, "at_most": None}),
        ("lightning_prune.ParameterBudget", {"keep": None, "at_most": 1_000_000}),
    ]
