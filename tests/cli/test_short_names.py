"""Short names of answers work in a user's own LightningCLI that imports one name of ours."""

import itertools
import json
import subprocess
import sys

import pytest

SCRIPT = """
import json, sys
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.demos.boring_classes import BoringDataModule, BoringModel
from lightning_prune import PruningCallback

for given in json.loads(sys.argv[1]):
    cli = LightningCLI(
        BoringModel,
        BoringDataModule,
        args={"trainer": {"callbacks": [{"class_path": "PruningCallback", "init_args": given}]}},
        run=False,
        save_config_callback=None,
    )
    (callback,) = [c for c in cli.trainer.callbacks if isinstance(c, PruningCallback)]
    print(callback.recipe.to_yaml())
"""

ANSWERS = {
    "schedule": (
        *("PolynomialSchedule", "CosineSchedule", "ExponentialSchedule", "OneShotSchedule"),
        "MultiStepSchedule",
    ),
    "allocation": ("ERKAllocation", "UniformAllocation", "GlobalAllocation", "LAMPAllocation"),
    "criterion": (
        *("MagnitudeCriterion", "RandomCriterion", "GradientCriterion", "TaylorCriterion"),
        *("FisherCriterion", "MovementCriterion", "WandaCriterion"),
    ),
    "pattern": ("UnstructuredPattern", "NMPattern", "BlockPattern", "ChannelPattern"),
}


def combine_answers():
    """Yield recipes in which every short name comes at least once; none of them clash."""
    for place in range(max(map(len, ANSWERS.values()))):
        given = {name: kinds[place % len(kinds)] for name, kinds in ANSWERS.items()}
        yield {**given, "sparsity": 0.8}


@pytest.mark.slow
def test_every_short_name_is_read_by_a_users_own_command(tmp_path):
    script = tmp_path / "own_cli.py"
    script.write_text(SCRIPT)
    command = [sys.executable, script, json.dumps(list(combine_answers()))]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    for name in itertools.chain(*ANSWERS.values()):
        assert f"class_path: lightning_prune.{name}\n" in run.stdout


BUDGETS = [
    {"class_path": "MacsBudget", "init_args": {"keep": 0.5}},
    {"class_path": "ParameterBudget", "init_args": {"at_most": 1e6}},
    {"class_path": "BytesBudget", "init_args": {"at_most": 1000000}},
]


@pytest.mark.slow
def test_budgets_alone_and_in_a_list_are_read_by_a_users_own_command(tmp_path):
    script = tmp_path / "own_cli.py"
    script.write_text(SCRIPT)
    given = [*({"budget": budget} for budget in BUDGETS), {"budget": BUDGETS, "most": 0.98}]
    command = [sys.executable, script, json.dumps(given)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    for budget in BUDGETS:
        assert run.stdout.count(f"class_path: lightning_prune.{budget['class_path']}\n") == 2
    assert run.stdout.count("most: 0.98") == 1
