"""The trainings of `recipes.py` in order: successive halving, seeds, and the two best arms."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from benchmarks.parts.recipes.arms import ALLOCATIONS, ARMS, DENSE, ERK, Arm
from benchmarks.parts.recipes.runs import TEST, VALIDATION, Find, Run, Setting
from benchmarks.parts.recipes.tasks import Task

TUNED_SPARSITY = 0.95
TUNING_SEED = 100  # no seed of the test
THIRD = 3  # the first rung takes a third of the steps; the best third of the candidates go on
MORE_SEEDS = 2  # for the two best arms


@dataclass(frozen=True, kw_only=True)
class Case:
    """An arm with an allocation in a task.

    Args:
        task: The task.
        arm: The arm.
        allocation: The name of the allocation.
    """

    task: Task
    arm: Arm
    allocation: str = ERK

    @property
    def name(self) -> str:
        """The arm, with the allocation if it has any."""
        return self.arm.name if self.arm.name == DENSE else f"{self.arm.name}, {self.allocation}"

    def set(self, sparsity: float, timing: str, rate: float, **others: object) -> Setting:
        """Return a setting of this case."""
        is_dense = self.arm.name == DENSE
        return Setting(
            task=self.task.name,
            arm=self.arm.name,
            allocation="" if is_dense else self.allocation,
            sparsity=0.0 if is_dense else sparsity,
            timing=timing,
            rate=rate,
            **others,
        )

    def list_candidates(self) -> list[Setting]:
        """Return the first rung: each timing with each learning rate."""
        rung = {
            "steps": self.task.steps // THIRD,
            "seed": TUNING_SEED,
            "split": VALIDATION,
        }
        return [
            self.set(TUNED_SPARSITY, timing, rate, **rung)
            for timing in self.arm.timings
            for rate in self.task.rates
        ]


def run_rung(case: Case, rung: Iterable[Setting], find: Find) -> list[Run] | None:
    """Return the runs of a rung, the best first; None if a run is missing."""
    runs = [find(setting) for setting in rung]
    found = [run for run in runs if run is not None]
    return sorted(found, key=case.task.score, reverse=True) if len(found) == len(runs) else None


def tune(case: Case, find: Find) -> Run | None:
    """Return the best run of the last rung on the validation split; None if a run is missing."""
    first = run_rung(case, case.list_candidates(), find)
    if first is None:
        return None
    best = first[: max(1, len(first) // THIRD)]
    last = run_rung(case, [run.setting._replace(steps=case.task.steps) for run in best], find)
    return None if last is None else last[0]


def list_tests(
    case: Case, tuned: Run, sparsities: Sequence[float], seeds: int
) -> Iterator[Setting]:
    """Yield the trainings of a tuned case that the test split judges."""
    for sparsity in [0.0] if case.arm.name == DENSE else sparsities:
        for seed in range(seeds):
            yield tuned.setting._replace(sparsity=sparsity, seed=seed, split=TEST)


def choose_best(tasks: Sequence[Task], arms: Sequence[Arm], find: Find) -> list[Arm]:
    """Return the two arms with the least sum of ranks on validation; none until all are tuned."""
    pruned = [arm for arm in arms if arm.name != DENSE]
    ranks = dict.fromkeys((arm.name for arm in pruned), 0)
    for task in tasks:
        tuned = {arm.name: tune(Case(task=task, arm=arm), find) for arm in pruned}
        if None in tuned.values():
            return []
        order = sorted(tuned, key=lambda name: task.score(tuned[name]), reverse=True)
        for rank, name in enumerate(order):
            ranks[name] += rank
    return sorted(pruned, key=lambda arm: ranks[arm.name])[:2]


def list_cases(
    tasks: Sequence[Task], arms: Sequence[Arm], seeds: int, find: Find
) -> Iterator[tuple[Case, int]]:
    """Yield all cases in order, each with the number of seeds.

    All arms come first with ERK. As soon as all are tuned, the two best arms get more seeds, and
    then the other allocations.

    Args:
        tasks: The tasks.
        arms: The arms; the two best of all are chosen, whether they are among these or not.
        seeds: Seeds of a case; the two best arms get two more.
        find: Returns the runs that are there.
    """
    for arm in arms:
        for task in tasks:
            yield Case(task=task, arm=arm), seeds
    best = [arm for arm in choose_best(tasks, [*ARMS.values()], find) if arm in arms]
    for arm in best:
        for task in tasks:
            yield Case(task=task, arm=arm), seeds + MORE_SEEDS
    for arm in best:
        for allocation in ALLOCATIONS:
            for task in tasks:
                if allocation != ERK:
                    yield Case(task=task, arm=arm, allocation=allocation), seeds
