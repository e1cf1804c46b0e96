"""The latency that is predicted from measured widths."""

import itertools
import random

import pytest
from hypothesis import given, strategies as st

from lightning_prune.deploy.latency_table import LatencyTable
from lightning_prune.engine.channel_layers import ChannelLayer, find_layers
from lightning_prune.engine.channel_selection import select_channels
from lightning_prune.engine.latency_costs import LatencyCost
from lightning_prune.recipe.patterns import ChannelPattern
from tests.engine.channels import Net, Residual
from tests.engine.training import OPTIMIZERS

TOTALS = {"a": 64, "b": 64, "c": 128}
WIDTHS = (0.25, 0.5, 0.75)


def layer(name, work, *axes):
    return ChannelLayer(name=name, work=work, axes=axes)


# A chain: the stem makes a, b lies between two layers, c is read together with dense channels.
LAYERS = (
    layer("stem", 1.0, {"a": 1.0}),
    layer("first", 4.0, {"b": 1.0}, {"a": 1.0}),
    layer("second", 8.0, {"c": 1.0}, {"b": 1.0}),
    layer("third", 3.0, {"c": 0.5}),
    layer("head", 1.0),
)
SPEED = {"stem": 0.5, "first": 1.0, "second": 1.5, "third": 1.0, "head": 1.0}
FIXED = 1.0


def run_machine(kept):
    """Milliseconds on a machine whose layers have speeds of their own."""
    return FIXED + sum(
        each.work / SPEED[each.name] * each.fraction(lambda name: kept[name] / TOTALS[name])
        for each in LAYERS
    )


def measure(run, widths=WIDTHS, totals=TOTALS):
    """Measure a table of a machine."""
    ms = {"*": {sum(totals.values()): run(totals)}}
    for part in widths:
        uniform = {name: round(part * total) for name, total in totals.items()}
        ms["*"][sum(uniform.values())] = run(uniform)
    for name, total in totals.items():
        ms[name] = {total: run(totals)}
        ms[name] |= {round(p * total): run({**totals, name: round(p * total)}) for p in widths}
    return LatencyTable(ms=ms)


def make_cost(run=run_machine):
    return LatencyCost(measure(run), LAYERS, TOTALS)


