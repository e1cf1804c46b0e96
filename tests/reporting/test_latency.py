"""Which module is faster, in which runtime, and how sure that is."""

import importlib.util
import time

import numpy as np
import pytest
import torch
from torch import nn

from lightning_prune import Latency, report
from lightning_prune.reporting.latency import Contest, compare_times
from tests.reporting.reports import shown

SIDES = {"runtime": "torch", "device": "cpu", "threads": 1, "dense": None, "pruned": None}


def judged(dense, pruned) -> Latency:
    return compare_times(Contest(**SIDES), dense, pruned, calls=1)


def test_the_interval_of_ten_pairs_by_hand():
    ratios = [1.5, 1.1, 1.9, 1.2, 1.4, 1.3, 1.6, 1.8, 1.7, 2.0]
    found = judged(ratios, [1.0] * 10)
    assert found.speedup == pytest.approx(1.55)
    # P(X < 2) = 11/1024, P(X < 3) = 56/1024 > 0.025: the second least and the second greatest.
    assert (found.low, found.high) == (1.2, 1.9)
    assert (found.dense.lower, found.dense.median) == pytest.approx((1.325, 1.55))
    assert found.verdict == "faster"


def test_the_interval_covers_the_median_as_often_as_it_says():
    generator = np.random.default_rng(0)
    intervals = [judged(np.exp(generator.standard_t(2, 31)), np.ones(31)) for _ in range(400)]
    covered = np.mean([found.low <= 1 <= found.high for found in intervals])
    assert 0.93 < covered < 0.99


@pytest.mark.parametrize(
    ("ratios", "verdict"),
    [
        ([2.0] * 51, "faster"),
        ([0.5] * 51, "slower"),
        ([1.0] * 51, "no faster"),
        ([1.09] * 51, "no faster"),  # certain, and within what copies of one network differ by
        ([0.92] * 51, "no faster"),
        ([0.5] * 20 + [3.0] * 31, "no faster"),  # large, and not certain
        ([0.2] * 31 + [1.5] * 20, "no faster"),
        ([0.1] * 10 + [1.5] * 41, "faster"),  # some blocks were disturbed
    ],
)
def test_a_verdict_needs_a_difference_that_is_certain_and_large(ratios, verdict):
    assert judged(ratios, [1.0] * 51).verdict == verdict


def test_drifts_of_the_machine_cancel():
    drift = np.linspace(1, 10, 51)
    found = judged(2 * drift, drift)
    assert (found.speedup, found.low, found.high) == (2, 2, 2)


class Timed(nn.Module):
    """Takes a time that a clock says."""

    now = 0.0

    def __init__(self, seconds):
        super().__init__()
        self.seconds = seconds

    def forward(self, values):
        Timed.now += self.seconds
        return values + 1


@pytest.mark.parametrize(
    ("seconds", "verdict"), [((0.002, 0.02), "slower"), ((0.02, 0.002), "faster")]
)
def test_a_module_that_takes_longer_is_slower(seconds, verdict, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(time, "perf_counter", lambda: Timed.now)  # a busy machine disturbs none
    dense, pruned = map(Timed, seconds)
    found = report(pruned, torch.randn(1), dense=dense, blocks=6)
    assert found.latencies[0].verdict == verdict
    assert f"10.00 times {verdict} in torch (cpu, 1 thread, 6 x " in shown(found, 120)


def test_without_onnx_runtime_the_rest_is_there(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else find(name)
    )
    found = report(nn.Linear(2, 2), torch.randn(1, 2), blocks=6)
    assert [latency.runtime for latency in found.latencies] == ["torch"]
    assert found.notes == (
        "not measured in ONNX Runtime: need onnxruntime: pip install 'lightning-prune[export]'",
    )


@pytest.mark.slow
def test_what_cannot_be_exported_is_said():
    class Branching(nn.Module):
        def forward(self, values):
            return values + 1 if values.sum() > 0 else values

    found = report(Branching(), torch.randn(1, 2), blocks=6)
    assert [latency.runtime for latency in found.latencies] == ["torch"]
    (note,) = found.notes
    assert note.startswith("not measured in ONNX Runtime: ")
