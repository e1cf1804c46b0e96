"""The benchmarks measure right, print their tables, and exit with the verdict of their bars."""

import ast
import contextlib
import doctest
import importlib
import math
import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses import FakeTensorMode

import lightning_prune
from benchmarks import gpu, shards, update_cost
from benchmarks.channels import compare_answers
from benchmarks.kit.data import read_idx
from benchmarks.kit.judging import Bar, finish, finish_with_all
from benchmarks.kit.memory import record, span
from benchmarks.kit.processes import run_script
from benchmarks.kit.turns import take_turns, time_pairs
from benchmarks.parts.gpu.updates import RECIPES
from benchmarks.parts.memory.updates import SquareCriterion, measure_update
from benchmarks.parts.shards import simulation
from benchmarks.parts.shards.traffic import Traffic
from lightning_prune import GlobalAllocation, MagnitudeCriterion, UniformAllocation

FOLDER = Path(__file__).parent.parent / "benchmarks"
FILES = sorted(FOLDER.rglob("*.py"))
KIT = sorted((FOLDER / "kit").rglob("*.py"))
in_a_process = [pytest.mark.slow, pytest.mark.xdist_group("processes")]


def name_module(file):
    return ".".join(file.relative_to(FOLDER.parent).with_suffix("").parts).removesuffix(".__init__")


