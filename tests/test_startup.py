"""Importing the package costs nothing until something of it is asked for."""

import subprocess
import sys

import pytest

import lightning_prune

TRACING = (
    "engine.channel_selection",
    "channels.coupling",
    "channels.walk",
    "channels.removal",
    "deploy.onnx",
    "reporting.report",
)


def imported(statement):
    """Return which modules a statement imports in a new interpreter."""
    code = f"import sys; before = set(sys.modules); {statement}; print(*set(sys.modules) - before)"
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return set(run.stdout.split())


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
    assert not modules & {f"lightning_prune.{room}" for room in TRACING}
    assert not {name.split(".")[0] for name in modules} & {"lightning", "pytorch_lightning"}


def test_a_star_import_brings_all_public_names():
    names = {}
    exec("from lightning_prune import *", names)
    assert set(lightning_prune.__all__) <= set(names)


def test_an_unknown_name_is_an_attribute_error_that_says_which():
    with pytest.raises(AttributeError, match="attribute Prunner"):
        lightning_prune.Prunner  # noqa: B018
