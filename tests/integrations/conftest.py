"""Accelerate keeps settings in classes; each test begins without those of the tests before."""

import sys
from collections.abc import Iterator

import pytest

# Scripts that tests start in processes of their own; they import what may be missing.
collect_ignore = [
    "accelerate_loop.py",
    "cpu_shards.py",
    "launched.py",
    "sharded_trainer.py",
    "yolo_runs.py",
]


@pytest.fixture(autouse=True)
def _forget_accelerate() -> Iterator[None]:
    yield
    state = sys.modules.get("accelerate.state")
    if state is not None:
        state.AcceleratorState._reset_state(reset_partial_state=True)
        state.GradientState._reset_state()
