"""Importing the package costs nothing until something of it is asked for."""

import ast
from importlib.util import find_spec
from pathlib import Path

import pytest

import lightning_prune
from tests.commands import run_python

TRACING = (
    "channels.adoption",
    "channels.coupling",
    "channels.removal",
    "channels.shrink",
    "channels.trial",
    "channels.walk",
    "deploy.executorch",
    "deploy.onnx",
    "engine.channel_selection",
    "models.tracing",
    "reporting.report",
)


def imported(statement):
    """Return which modules a statement imports in a new interpreter."""
    code = f"import sys; before = set(sys.modules); {statement}; print(*set(sys.modules) - before)"
    return set(run_python("-c", code).stdout.split())


def test_the_package_alone_imports_neither_torch_nor_lightning_nor_a_room():
    modules = imported("import lightning_prune")
    assert {name for name in modules if name.startswith("lightning_prune")} == {"lightning_prune"}
    packages = {name.split(".")[0] for name in modules}
    assert not packages & {"torch", "numpy", "lightning", "pytorch_lightning", "rich"}


def test_dir_lists_the_public_names_without_importing_a_room():
    asked = "import lightning_prune as own; assert {*own.__all__} <= {*dir(own)}"
    modules = imported(asked)
    assert {name for name in modules if name.startswith("lightning_prune")} == {"lightning_prune"}


@pytest.mark.slow
def test_the_engine_imports_no_room_that_traces_and_no_lightning():
    modules = imported("from lightning_prune import Pruner")
    assert "lightning_prune.engine.pruner" in modules
    tracing = {f"lightning_prune.{room}" for room in TRACING}
    assert all(find_spec(name) for name in tracing)
    assert not modules & tracing
    assert not {name.split(".")[0] for name in modules} & {"lightning", "pytorch_lightning"}


def rooms():
    """Yield the public names with the rooms where type checkers look for them."""
    path = Path(lightning_prune.__file__)
    stub = path.with_suffix(".pyi")
    for node in ast.walk(ast.parse((stub if stub.exists() else path).read_text())):
        if isinstance(node, ast.ImportFrom):
            room = f"lightning_prune.{node.module}" if node.level else node.module
            if room.startswith("lightning_prune."):
                yield from ((alias.name, room) for alias in node.names)


def test_every_public_name_is_found_in_the_room_it_is_said_to_be_in():
    assert {name for name, _ in rooms()} == set(lightning_prune.__all__)
    for name, room in rooms():
        assert f"{getattr(lightning_prune, name).__module__}.".startswith(f"{room}.")


def test_a_star_import_brings_all_public_names():
    names = {}
    exec("from lightning_prune import *", names)
    assert set(lightning_prune.__all__) <= set(names)


def test_an_unknown_name_is_an_attribute_error_that_says_which():
    with pytest.raises(AttributeError, match="no attribute 'Prunner'"):
        lightning_prune.Prunner  # noqa: B018
