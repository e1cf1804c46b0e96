"""The results of each case, and the verdict by the rule of `recipes.py`."""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks.kit.judging import summarize
from benchmarks.parts.recipes.arms import ERK, GRADUAL, Arm
from benchmarks.parts.recipes.plan import Case, list_cases, list_tests, tune
from benchmarks.parts.recipes.runs import Find, Run
from benchmarks.parts.recipes.tasks import Task

DEFAULT = f"{GRADUAL}, {ERK}"
WINS = 2  # tasks


@dataclass(frozen=True, kw_only=True)
class Result:
    """All runs of a case that are there.

    Args:
        case: The case.
        planned: Number of planned trainings on the test split; None while the case is not tuned.
        tuned: The best run of the tuning; None while the case is not tuned.
        runs: The trainings on the test split.
    """

    case: Case
    planned: int | None
    tuned: Run | None
    runs: Sequence[Run]

    @property
    def sparsities(self) -> list[float]:
        """The sparsities that have runs, in order."""
        return sorted({run.sparsity for run in self.runs})

    def scores_at(self, sparsity: float) -> list[float]:
        """Return the score of each seed; higher is better."""
        return [self.case.task.score(run) for run in self.runs if run.sparsity == sparsity]

    def average_seeds(self) -> list[float]:
        """Return the mean score over the sparsities, for each seed that has them all."""
        means = []
        for seed in sorted({run.seed for run in self.runs}):
            scores = [self.case.task.score(run) for run in self.runs if run.seed == seed]
            if len(scores) == len(self.sparsities):
                means.append(statistics.mean(scores))
        return means


@dataclass(frozen=True, kw_only=True)
class Gain:
    """The distance of two means, beside the spread.

    Args:
        gain: The mean of the arm less that of the default.
        spread: The larger standard deviation over the seeds.
    """

    gain: float
    spread: float

    @property
    def wins(self) -> bool:
        """Whether the arm is better by more than the spread."""
        return self.gain > self.spread

    @property
    def loses(self) -> bool:
        """Whether the arm is worse by more than the spread."""
        return -self.gain > self.spread

    @property
    def verdict(self) -> str:
        """The verdict in a word."""
        return "wins" if self.wins else "loses" if self.loses else "alike"


def collect(
    tasks: Sequence[Task],
    arms: Sequence[Arm],
    sparsities: Sequence[float],
    seeds: int,
    find: Find,
) -> list[Result]:
    """Return the results of all cases, from the runs that are there."""
    numbers: dict[tuple[str, str], tuple[Case, int]] = {}
    for case, count in list_cases(tasks, arms, seeds, find):
        numbers[case.task.name, case.name] = case, count
    return [collect_case(case, sparsities, count, find) for case, count in numbers.values()]


def collect_case(case: Case, sparsities: Sequence[float], seeds: int, find: Find) -> Result:
    """Return the result of a case."""
    tuned = tune(case, find)
    if tuned is None:
        return Result(case=case, planned=None, tuned=None, runs=[])
    settings = [*list_tests(case, tuned, sparsities, seeds)]
    runs = [run for run in map(find, settings) if run is not None]
    return Result(case=case, planned=len(settings), tuned=tuned, runs=runs)


def compare_means(values: Sequence[float], others: Sequence[float]) -> Gain:
    """Return the gain of values over others."""
    first, second = summarize(values), summarize(others)
    spread = max(first.deviation, second.deviation)
    return Gain(gain=first.mean - second.mean, spread=spread)


def compare_tasks(results: Sequence[Result], name: str) -> dict[str, Gain]:
    """Return the gain of a case over the default in each task where both are complete."""
    found = {(result.case.task.name, result.case.name): result for result in results}
    gains = {}
    for task in dict.fromkeys(task for task, _ in found):
        both = [found.get((task, case)) for case in (name, DEFAULT)]
        if all(result is not None and len(result.runs) == result.planned for result in both):
            gains[task] = compare_means(*(result.average_seeds() for result in both))
    return gains


def find_losses(results: Sequence[Result], name: str) -> Iterator[str]:
    """Yield each task and sparsity where a case is behind by more than the spread."""
    found = {(result.case.task.name, result.case.name): result for result in results}
    for (task, case), result in found.items():
        default = found.get((task, DEFAULT))
        if case == name and default is not None:
            for sparsity in result.sparsities:
                scores = result.scores_at(sparsity), default.scores_at(sparsity)
                if all(scores) and compare_means(*scores).loses:
                    yield f"{task} at {sparsity:g}"


def judge(gains: dict[str, Gain], tasks: int) -> str:
    """Return whether a case wins by the rule, in words."""
    if len(gains) < tasks:
        return "not complete"
    won = sum(gain.wins for gain in gains.values())
    lost = sum(gain.loses for gain in gains.values())
    return "WINS" if won >= min(WINS, tasks) and not lost else "does not win"
