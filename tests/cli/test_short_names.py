"""Short names of answers work in a user's own LightningCLI that imports one name of ours."""

import json
import subprocess
import sys

import pytest

SCRIPT = """
import json, sys
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.demos.boring_classes import BoringDataModule, BoringModel
from lightning_prune import PruningCallback

given = json.loads(sys.argv[1])
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


@pytest.mark.slow
def test_every_short_name_is_read_by_a_users_own_command(tmp_path):
    script = tmp_path / "own_cli.py"
    script.write_text(SCRIPT)
    longest = max(map(len, ANSWERS.values()))
    for place in range(longest):
        given = {name: kinds[place % len(kinds)] for name, kinds in ANSWERS.items()}
        if given["pattern"] == "ChannelPattern":
            given["allocation"] = "UniformAllocation"
        if given["criterion"] == "MovementCriterion":
            given["allocation"] = "GlobalAllocation"
        arguments = json.dumps({**given, "sparsity": 0.8, "regrow": None})
        run = subprocess.run(
            [sys.executable, script, arguments], capture_output=True, text=True, cwd=tmp_path
        )
        assert run.returncode == 0, run.stderr
        for name in given.values():
            assert f"class_path: lightning_prune.{name}\n" in run.stdout