# -- imports ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", FILES, ids=name_module)
def test_a_benchmark_imports_only_public_names(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            modules = {alias.name.split(".")[0] for alias in node.names}
            assert not modules & {"lightning_prune", "tests"}
        elif isinstance(node, ast.ImportFrom):
            room, names = node.module.split(".")[0], {alias.name for alias in node.names}
            assert room != "tests"
            if room == "lightning_prune":
                assert node.module == "lightning_prune"
                assert names <= set(lightning_prune.__all__)
            if room == "benchmarks":
                assert not any(name.startswith("_") for name in names)


@pytest.mark.parametrize("file", KIT, ids=name_module)
def test_the_examples_of_the_kit_hold(file):
    assert doctest.testmod(importlib.import_module(name_module(file))).failed == 0


# -- the verdict -----------------------------------------------------------------------------------

MET, MISSED = Bar(name="met", value=1.0, most=2.0), Bar(name="missed", value=3.0, most=2.0)


@pytest.mark.parametrize("end", [finish, finish_with_all])
@pytest.mark.parametrize(("bars", "code"), [([], 0), ([MET], 0), ([MISSED], 1), ([MISSED, MET], 1)])
def test_a_missed_bar_exits_with_one(end, bars, code):
    with pytest.raises(SystemExit) as ended:
        end(bars)
    assert ended.value.code == code


def test_the_verdict_names_the_missed_bars(capsys):
    with pytest.raises(SystemExit):
        finish([MET, MISSED])
    assert capsys.readouterr().out == "missed: missed: 3, at most 2 is wanted\n"
    with pytest.raises(SystemExit):
        finish([MET])
    assert capsys.readouterr().out == "every bar is met\n"
    with pytest.raises(SystemExit):
        finish_with_all([MET, MISSED])
    assert capsys.readouterr().out.splitlines() == [
        "met: 1, at most 2 is wanted: as asked",
        "missed: 3, at most 2 is wanted: NO, that is not enough",
    ]


def test_a_limit_meets_its_bar_and_nan_meets_none():
    assert Bar(name="", value=2.0, most=2.0).is_met
    assert Bar(name="", value=2.0, least=2.0).is_met
    assert not Bar(name="", value=math.nan, most=2.0).is_met
    assert not Bar(name="", value=math.nan, least=2.0).is_met


@pytest.mark.rare
@pytest.mark.slow
@pytest.mark.parametrize(("limit", "code"), [(0.0, 1), (math.inf, 0)])
def test_the_benchmark_of_updates_exits_with_its_verdict(limit, code, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["update_cost.py", "--millions", "0.1", "--turns", "1"])
    monkeypatch.setattr(update_cost, "LIMITS", {update_cost.ADAMW: limit})
    with pytest.raises(SystemExit) as ended:
        update_cost.main()
    assert ended.value.code == code
    rows = ("| AdamW | ", "| uniform, dense to 0.8 | ", "| global, 0.8 to 0.9 | ")
    assert_printed(rows, capsys.readouterr().out, code)


def test_the_benchmark_of_a_gpu_needs_cuda(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    gpu.main()
    assert capsys.readouterr().out == "skipped: gpu.py needs CUDA\n"


@pytest.mark.rare
@pytest.mark.slow
def test_the_benchmark_of_a_gpu_measures_on_any_device(monkeypatch, capsys):
    cpu, lenet = torch.device("cpu"), "LeNet-300-100"
    bars = [*gpu.judge_updates(cpu, 1e-4, 1)]
    monkeypatch.setattr(gpu, "STEPS", {lenet: gpu.STEPS[lenet]})
    bars += gpu.judge_steps(cpu, 2)
    assert {f"1 B, {name}, ms" for name in RECIPES} <= {bar.name for bar in bars}
    assert bars[-1].name == f"{lenet}, isolated"
    assert bars[-1].value > 1
    gpu.compare_adamw(cpu)
    bars = [*gpu.judge_one_shot(cpu, 0.1, 1), *gpu.judge_kernels(cpu, 1 / 64)]
    assert [bar.name for bar in bars if bar.name.startswith("2:4")] == [
        "2:4, seconds over plain",
        "2:4, peak over plain",
        "2:4, share of the same zeros",
    ]
    printed = capsys.readouterr().out
    assert "| 2:4 | peak | " in printed
    assert "| gradients and means | " in printed
    assert "| compiled | the model | | | 0 |" in printed


# -- what measures ---------------------------------------------------------------------------------


def test_every_turn_makes_every_call():
    made = []
    calls = {name: lambda name=name: made.append(name) for name in "ab"}
    times = take_turns(calls, 3)
    assert made == ["a", "b"] * 3
    assert {name: len(seconds) for name, seconds in times.items()} == {"a": 3, "b": 3}


def test_answers_that_are_not_numbers_differ():
    def draw(count, generator):
        return torch.ones(count, 2)

    broken = torch.nn.Linear(2, 2)
    torch.nn.init.constant_(broken.weight, math.nan)
    assert math.isnan(compare_answers(torch.nn.Linear(2, 2), broken, draw))
    silent = torch.nn.Linear(2, 2)
    torch.nn.init.zeros_(silent.weight)
    torch.nn.init.zeros_(silent.bias)
    assert compare_answers(silent, silent, draw) == 0.0


def test_too_few_pairs_are_refused():
    with pytest.raises(ValueError, match="need blocks >= 6, got blocks=5"):
        time_pairs(lambda: None, lambda: None, 5)


def test_another_file_than_idx_is_refused(tmp_path):
    import gzip

    file = tmp_path / "images.gz"
    file.write_bytes(gzip.compress(bytes((0, 0, 9, 1, 0, 0, 0, 1, 7))))
    with pytest.raises(ValueError, match="need an IDX file of bytes"):
        read_idx(file)


@pytest.mark.slow
def test_a_fake_tensor_takes_no_memory():
    before = simulation.count_tensor_bytes()
    with FakeTensorMode():
        held = [torch.empty(1000)]
    held.append(torch.empty(1000))
    assert simulation.count_tensor_bytes() - before == 4000


@pytest.mark.slow
def test_allocations_are_recorded_to_the_byte():
    def run(device):
        kept = torch.ones(1000, device=device)
        with span("work"):
            more = torch.ones(3000, device=device)
            more.neg().sum()
            kept = torch.cat([kept, kept])
            del more

    recording = record(run, torch.device("cpu"))
    assert recording.count_before("work") == 4_000
    assert recording.find_peak("work") == 4_000 + 2 * 12_000 + 4
    assert recording.count_after("work") == 8_000
    assert recording.find_excess("work") == recording.find_peak("work") - 8_000
    assert recording.count_allocations("work", 8_000) == 3


def count_traffic():
    with Traffic(2) as counted:
        torch.distributed.all_reduce(torch.ones(10))
        torch.distributed.all_reduce(torch.ones(10), op=torch.distributed.ReduceOp.MAX)
        torch.distributed.all_gather([torch.empty(3), torch.empty(3)], torch.ones(3))
    return counted.messages, counted.handed, counted.sent


def refuse_reduce_scatter():
    with pytest.raises(NotImplementedError, match=r"got c10d\.reduce_scatter_"), Traffic(2):
        torch.distributed.reduce_scatter(torch.ones(2), [torch.ones(2), torch.ones(2)])


@pytest.mark.slow
@pytest.mark.xdist_group("processes")
def test_every_message_to_a_collective_is_counted(two):
    both_ways = 2 * (2 - 1) / 2
    assert two(count_traffic) == [(3, 40 + 40 + 12, both_ways * (40 + 40) + 12)] * 2
    two(refuse_reduce_scatter)


# -- the scripts, at the size of a test ------------------------------------------------------------


def assert_printed(rows, output, code):
    """Compare the begin of rows; a missed bar is allowed here, if the script says so."""
    for row in rows:
        assert f"\n{row}" in output
    last = output.splitlines()[-1]
    assert last.startswith("missed: ") if code else last == "every bar is met"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("allocation", "criterion"),
    [
        (UniformAllocation(), MagnitudeCriterion()),
        (GlobalAllocation(), MagnitudeCriterion()),
        (GlobalAllocation(), SquareCriterion()),
    ],
)
def test_an_update_of_weights_takes_no_more_memory_than_its_bar(allocation, criterion):
    update = measure_update(allocation, criterion, torch.float32, 0.25, torch.device("cpu"))
    (bar,) = update.set_bars()
    assert bar.is_met, bar


@pytest.mark.rare
@pytest.mark.slow
def test_the_benchmark_of_memory_prints_its_tables():
    run = run_script("benchmarks/memory.py", "--width", "32", "--scale", "0.02")
    assert run.returncode in (0, 1), run.stderr
    rows = (
        "| float32 | cpu | ",
        "| bfloat16 | cpu | ",
        "| plain loop | AdamW | float32 | ",
        "| Trainer | SGD, fused | float32 | ",
        "| UniformAllocation | read in place | float32 | ",
        "| GlobalAllocation | read in place | bfloat16 | ",
        "| GlobalAllocation | held | float32 | ",
    )
    assert_printed(rows, run.stdout, run.returncode)


@pytest.mark.rare
@pytest.mark.slow
@pytest.mark.xdist_group("processes")
def test_the_benchmark_of_shards_prints_its_tables(two, monkeypatch, capsys):
    command = "shards.py --processes 2 --millions 0.02 --inputs 8 16 --simulated-billions 0.9"
    monkeypatch.setattr(sys, "argv", command.split())
    monkeypatch.setattr(shards, "start_processes", lambda ranks: contextlib.nullcontext(two))
    with pytest.raises(SystemExit) as ended:
        shards.main()
    output = capsys.readouterr().out
    rows = (
        "| GlobalAllocation | 2 | 0.02 M | ",
        "| ERKAllocation | 2 | 0.02 M | ",
        "| UniformAllocation | 2 | 8 inputs | ",
        "| GlobalAllocation | 2 | 16 inputs | ",
        "One rank of 64, a transformer of 1.4 B parameters, global magnitude:",
        "One rank of 64, a transformer of 1.4 B parameters, 2:4 by Wanda:",
        "| masks and all else that is held, MB | ",
        "| messages an update | ",
    )
    assert_printed(rows, output, ended.value.code)
    assert " inputs, 2 processes" not in output  # as a missed bar has
    assert "entries that differ" not in output.split("One rank")[1]
    assert not torch.distributed.is_initialized()


@pytest.mark.rare
@pytest.mark.slow
def test_the_benchmark_of_steps_prints_its_table_and_names_the_missed_bars():
    run = run_script("benchmarks/step_cost.py", "--workloads", "lenet", "--seconds", "1")
    rows = [line.split(" | ")[0].strip("| ") for line in run.stdout.splitlines() if "|" in line]
    assert rows[2:6] == ["without", "without, again", "PruningCallback", "timed inside"]
    assert "ModelPruning" in rows
    missed = [line for line in run.stdout.splitlines() if line.startswith("missed: LeNet")]
    assert run.returncode == int(bool(missed)), run.stderr
    assert bool(missed) != ("every bar is met" in run.stdout)