def draw_kept(seed):
    generator = random.Random(seed)
    return {name: generator.randint(total // 5, total) for name, total in TOTALS.items()}


def test_two_groups_that_share_layers_are_predicted_within_five_hundredths():
    cost = make_cost()
    errors = [abs(cost(kept) / run_machine(kept) - 1) for kept in map(draw_kept, range(200))]
    assert max(errors) < 0.05
    assert sum(errors) / len(errors) < 0.02


def test_savings_that_are_added_up_would_be_far_off():
    kept = {name: total // 4 for name, total in TOTALS.items()}
    dense = run_machine(TOTALS)
    added = dense - sum(dense - run_machine({**TOTALS, name: kept[name]}) for name in TOTALS)
    assert added < 0 < run_machine(kept)


def test_the_dense_model_and_the_models_measured_whole_are_exact():
    cost = make_cost()
    assert cost(TOTALS) == cost.dense_ms == run_machine(TOTALS)
    for part in WIDTHS:
        kept = {name: round(part * total) for name, total in TOTALS.items()}
        assert cost(kept) == pytest.approx(run_machine(kept))


def run_in_steps(kept):
    """Milliseconds on a machine with kernels of 16 channels."""
    return run_machine({name: -(-number // 16) * 16 for name, number in kept.items()})


@given(
    seed=st.integers(0, 999),
    noise=st.sampled_from([0.0, 0.02, 0.3]),
    kept=st.tuples(*(st.integers(0, total) for total in TOTALS.values())),
    more=st.tuples(*(st.integers(0, 64) for _ in TOTALS)),
)
def test_more_channels_never_cost_less_however_noisy_the_table_is(seed, noise, kept, more):
    generator = random.Random(seed)
    cost = make_cost(lambda kept: run_in_steps(kept) * generator.uniform(1 - noise, 1 + noise))
    fewer = dict(zip(TOTALS, kept, strict=True))
    added = dict(zip(TOTALS, more, strict=True))
    wider = {name: min(total, fewer[name] + added[name]) for name, total in TOTALS.items()}
    assert 0 <= cost(fewer) <= cost(wider) * (1 + 1e-9) <= cost.dense_ms * (1 + 2e-9)


@given(seed=st.integers(0, 999), error=st.floats(0.5, 1.6), other=st.integers(0, 999))
def test_a_correction_is_exact_where_it_was_measured(seed, error, other):
    cost, kept = make_cost(), draw_kept(seed)
    measured = min(cost(kept) * error, cost.dense_ms)
    corrected = cost.corrected(kept, measured)
    assert corrected(kept) == pytest.approx(measured)
    assert corrected(TOTALS) == cost.dense_ms
    narrow = draw_kept(other)
    if cost(narrow) < cost(kept):
        assert corrected(narrow) <= measured * (1 + 1e-9)


def test_a_correction_is_in_the_table_that_is_saved(tmp_path):
    cost = make_cost()
    kept = {"a": 16, "b": 48, "c": 64}
    corrected = cost.corrected(kept, 1.2 * cost(kept))
    corrected.table.save(tmp_path / "latency.csv")
    again = LatencyCost(LatencyTable.load(tmp_path / "latency.csv"), LAYERS, TOTALS)
    assert again(kept) == corrected(kept) == pytest.approx(1.2 * cost(kept))


def test_a_correction_of_the_dense_model_or_by_nothing_is_refused():
    cost = make_cost()
    for kept, measured in ((TOTALS, 1.0), ({**TOTALS, "b": 8}, 0.0)):
        with pytest.raises(ValueError, match="need measured_ms > 0 of a model that is predicted"):
            cost.corrected(kept, measured)


def test_groups_below_the_noise_are_predicted_by_multiply_adds():
    layers = [layer(f"layer{index}", 1.0, {f"g{index}": 1.0}) for index in range(100)]
    totals = {f"g{index}": 64 for index in range(100)}
    generator = random.Random(0)
    table = measure(
        lambda kept: sum(kept.values()) / 64 * generator.uniform(0.98, 1.02), totals=totals
    )
    cost = LatencyCost(table, layers, totals)
    kept = {name: 16 if index % 2 else 64 for index, name in enumerate(totals)}
    assert cost(kept) / cost.dense_ms == pytest.approx(62.5 / 100, rel=0.06)


def test_the_parts_that_stay_share_the_least_latency():
    cost = make_cost()
    parts = cost.dense_parts()
    assert list(parts) == ["head"]
    assert parts["head"] == pytest.approx(cost(dict.fromkeys(TOTALS, 0)))


@pytest.mark.parametrize(
    ("totals", "message"),
    [
        ({"a": 64, "b": 64}, r"of the 2 groups that are pruned, .* with \['c'\] besides"),
        ({**TOTALS, "d": 8}, r"without \['d'\]"),
        ({**TOTALS, "b": 96}, r"need a row with all 96 channels of 'b', got at most 64"),
    ],
)
def test_a_table_of_another_model_is_refused(totals, message):
    with pytest.raises(ValueError, match=message):
        LatencyCost(measure(run_machine), LAYERS, totals)


def test_a_table_without_the_whole_dense_model_is_refused():
    ms = {**measure(run_machine).ms, "*": {128: 3.0}}
    with pytest.raises(ValueError, match=r"need a row with all 256 channels of '\*'"):
        LatencyCost(LatencyTable(ms=ms), LAYERS, TOTALS)


@pytest.mark.parametrize("kind", [Net, Residual])
def test_the_layers_of_a_model_shrink_as_the_multiply_adds_do(kind):
    model = kind()
    pattern = ChannelPattern(round_to=8, scope="all")
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    selection = select_channels(model, [optimizer], {"*": 1.0}, pattern, None)
    layers = find_layers(model, selection, None)
    found = {each.name: (each.work, each.groups) for each in layers}
    if kind is Net:
        assert found == {
            "0.weight": (2 * 16 * 16 * 27, ("0.weight",)),
            "3.weight": (2 * 16 * 24 * 144, ("0.weight", "3.weight")),
            "7.weight": (2 * 40 * 24 * 16, ("3.weight", "7.weight")),
            "9.weight": (2 * 10 * 40, ("7.weight",)),
        }
    else:
        assert found["widen.weight"][1] == ("stem.weight", "widen.weight")
        assert found["head.weight"][1] == ("stem.weight",)
    for kept in itertools.product((0.25, 1.0), repeat=2):
        assert all(0 <= each.fraction(lambda name, kept=kept: kept[0]) <= 1 for each in layers)
