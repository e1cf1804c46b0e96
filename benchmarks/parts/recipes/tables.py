"""The report of `recipes.py`: Markdown tables of the runs that are there."""

import statistics
from collections.abc import Iterator, Sequence

from benchmarks.kit.judging import summarize
from benchmarks.kit.recording import write_markdown_header, write_markdown_row
from benchmarks.parts.recipes.arms import DENSE
from benchmarks.parts.recipes.plan import TUNED_SPARSITY
from benchmarks.parts.recipes.results import (
    DEFAULT,
    Result,
    compare_tasks,
    find_losses,
    judge,
)
from benchmarks.parts.recipes.runs import TEST, Run
from benchmarks.parts.recipes.tasks import Task

HOUR = 3600


def write_value(task: Task, score: float) -> str:
    """Return a score as people read it: points, or bits."""
    return f"{-score:.3f}" if task.judge == "bits" else f"{score:.2f}"


def write_summary(task: Task, scores: Sequence[float]) -> str:
    """Return mean ± sd, and the number of seeds if it is not 3."""
    if not scores:
        return ""
    mean, deviation = summarize(scores)
    digits = 3 if task.judge == "bits" else 2
    seeds = "" if len(scores) == 3 else f" ({len(scores)})"
    return f"{write_value(task, mean)} ± {deviation:.{digits}f}{seeds}"


def write_task(task: Task, results: Sequence[Result], sparsities: Sequence[float]) -> Iterator[str]:
    """Yield the lines of the table of a task."""
    unit = "bits a byte, less is better" if task.judge == "bits" else "test accuracy, points"
    yield f"### {task.name}: {task.about}\n"
    yield f"{task.steps} steps of {task.batch} samples; {unit}; mean ± sd of 3 seeds, or (n).\n"
    yield from write_arms(task, results, sparsities)
    yield ""


def write_arms(task: Task, results: Sequence[Result], sparsities: Sequence[float]) -> Iterator[str]:
    """Yield the table of a task: a row for each arm."""
    yield write_markdown_header("arm", *(f"{at:g}" for at in sparsities), "CPU seconds")
    for result in results:
        if result.runs:
            scores = (
                result.scores_at(0.0 if result.case.arm.name == DENSE else at) for at in sparsities
            )
            cells = (write_summary(task, values) for values in scores)
            seconds = statistics.median(run.seconds for run in result.runs)
            yield write_markdown_row(result.case.name, *cells, f"{seconds:.1f}")


def write_tuning(results: Sequence[Result]) -> Iterator[str]:
    """Yield the lines of the table of tuned hyperparameters."""
    yield f"### Tuned at {TUNED_SPARSITY:g} on the validation split\n"
    yield "A learning rate at an end of the range that was tried is marked.\n"
    yield write_markdown_header("task", "arm", "when", "learning rate", "validation")
    for result in results:
        if result.tuned is not None:
            task, tuned = result.case.task, result.tuned
            value = write_value(task, task.score(tuned))
            is_end = tuned.rate in (min(task.rates), max(task.rates))
            cells = (tuned.timing, f"{tuned.rate:g}{' (an end)' if is_end else ''}", value)
            yield write_markdown_row(task.name, result.case.name, *cells)
    yield ""


def write_verdict(results: Sequence[Result], tasks: Sequence[Task]) -> Iterator[str]:
    """Yield the table of gains over the default, and the verdict."""
    yield f"### Gains over the default ({DEFAULT})\n"
    yield (
        "The gain is that of the mean over the sparsities (bits: saved bits), beside the larger sd "
        "of both arms. An arm wins if its gain exceeds the spread on two of three tasks, and if it "
        "is behind by more than the spread on none.\n"
    )
    names = dict.fromkeys(result.case.name for result in results)
    columns = (*(task.name for task in tasks), "by the rule", "behind by more than the spread")
    yield write_markdown_header("arm", *columns)
    for name in names:
        if name in (DENSE, DEFAULT):
            continue
        gains = compare_tasks(results, name)
        cells = [
            f"{gain.gain:+.3f} of {gain.spread:.3f}: {gain.verdict}" if gain else ""
            for gain in (gains.get(task.name) for task in tasks)
        ]
        losses = ", ".join(find_losses(results, name))
        yield write_markdown_row(name, *cells, judge(gains, len(tasks)), losses)
    yield ""


def write_effort(runs: Sequence[Run]) -> Iterator[str]:
    """Yield the table of CPU hours, and the versions."""
    yield "### CPU hours\n"
    yield write_markdown_header("arm", "tuning", "seeds", "trainings")
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.arm, []).append(run)
    for name, group in {**groups, "sum": list(runs)}.items():
        seeds = sum(run.seconds for run in group if run.split == TEST)
        tuning = sum(run.seconds for run in group) - seeds
        yield write_markdown_row(name, f"{tuning / HOUR:.2f}", f"{seeds / HOUR:.2f}", len(group))
    yield ""
    for versions in dict.fromkeys(run.versions for run in runs):
        yield f"- {sum(run.versions == versions for run in runs)} trainings: {versions}"
    yield ""


def write_missing(results: Sequence[Result]) -> Iterator[str]:
    """Yield a line for each case that is not complete."""
    yield "### Missing\n"
    complete = True
    for result in results:
        name = f"{result.case.task.name}, {result.case.name}"
        if result.planned is None:
            yield f"- {name}: not tuned"
        elif len(result.runs) < result.planned:
            yield f"- {name}: {len(result.runs)} of {result.planned} trainings on the test split"
        complete = complete and len(result.runs) == result.planned
    if complete:
        yield "Nothing: the plan is complete."


def write_report(
    results: Sequence[Result],
    runs: Sequence[Run],
    tasks: Sequence[Task],
    sparsities: Sequence[float],
) -> str:
    """Return the whole report."""
    lines: list[str] = []
    for task in tasks:
        lines += write_task(task, [r for r in results if r.case.task == task], sparsities)
    lines += [*write_verdict(results, tasks), *write_tuning(results)]
    return "\n".join([*lines, *write_effort(runs), *write_missing(results)])
