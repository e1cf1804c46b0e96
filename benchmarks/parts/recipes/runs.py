"""The file of finished trainings, which `recipes.py` does not repeat."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.kit.recording import append_run, read_runs

VALIDATION, TEST = "validation", "test"


class Setting(NamedTuple):
    """All that decides on the result of a training.

    Args:
        task: The name of the task.
        arm: The name of the arm.
        allocation: The name of the allocation.
        sparsity: The final sparsity, in [0, 1].
        timing: The name of the timing.
        rate: The learning rate at the start.
        steps: Optimizer steps.
        seed: Decides the first weights and the order of the samples.
        split: The samples that measure.
    """

    task: str
    arm: str
    allocation: str
    sparsity: float
    timing: str
    rate: float
    steps: int
    seed: int
    split: str


class Run(NamedTuple):
    """A training and the result: a row of the file.

    The first nine fields are those of `Setting`.

    Args:
        accuracy: Right answers, in points.
        bits: Cross-entropy of an answer, in bits.
        seconds: CPU seconds of the training and the measurement.
        data: Eight hexadecimal digits that tell the data.
        versions: Versions, processor and commit.
    """

    task: str
    arm: str
    allocation: str
    sparsity: float
    timing: str
    rate: float
    steps: int
    seed: int
    split: str
    accuracy: float
    bits: float
    seconds: float
    data: str
    versions: str

    @property
    def setting(self) -> Setting:
        """All that decided on the result."""
        return Setting(*self[: len(Setting._fields)])


Find = Callable[[Setting], Run | None]
"""Returns the run of a setting; None before it was trained."""


class RunFile:
    """The runs of a file, found by the setting.

    Args:
        path: The file, which may not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.runs: list[Run] = read_runs(path, Run)
        self._known = {run.setting: run for run in self.runs}

    def find(self, setting: Setting) -> Run | None:
        """Return the run of a setting, or None if the file has none."""
        return self._known.get(setting)

    def add(self, run: Run) -> None:
        """Write a run at once."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        append_run(self.path, run)
        self.runs.append(run)
        self._known[run.setting] = run

    def find_data(self, task: str) -> Sequence[str]:
        """Return the data of all runs of a task, without repetition."""
        return [*dict.fromkeys(run.data for run in self.runs if run.task == task)]
