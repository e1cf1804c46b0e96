import ast
from pathlib import Path

import pytest

import lightning_prune
from tests.commands import run_python

ROOT = Path(lightning_prune.__file__).parent
FLOORS = {
    "schedules": 0,
    "_ranking": 0,
    "_distributed": 0,
    "_masks": 0,
    "patterns": 0,
    "allocations": 0,
    "groups": 1,
    "selection": 1,
    "_forward": 0,
    "_labels": 0,
    "_attention": 0,
    "_calls": 0,
    "_flow": 0,
    "_layer_rules": 0,
    "_product_rules": 0,
    "_entry_rules": 0,
    "_move_rules": 0,
    "_dataflow": 0,
    "_coupling": 1,
    "_inputs": 1,
    "criteria": 1,
    "channels": 1,
    "entries": 1,
    "pruner": 2,
    "_pools": 2,
    "_timetable": 2,
    "_optimizers": 2,
    "_zero_keeper": 2,
    "regrowth": 2,
    "_answers": 2,
    "_choice": 2,
    "_channel_selection": 2,
    "_state": 2,
    "metrics": 2,
    "_tables": 2,
    "shrinking": 2,
    "_cli_errors": 2,
    "_counting": 2,
    "_latency": 2,
    "_zeros": 2,
    "_report_tables": 2,
    "_runtimes": 2,
    "reporting": 2,
    "_files": 2,
    "_onnx": 2,
    "sparse_file": 2,
    "export": 2,
    "callbacks": 3,
    "_calibration": 3,
    "_example": 3,
    "_deployment": 3,
    "oneshot": 3,
    "sensitivity": 3,
    "_commands": 3,
    "cli": 3,
}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"a relative import in {path}"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def rooms():
    for path in sorted(ROOT.rglob("*.py")):
        room = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if room != "__init__":
            yield room, path


def test_every_room_is_on_a_floor():
    assert {room for room, _ in rooms()} == set(FLOORS)


def test_no_room_is_for_leftovers():
    names = {path.stem for path in ROOT.rglob("*.py")}
    assert not names & {"utils", "base", "registry", "config"}


def test_imports_point_down():
    for room, path in rooms():
        for name in imports(path):
            package, *parts = name.split(".")
            if package == "lightning_prune" and parts and parts[0] in FLOORS:
                assert FLOORS[parts[0]] <= FLOORS[room], f"{path} imports {name}"


def test_only_the_top_floor_knows_lightning():
    for room, path in rooms():
        packages = {name.split(".")[0] for name in imports(path)}
        if FLOORS[room] < 3:
            assert not packages & {"lightning", "pytorch_lightning"}, path


@pytest.mark.slow
def test_the_engine_runs_without_importing_lightning():
    code = (
        "import sys, torch; from lightning_prune import Pruner\n"
        "model = torch.nn.Linear(4, 4)\n"
        "optimizer = torch.optim.SGD(model.parameters(), lr=0.1)\n"
        "Pruner().attach(model, optimizer, steps=10)\n"
        "assert 'lightning' not in sys.modules and 'pytorch_lightning' not in sys.modules"
    )
    run_python("-c", code)


def test_no_public_name_is_missing():
    for name in lightning_prune.__all__:
        assert getattr(lightning_prune, name).__name__ == name
