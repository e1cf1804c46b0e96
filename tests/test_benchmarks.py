"""What benchmarks print, at very small size; whether targets are met is theirs to say."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.slow
def test_step_cost_prints_its_table_and_says_what_is_missed():
    done = subprocess.run(
        [sys.executable, "benchmarks/step_cost.py", "--workloads", "lenet", "--seconds", "1"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    rows = [line.split(" | ")[0].strip("| ") for line in done.stdout.splitlines() if "|" in line]
    assert rows[2:6] == ["without", "without, again", "PruningCallback", "timed inside"]
    assert "ModelPruning" in rows
    missed = [line for line in done.stdout.splitlines() if line.startswith("LeNet-300-100: ")][1:]
    assert done.returncode == int(bool(missed)), done.stderr
    assert bool(missed) != ("every bar is met" in done.stdout)
