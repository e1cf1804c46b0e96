"""A shrunk model in turns with the dense model, in the runtime of a budget."""

import time

import pytest
import torch
from torch import nn

from lightning_prune import LatencyBudget
from lightning_prune.reporting.stopwatch import measure_model_latency


class Timed(nn.Module):
    """Takes a time for each sample that a clock says."""

    now = 0.0
    samples = 0

    def __init__(self, seconds):
        super().__init__()
        self.seconds = seconds

    def forward(self, values):
        Timed.now += self.seconds * len(values)
        Timed.samples = len(values)
        return values + 1


@pytest.fixture(autouse=True)
def _a_clock_of_its_own(monkeypatch):
    monkeypatch.setattr(time, "perf_counter", lambda: Timed.now)


def measure(dense, shrunk, **options):
    budget = LatencyBudget(speedup=2.0, runtime="torch", **options)
    return measure_model_latency(Timed(dense), Timed(shrunk), torch.zeros(2, 3), budget, blocks=6)


def test_the_speedup_is_the_dense_time_over_the_time_of_the_shrunk_model():
    found = measure(0.02, 0.01)
    assert (found.speedup, found.low, found.high) == pytest.approx((2, 2, 2))
    assert (found.dense.median, found.pruned.median) == pytest.approx((0.04, 0.02))
    assert (found.runtime, found.device, found.threads, found.blocks) == ("torch", "cpu", 1, 6)


def test_the_batch_size_is_that_of_the_budget():
    measure(0.02, 0.01, batch_size=5)
    assert Timed.samples == 5
    measure(0.02, 0.01)
    assert Timed.samples == 2


def test_threads_are_those_of_the_budget_and_come_back():
    class Counting(nn.Module):
        def forward(self, values):
            threads.append(torch.get_num_threads())
            Timed.now += 0.1
            return values

    threads = []
    before = torch.get_num_threads()
    budget = LatencyBudget(speedup=2.0, runtime="torch", threads=2)
    found = measure_model_latency(Counting(), Counting(), torch.zeros(1, 1), budget, blocks=6)
    assert set(threads) == {2}
    assert (found.threads, torch.get_num_threads()) == (2, before)
