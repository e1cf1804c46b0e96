"""The bars of the benchmarks: what a measurement may be, to the last byte or digit."""

import math

import pytest
import torch

from benchmarks.channels import Removal
from benchmarks.kit.turns import PairedTimes
from benchmarks.lottery_ticket import (
    DENSE,
    FRESH,
    TICKET,
    Point,
    Results,
    set_bars as set_ticket_bars,
)
from benchmarks.parts.memory.masks import Masks
from benchmarks.parts.memory.steps import Steps
from benchmarks.parts.memory.training import Training
from benchmarks.parts.memory.updates import SquareCriterion, Update
from benchmarks.parts.mnist.recipes import RANDOM
from benchmarks.parts.mnist.results import set_bars as set_recipe_bars
from benchmarks.parts.shards import cases, channels, simulation
from benchmarks.parts.shards.traffic import Updates
from lightning_prune import GlobalAllocation, MagnitudeCriterion, UniformAllocation


def find_missed(bars):
    return [bar.name.split(", ")[-1] for bar in bars if not bar.is_met]


@pytest.mark.parametrize(
    ("held", "state", "missed"),
    [
        (4 * 8 * 1024 + 4096, 1024 + 16, []),
        (4 * 8 * 1024 + 4097, 1024 + 16, ["bytes in memory"]),
        (4 * 8 * 1024, 1024 + 17, ["bytes in the state"]),
    ],
)
def test_masks_may_be_as_wide_as_weights_and_one_bit_in_a_state(held, state, missed):
    cpu = torch.device("cpu")
    masks = Masks(training=Training(width=32), device=cpu, held=held, state=state, tensors=1)
    assert find_missed(masks.set_bars()) == missed


@pytest.mark.parametrize(
    ("peak", "large", "missed"),
    [
        (1000 + 500 + 4096, 2.0, []),
        (1000 + 500 + 4097, 2.0, ["more MiB at the peak"]),
        (1000, 3.0, ["more tensors as large as a weight"]),
    ],
)
def test_a_step_may_only_take_the_masks_more(peak, large, missed):
    steps = Steps(
        training=Training(width=32),
        loop="plain loop",
        peaks=(1000, peak),
        held=(100, 600),
        large=(2.0, large),
        all=(9.0, 99.0),
    )
    assert find_missed(steps.set_bars()) == missed


@pytest.mark.parametrize(("numpy", "missed"), [(2**21, []), (2**21 + 1, ["more MiB at the peak"])])
def test_an_update_may_take_a_copy_and_the_counts(numpy, missed):
    update = make_update(MagnitudeCriterion(), torch=400, numpy=numpy)
    assert find_missed(update.set_bars()) == missed


@pytest.mark.parametrize(("more", "missed"), [(0, []), (1, ["more MiB at the peak"])])
@pytest.mark.parametrize(
    ("allocation", "scores"), [(UniformAllocation(), 100), (GlobalAllocation(), 250)]
)
@pytest.mark.parametrize(("device", "waiting"), [("cpu", 31), ("cuda", 250)])
def test_an_update_may_hold_the_scores_of_a_pool_and_new_masks(
    device, waiting, allocation, scores, more, missed
):
    most = 4 * scores + waiting + 400 + 2**21
    update = make_update(SquareCriterion(), allocation, device, torch=most + more, numpy=0)
    assert find_missed(update.set_bars()) == missed


def make_update(criterion, allocation=None, device="cpu", **measured):
    return Update(
        allocation=allocation or GlobalAllocation(),
        criterion=criterion,
        dtype=torch.bfloat16,
        device=torch.device(device),
        largest=100,
        weights=250,
        process=10**9,
        **measured,
    )


