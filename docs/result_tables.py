"""Writes tables of the pages from `benchmarks/results`, and checks numbers in sentences.

    python docs/result_tables.py

Some tables are made of single runs (CSV). Others are what a script has printed (Markdown): a page
shows the table of `benchmarks/results/zoo.md` at ``<!-- printed: zoo -->``, and the second table of
`memory.md` at ``<!-- printed: memory 2 -->``. With ``--check`` nothing is written, and a page that
differs from the results is an error.

A line with ``<!-- from: zoo -->`` quotes these results, or those on the page `zoo.md`, and so does
a row of a table whose last cell is ``benchmarks/zoo.py``. A number with a decimal point that is not
among them, rounded alike, is an error.
"""

import argparse
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
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
RESULTS = DOCS.parent / "benchmarks" / "results"
README = DOCS.parent / "README.md"
PRINTED = re.compile(r"<!-- (printed: (\w+)(?: (\d+))?) -->")
QUOTED = re.compile(
    r"^(?P<line>.*)(?:<!-- from: (?P<name>\w+) -->|`benchmarks/(?P<script>\w+)\.py` \|$)",
    re.MULTILINE,
)
NUMBER = re.compile(r"(?<![\w.])\d+\.\d+(?!\.?\d)")
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
    pages = {path: path.read_text() for path in sorted(DOCS.glob("*.md"))}
    filled = dict(pages)
    for page, mark, write in TABLES:
        filled[DOCS / page] = fill(filled[DOCS / page], mark, "\n".join(write(file)))
    for path, text in filled.items():
        for mark, name, place in PRINTED.findall(text):
            filled[path] = fill(filled[path], mark, read_printed(name, int(place or 1)))
    for path, text in [*filled.items(), (README, README.read_text())]:
        for quoted in QUOTED.finditer(text):
            name = quoted["name"] or quoted["script"]
            if strangers := find_strangers(quoted["line"], read_numbers(name, filled)):
                sys.exit(f"need numbers of the results {name} in {path.name}, got {strangers}")
    for path in pages:
        if not arguments.check:
            path.write_text(filled[path])
        elif filled[path] != pages[path]:
            sys.exit(f"need the tables of {path.name} as in the results; run {Path(__file__).name}")


def fill(text: str, mark: str, table: str) -> str:
    """Return the text of a page with a table between two marks."""
    begin, end = f"<!-- {mark} -->\n", f"<!-- end of {mark} -->"
    before, _, rest = text.partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        sys.exit(f"need a place for a table, got none between {begin.strip()} and {end}")
    return f"{before}{begin}\n{table}\n{end}{after}"


def read_printed(name: str, place: int) -> str:
    """Return one of the tables that a script has printed; 1 is the first."""
    tables = re.findall(r"(?:^\|.*\n)+", (RESULTS / f"{name}.md").read_text(), re.MULTILINE)
    return tables[place - 1]


def read_numbers(name: str, pages: Mapping[Path, str]) -> list[float]:
    """Return the numbers of printed results, or of a page."""
    results = RESULTS / f"{name}.md"
    text = results.read_text() if results.exists() else pages[DOCS / f"{name}.md"]
    return [float(number) for number in re.findall(r"\d+(?:\.\d+)?", text.replace(",", ""))]


def find_strangers(line: str, known: Sequence[float]) -> list[str]:
    """Return the numbers of a line that no known number equals, rounded to the same digits.

    Examples:
        >>> find_strangers("ResNet-18 runs 4.2 times as fast, and takes 2.7 ms", [4.19, 2.61])
        ['2.7']
    """
    return [
        number
        for number in NUMBER.findall(line)
        if all(f"{each:.{len(number.partition('.')[2])}f}" != number for each in known)
    ]


def _of_task(results: Sequence[Result], task: Task) -> list[Result]:
    return [result for result in results if result.case.task == task]


if __name__ == "__main__":
    main()
