"""Costs that are measured while Lightning trains: printed at the end, corrected on the way."""

import pytest
import torch
from torch import nn

from lightning_prune import (
    BytesBudget,
    ChannelPattern,
    LatencyBudget,
    LatencyTable,
    MacsBudget,
    ParameterBudget,
    PruningCallback,
    SparsityMonitor,
)
from tests.callbacks.conftest import Classifier
from tests.callbacks.runs import Save, fit

HIDDEN = 512


class WithExample(Classifier):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.example_input_array = torch.zeros(1, 16)

    def forward(self, values):
        return self.net(values)


def read_measured(printed):
    """Return the lines of the end, as numbers asked, predicted and measured by unit."""
    found = {}
    for line in " ".join(printed.split()).split("asked for at most ")[1:]:
        asked, _, rest = line.partition(" ")
        unit, _, numbers = rest.partition(", predicted ")
        predicted, _, measured = numbers.partition(", measured ")
        values = (asked, predicted, measured.split()[0])
        found[unit] = tuple(float(value.replace(",", "")) for value in values)
    return found


def test_the_end_says_what_was_asked_predicted_and_measured(capsys):
    budgets = [
        MacsBudget(keep=0.6),
        ParameterBudget(keep=0.5),
        BytesBudget(keep=0.9, file="sparse"),
    ]
    fit(pruning=PruningCallback(budget=budgets), model=WithExample())
    found = read_measured(capsys.readouterr().out)
    assert set(found) == {"multiply-adds", "parameters", "bytes"}
    for asked, predicted, measured in found.values():
        assert measured <= predicted <= asked


def test_the_end_counts_channels_that_are_removed(capsys):
    pruning = PruningCallback(
        budget=[MacsBudget(keep=0.6), ParameterBudget(keep=0.7)],
        pattern=ChannelPattern(round_to=1),
    )
    fit(pruning=pruning, model=WithExample())
    for asked, predicted, measured in read_measured(capsys.readouterr().out).values():
        assert measured == predicted <= asked


class Slow(WithExample):
    """Wide enough that half of the hidden channels take about half of the time."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(16, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 4))
        self.example_input_array = torch.zeros(256, 16)


def make_table(path, power=1.0):
    """Write a table that says that all of the time goes with the hidden channels."""
    widths = {HIDDEN // n: 1 / n**power for n in (1, 2, 4, 8, 16)}
    LatencyTable(ms={"*": widths, "net.0.weight": widths}).save(path)
    return str(path)


def ask_for_latency(table, speedup=1.5, **answers):
    budget = LatencyBudget(speedup=speedup, runtime="torch", table=table)
    return PruningCallback(budget=budget, pattern=ChannelPattern(round_to=1), **answers)


def test_a_table_that_promises_too_much_is_corrected_by_a_measurement(tmp_path, capsys):
    pruning = ask_for_latency(make_table(tmp_path / "latency.csv", power=4))
    fit(pruning=pruning, model=Slow())
    asked, predicted, measured = read_measured(capsys.readouterr().out)["ms"]
    assert asked == 0.6667
    assert predicted == pytest.approx(measured, rel=0.3)
    known = pruning.state_dict()["costs"]["latency"]
    assert known["dense"] == 1.0
    assert len(known["measured"]["ms"]["*"]) > 5  # and the measured model
    assert pruning.pruner.groups[0].kept < 0.85 * HIDDEN  # the table alone keeps 0.9


def test_a_resumed_run_knows_the_latencies_without_a_file(tmp_path, capsys):
    path, save = tmp_path / "latency.csv", Save(tmp_path)
    fit(save, pruning=ask_for_latency(make_table(path)), model=Slow())
    path.unlink()
    capsys.readouterr()
    resumed = fit(
        pruning=ask_for_latency(str(path)),
        model=Slow(),
        resume=tmp_path / f"{save.saved[3]}.ckpt",
    )
    assert "measures" not in capsys.readouterr().out
    assert not path.exists()
    assert resumed.state["costs"]["latency"]["dense"] == 1.0


def test_a_measurement_that_no_pruning_can_meet_is_not_followed(tmp_path):
    pruning = ask_for_latency(make_table(tmp_path / "latency.csv"), speedup=8.0)
    with pytest.warns(UserWarning, match="is not followed: need a budget that can be reached"):
        fit(pruning=pruning, model=WithHead())


class WithHead(Slow):
    """Spends most of the time where no channel can go."""

    def forward(self, values):
        heavy = torch.ones(400, 400, device=values.device)
        return self.net(values) + (heavy @ heavy).mean() * 0


def test_the_monitor_records_the_quality_over_each_cost():
    monitor = SparsityMonitor(quality="val_acc")
    pruning = PruningCallback(budget=ParameterBudget(keep=0.5))
    fit(monitor, pruning=pruning, model=WithExample(), validate=True)
    (curve,) = monitor.cost_curves.values()
    assert set(monitor.cost_curves) == {"parameters"}
    assert len(curve) == len(monitor.quality_curve)
    assert curve[-1][0] == pruning.pruner.spending[0].share == 0.5
    loaded = SparsityMonitor(quality="val_acc")
    loaded.load_state_dict(monitor.state_dict())
    assert loaded.cost_curves == monitor.cost_curves


def test_a_measurement_that_fails_does_not_end_the_training(monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("the disk is full")

    monkeypatch.setattr("lightning_prune.deploy.sparse_file.replace_file", fail)
    pruning = PruningCallback(budget=BytesBudget(keep=0.9, file="sparse"))
    with pytest.warns(UserWarning, match="no measurement of the budget: .*the disk is full"):
        fit(pruning=pruning, model=WithExample())
    assert pruning.pruner.spending.is_met