@pytest.mark.parametrize(
    ("sent", "differing", "missed"),
    [
        ((1e6, 2e6), 0, []),
        ((0.9e6, 2e6), 0, ["traffic over the least of all sizes"]),
        ((2e6, 2.1e6), 0, ["MB an update"]),
        ((1e6, 1e6), 3, ["entries that differ"]),
    ],
)
def test_shards_are_held_to_masks_traffic_and_growth(sent, differing, missed):
    found = [
        cases.Case(
            ranks=2,
            size=f"{millions} M",
            allocation=GlobalAllocation(),
            updates=Updates(messages=1, handed=10, sent=size, seconds=0.0),
            alone=Updates(messages=0, handed=0, sent=0.0, seconds=0.0),
            differing=differing if millions == 4 else 0,
        )
        for millions, size in zip((1, 4), sent, strict=True)
    ]
    assert find_missed(cases.set_bars(found)) == missed


@pytest.mark.parametrize(
    ("sent", "differing", "missed"),
    [
        ((80, 80), 0, []),
        ((80, 81), 0, ["traffic over the least of all sizes"]),
        ((81, 80), 3, ["entries that differ", "traffic over the least of all sizes"]),
    ],
)
def test_channels_of_shards_are_held_to_masks_and_to_the_same_traffic(sent, differing, missed):
    found = [
        cases.Case(
            ranks=2,
            size=f"{width} inputs",
            allocation=GlobalAllocation(),
            updates=Updates(messages=1, handed=10, sent=size, seconds=0.0),
            alone=Updates(messages=0, handed=0, sent=0.0, seconds=0.0),
            differing=differing if width == 16 else 0,
        )
        for width, size in zip((8, 16), sent, strict=True)
    ]
    assert find_missed(channels.set_channel_bars(found)) == missed


@pytest.mark.parametrize(
    ("masks", "extra", "missed"),
    [
        (232_000_000, 200_000_000 + 4_000_000 + 32_000_000, []),
        (232_000_001, 0, ["MB of masks"]),
        (100_000_000, 100_000_000 + 4_000_000 + 32_000_001, ["MB more memory"]),
    ],
)
def test_a_rank_is_held_to_its_memory(masks, extra, missed):
    found = simulation.Simulation(
        parameters=1,
        pruned=1,
        here=100_000_000,
        largest=1_000_000,
        masks=masks,
        extra=extra,
        updates=Updates(messages=1, handed=1, sent=1.0, seconds=0.0),
    )
    assert find_missed(found.set_bars()) == missed


@pytest.mark.parametrize(
    ("name", "difference", "fewer", "speedup", "missed"),
    [
        ("U-Net", 1e-5, 1, 0.5, []),
        ("U-Net", 1.1e-5, 9, 9.0, ["difference of answers"]),
        ("U-Net", math.nan, 9, 9.0, ["difference of answers"]),
        ("ResNet-18", 0.0, 3, 2.5, []),
        ("ResNet-18", 0.0, 2, 2.4, ["times fewer parameters", "times as fast"]),
    ],
)
def test_removal_must_change_no_answer(name, difference, fewer, speedup, missed):
    removal = Removal(
        name=name,
        sparsity=0.5,
        difference=difference,
        parameters=(100 * fewer, 100),
        sizes=(1, 1),
        latency=PairedTimes(first=1.0, second=1.0, speedup=speedup, low=0.0, high=9.0),
        dense={},
    )
    assert find_missed(removal.set_bars(scale=1.0)) == missed


def test_a_recipe_must_reach_its_bar_and_beat_a_random_mask():
    accuracies = {("SET", 0.98): [93.2, 93.3], (RANDOM, 0.98): [93.0]}
    reached, beside = set_recipe_bars(("SET", 0.98), accuracies)
    assert (reached.least, beside.least) == (93.0, 93.25)
    assert reached.is_met
    assert beside.is_met
    accuracies["SET", 0.98] = [93.2, 93.2]
    assert [bar.is_met for bar in set_recipe_bars(("SET", 0.98), accuracies)] == [True, False]


def test_a_ticket_must_beat_fresh_weights_and_learn_faster_than_the_dense_network():
    points = {(7, TICKET): [Point(98.0, 98.0)], (7, FRESH): [Point(95.0, 97.7)]}
    points[0, DENSE] = [Point(97.5, 98.5)]
    missed = find_missed(set_ticket_bars(Results(points=points), 7))
    assert missed == ["above fresh weights", "above dense after the first epoch"]
