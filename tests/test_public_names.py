"""The public names are those of 0.1.0, but for the changes that CHANGELOG.md names."""

import importlib
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

import lightning_prune

BEFORE = {
    *("Allocation", "BlockPattern", "ChannelGroup", "ChannelPattern", "CosineSchedule"),
    *("Criterion", "DistillationCallback", "ERKAllocation", "ExponentialSchedule", "FileSize"),
    *("FisherCriterion", "GlobalAllocation", "GradientCriterion", "Group", "LAMPAllocation"),
    *("Latency", "LayerReport", "MagnitudeCriterion", "MovementCriterion", "MultiStepSchedule"),
    *("NMPattern", "OneShotReport", "OneShotSchedule", "OnnxFile", "Pattern"),
    *("PolynomialSchedule", "PrunedTensor", "Pruner", "PruningCallback", "RandomCriterion"),
    *("Regrow", "Report", "Rewind", "Schedule", "Sensitivity", "Sparsity", "SparsityCheckpoint"),
    *("SparsityMonitor", "TaylorCriterion", "UniformAllocation", "UnstructuredPattern"),
    *("WandaCriterion", "adopt", "export_onnx", "file_size", "load_sparse"),
    *("measure_sensitivity", "prune_once", "quantize_onnx", "report", "save_sparse", "shrink"),
    "shrunk_state",
}
ADDED = {
    *("Atoms", "Budget", "BytesBudget", "LatencyBudget", "LatencyTable", "MacsBudget"),
    *("BranchPattern", "GrowingPenalty", "ParameterBudget", "Phases", "Ramp", "Recipe", "Repair"),
    *("ExecutorchFile", "SearchReport", "StraightThrough", "Tolerance", "export_executorch"),
    *("SparseKernels", "SparseLayer", "use_sparse_kernels"),
    *("measure_latency_table", "reestimate_statistics", "search_sparsities", "sparsity"),
}
REMOVED = {"Group", "ChannelGroup"}


def test_no_public_name_is_lost_or_gained_unnoticed():
    assert set(lightning_prune.__all__) == (BEFORE | ADDED) - REMOVED


def test_every_public_name_is_found_in_the_package():
    for name in lightning_prune.__all__:
        value = getattr(lightning_prune, name)
        assert value.__name__ == name
        assert getattr(importlib.import_module(value.__module__), name) is value


@pytest.mark.parametrize("name", sorted(REMOVED))
def test_a_name_that_is_gone_names_the_cure(name):
    with pytest.raises(ImportError, match=rf"got '{name}'; read Pruner\.groups"):
        exec(f"from lightning_prune import {name}")


@pytest.mark.parametrize("room", ["schedules", "criteria", "metrics", "pruner"])
def test_a_former_module_names_the_cure(room):
    message = rf"got its former module '{room}'; import the name from lightning_prune itself"
    with pytest.raises(ModuleNotFoundError, match=message):
        importlib.import_module(f"lightning_prune.{room}")
    with pytest.raises(ImportError, match=message):
        getattr(lightning_prune, room)


def test_the_api_shows_every_public_name_on_the_page_of_the_package():
    shown = {
        name: page.stem
        for page in (Path(__file__).parents[1] / "docs" / "api").glob("*.md")
        for name in re.findall(r"^::: lightning_prune\.(\w+)$", page.read_text(), re.MULTILINE)
    }
    assert shown == {
        name: getattr(lightning_prune, name).__module__.split(".")[1]
        for name in lightning_prune.__all__
    }


def test_a_sparsity_is_annotated_as_a_mapping_so_that_plain_numbers_fit():
    hint = get_type_hints(lightning_prune.PruningCallback.__init__)["sparsity"]
    assert Mapping[str, float | None] in get_args(hint)


@pytest.mark.rare
@pytest.mark.slow
def test_type_checkers_know_every_public_name_and_take_a_dict_of_numbers(tmp_path):
    script = tmp_path / "script.py"
    names = ", ".join(sorted(lightning_prune.__all__))
    numbers = 'numbers: dict[str, float] = {"*": 0.9}'
    lines = [f"from lightning_prune import ({names})", numbers, "PruningCallback(sparsity=numbers)"]
    script.write_text("\n".join([*lines, "Recipe(sparsity=numbers)", ""]))
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", tmp_path, script]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 0, run.stdout
