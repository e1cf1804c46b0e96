import sys

import pytest

from benchmarks import fine_tuning_rates
from benchmarks.kit.recording import read_runs


@pytest.mark.rare
@pytest.mark.slow
def test_each_rate_trains_on_from_the_same_pruned_network(monkeypatch, tmp_path):
    file = tmp_path / "runs.csv"
    command = ["fine_tuning_rates.py", "--seeds", "1", "--epochs", "1", "--csv", str(file)]
    monkeypatch.setattr(sys, "argv", command)
    monkeypatch.setattr(fine_tuning_rates, "SPARSITIES", (0.9,))
    monkeypatch.setattr(fine_tuning_rates, "SHARES", (1.0, 0.1))
    fine_tuning_rates.main()
    runs = read_runs(file, fine_tuning_rates.Run)
    assert [(run.sparsity, run.share, run.seed) for run in runs] == [
        (0.9, 0.0, 0),
        (0.9, 1.0, 0),
        (0.9, 0.1, 0),
    ]
    assert all(0 <= run.accuracy <= 100 for run in runs)
