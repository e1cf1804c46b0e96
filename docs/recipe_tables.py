"""Writes the tables of `recipes.md` and `learning_rates.md` from `benchmarks/results`.

    python docs/recipe_tables.py

With ``--check`` nothing is written, and a page that differs from the results is an error.
"""

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.fine_tuning_rates import RUNS as TUNED, SHARES, Run as TunedRun
from benchmarks.kit.judging import summarize
from benchmarks.kit.recording import read_runs, write_markdown_header, write_markdown_row
from benchmarks.parts.recipes.arms import ARMS, DENSE, GRADUAL
from benchmarks.parts.recipes.plan import Case
from benchmarks.parts.recipes.results import Result, collect
from benchmarks.parts.recipes.runs import RunFile
from benchmarks.parts.recipes.tables import write_arms, write_value
from benchmarks.parts.recipes.tasks import TASKS, Task
from benchmarks.recipes import RUNS, SPARSITIES

DOCS = Path(__file__).parent
SEEDS = 3
UNITS = {"accuracy": "validation accuracy, in points", "bits": "bits a byte; fewer are better"}


def compare_arms(file: RunFile) -> Iterator[str]:
    """Yield the tables of all recipes, a table for each task."""
    results = collect([*TASKS.values()], [*ARMS.values()], SPARSITIES, SEEDS, file.find)
    for task in TASKS.values():
        yield f"**{task.name}**: {task.about}.\n"
        yield from write_arms(task, _of_task(results, task), SPARSITIES)
        yield ""


def compare_ramps(file: RunFile) -> Iterator[str]:
    """Yield the tables of ramps and learning rates, a table for each task."""
    for task in TASKS.values():
        yield f"**{task.name}**: {task.about}; {UNITS[task.judge]}.\n"
        yield write_markdown_header("", *(f"peak {rate:g}" for rate in task.rates))
        for name in (DENSE, GRADUAL):
            case = Case(task=task, arm=ARMS[name])
            runs = {run.setting: run for run in map(file.find, case.list_candidates()) if run}
            for timing in ARMS[name].timings:
                scores = [task.score(run) for at, run in runs.items() if at.timing == timing]
                cells = (write_value(task, score) for score in scores)
                yield write_markdown_row(timing or name, *cells)
        yield ""


def compare_rates(_: RunFile) -> Iterator[str]:
    """Yield the table of learning rates after one-shot pruning."""
    runs = read_runs(TUNED, TunedRun)
    names = ("not trained on", *(f"{share:g} times the peak" for share in SHARES))
    yield write_markdown_header("sparsity", *names)
    for sparsity in dict.fromkeys(run.sparsity for run in runs):
        cells = (
            summarize([run.accuracy for run in runs if run[:2] == (sparsity, share)])
            for share in (0.0, *SHARES)
        )
        yield write_markdown_row(f"{sparsity:g}", *cells)
    yield ""


TABLES = (
    ("recipes.md", "compared", compare_arms),
    ("learning_rates.md", "ramps", compare_ramps),
    ("learning_rates.md", "rates", compare_rates),
)


def main() -> None:
    """Write the tables, or compare them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    arguments = parser.parse_args()
    file = RunFile(RUNS)
    for page, mark, write in TABLES:
        path = DOCS / page
        before = path.read_text()
        place = re.compile(rf"(<!-- {mark} -->\n).*?(<!-- end of {mark} -->)", re.DOTALL)
        if not place.search(before):
            sys.exit(f"need a place for the tables in {page}, got none between <!-- {mark} -->")
        table = "\n".join(["", *write(file), ""])
        after = place.sub(rf"\g<1>{table}\g<2>", before)
        if not arguments.check:
            path.write_text(after)
        elif after != before:
            sys.exit(f"need the tables of {page} as in the results; run {Path(__file__).name}")


def _of_task(results: Sequence[Result], task: Task) -> list[Result]:
    return [result for result in results if result.case.task == task]


if __name__ == "__main__":
    main()
