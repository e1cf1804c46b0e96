"""The table of latencies that is measured, here by a clock that counts weights."""

import csv

import pytest
import torch
from torch import nn

from lightning_prune import ChannelPattern, LatencyBudget, Recipe
from lightning_prune.deploy.latency_table import LatencyTable
from lightning_prune.engine.channel_selection import select_channels
from lightning_prune.engine.latency_costs import make_latency_cost
from lightning_prune.engine.selection import select as select_parts
from lightning_prune.reporting.latency import Contest, compare_times
from lightning_prune.reporting.latency_widths import measure_latency_table
from tests.engine.channels import Net
from tests.engine.training import OPTIMIZERS

BUDGET = LatencyBudget(speedup=2.0, runtime="torch")


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(16, 64), nn.Linear(64, 16)

    def forward(self, x):
        return x + self.down(self.up(x).relu())


class Blocks(nn.Sequential):
    """Three equal blocks, and a wider layer."""

    example_input_array = torch.zeros(2, 16)

    def __init__(self):
        super().__init__(Block(), Block(), Block(), nn.Linear(16, 96), nn.Linear(96, 4))


class Scale:
    """Weighs models instead of running them: a microsecond for each weight."""

    def __init__(self, dense):
        self.dense = self.weigh(dense)
        self.weighed = []

    def weigh(self, module):
        return 1e-6 * sum(p.numel() for p in module.parameters() if p.ndim > 1)

    def __call__(self, module):
        self.weighed.append(self.weigh(module))
        contest = Contest(runtime="torch", device="cpu", threads=1, dense=None, pruned=None)
        return compare_times(contest, [self.dense] * 6, [self.weighed[-1]] * 6, calls=1)


def select(model):
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    pattern = ChannelPattern(round_to=8)
    return select_channels(model, [optimizer], {"*": 1.0}, pattern, None)


def measure(model, **options):
    selection, scale = select(model), Scale(model)
    table = measure_latency_table(model, None, selection, BUDGET, timer=scale, **options)
    return selection, scale, table


def test_each_group_has_rows_of_widths_and_all_groups_together_too():
    model = Net()
    _, _, table = measure(model)
    assert list(table.ms) == ["*", "0.weight", "3.weight", "7.weight"]
    assert {name: sorted(widths) for name, widths in table.ms.items()} == {
        "*": [24, 40, 64, 80],
        "0.weight": [8, 16],
        "3.weight": [8, 16, 24],
        "7.weight": [8, 16, 32, 40],
    }
    dense = 16 * 27 + 24 * 16 * 9 + 40 * 24 * 16 + 10 * 40
    assert table.dense_ms == pytest.approx(1e-3 * dense)
    narrow = 16 * 27 + 8 * 16 * 9 + 40 * 8 * 16 + 10 * 40
    assert table.ms["3.weight"][8] == pytest.approx(1e-3 * narrow)
    assert table.note == "torch, cpu, 1 thread"


def test_equal_blocks_are_narrowed_at_once_and_share_the_saving():
    model = Blocks()
    _, scale, table = measure(model)
    alone = 1e-3 * (scale.dense * 1e6 - 2 * 16 * 32)
    for block in range(3):
        assert table.ms[f"{block}.up.weight"][32] == pytest.approx(alone)
    assert len(scale.weighed) == 1 + 3 + 2 * 3  # the dense model, all groups, two kinds of groups


def test_the_cost_of_a_measured_table_predicts_what_was_measured():
    model = Net()
    selection, _, table = measure(model)
    cost = make_latency_cost(table, model, selection, None)
    kept = {"0.weight": 16, "3.weight": 16, "7.weight": 16}
    weights = 16 * 27 + 16 * 16 * 9 + 16 * 16 * 16 + 10 * 16
    assert cost(kept) == pytest.approx(1e-3 * weights, rel=0.05)


def test_the_time_and_the_number_of_widths_are_said_before():
    model, said = Net(), []
    scale = Scale(model)

    def note(text):
        said.append((text, len(scale.weighed)))

    measure_latency_table(model, None, select(model), BUDGET, timer=scale, announce=note)
    ((text, weighed),) = said
    assert weighed == 1
    assert text.startswith("measures 9 widths of 3 groups of channels in torch (1 thread), about ")


def test_less_time_leaves_fewer_widths_but_one_of_each_group(monkeypatch):
    model = Net()
    now = iter(range(0, 1000, 10))
    monkeypatch.setattr(
        "lightning_prune.reporting.latency_widths.time.perf_counter", lambda: next(now)
    )
    _, _, table = measure(model, seconds=30.0)  # each takes 10 s
    assert {name: len(widths) - 1 for name, widths in table.ms.items()} == {
        "*": 3,
        "0.weight": 1,
        "3.weight": 1,
        "7.weight": 1,
    }


def test_no_time_is_refused():
    with pytest.raises(ValueError, match=r"need seconds > 0, got seconds=0\.0"):
        measure(Net(), seconds=0.0)


def test_groups_that_cannot_be_removed_are_refused():
    model = Net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    selection = select_parts(model, [optimizer], Recipe(sparsity=0.5), None)
    with pytest.raises(ValueError, match=r"need a pattern whose atoms can be removed, .* got patt"):
        measure_latency_table(model, None, selection, BUDGET)


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["torch", "onnx"])
def test_a_real_measurement_is_positive_and_leaves_the_model_alone(runtime, tmp_path):
    model = Net().train()
    selection = select(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    generator, threads = torch.get_rng_state(), torch.get_num_threads()
    budget = LatencyBudget(speedup=2.0, runtime=runtime, threads=1, batch_size=3)
    table = measure_latency_table(model, None, selection, budget, seconds=1e-9, blocks=6)
    assert all(ms > 0 for widths in table.ms.values() for ms in widths.values())
    table.save(tmp_path / "latency.csv")
    assert LatencyTable.load(tmp_path / "latency.csv") == table
    *_, first = csv.reader((tmp_path / "latency.csv").read_text().splitlines()[:2])
    assert first == ["group", "channels", "ms"]
    assert torch.equal(torch.get_rng_state(), generator)
    assert torch.get_num_threads() == threads
    assert all(part.training for part in model.modules())
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
