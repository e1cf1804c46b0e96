"""Writes the versions into the README, and a table of them into the docs, from results of tests.

    .ci/versions && python docs/versions.py .venv-versions/*.xml

Files of the same versions of Python and torch are parts of a run: a test counts once, as the last
file has it. A test that expects a refusal by name from an older torch is an expected failure.
"""

import argparse
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

README = Path(__file__).resolve().parent.parent / "README.md"
PAGE = Path(__file__).with_name("works_with.md")
PLACE = re.compile(r"(<!-- versions -->\n)(.*?)(<!-- end of versions -->)", re.DOTALL)
PACKAGES = (
    *("python", "torch", "lightning", "torchmetrics", "jsonargparse", "tensorboard", "rich"),
    *("numpy", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "openvino"),
)
MAJORS = {"torch": 2, "python": 3}
MINORS = {"torch": range(8, 16), "python": range(10, 15)}


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run of the tests.

    Args:
        versions: The version of each package, and of Python.
        outcomes: The outcome of each test.
    """

    versions: dict[str, str]
    outcomes: dict[tuple[str, str], str]

    def minor(self, name: str) -> int:
        """Return the minor version of torch or Python."""
        return int(self.versions[name].split(".")[1])


def read_runs(files: list[Path]) -> list[Run]:
    """Return the runs, in the order of the versions of torch and Python."""
    runs: dict[tuple[str, str], Run] = {}
    for path in files:
        tree = ElementTree.parse(path)
        properties = tree.iterfind(".//properties/property")
        versions = {each.get("name"): each.get("value") for each in properties}
        if not {*MAJORS} <= {*versions}:
            raise SystemExit(f"need results that .ci/versions has written, got {path}")
        key = versions["torch"], versions["python"]
        run = runs.setdefault(key, Run(versions=versions, outcomes={}))
        for case in tree.iter("testcase"):
            run.outcomes[case.get("classname", ""), case.get("name", "")] = outcome(case)
    return sorted(runs.values(), key=lambda run: (run.minor("torch"), run.minor("python")))


def outcome(case: ElementTree.Element) -> str:
    """Return the outcome of a test, in words."""
    if case.find("failure") is not None or case.find("error") is not None:
        return "**failed**"
    skipped = case.find("skipped")
    if skipped is None:
        return "passed"
    return "refused by name" if skipped.get("type") == "pytest.xfail" else "skipped"


def describe(run: Run) -> str:
    """Return the outcomes of a run, the most frequent first."""
    counts = Counter(run.outcomes.values()).most_common()
    return ", ".join(f"{count:,} {words}" for words, count in counts)


def summary(runs: list[Run]) -> str:
    """Return a Markdown list with a line for each run."""
    lines = [
        f"- torch {run.versions['torch']}, Python {run.versions['python']}: {describe(run)}"
        for run in runs
    ]
    return "\n".join(["", *lines, "", ""])


def table(runs: list[Run]) -> str:
    """Return a Markdown table with a column for each run, and name what was not run."""
    lines = [
        "| | " + " | ".join(f"torch {run.versions['torch']}" for run in runs) + " |",
        "|---" * (len(runs) + 1) + "|",
        "| tests | " + " | ".join(map(describe, runs)) + " |",
    ]
    for name in PACKAGES:
        versions = [run.versions.get(name, "missing") for run in runs]
        lines.append(f"| {name} | {' | '.join(versions)} |")
    return "\n".join(["", *lines, "", missing(runs), "", ""])


def missing(runs: list[Run]) -> str:
    """Return a sentence that names the minor versions that no run has."""
    absent = [
        f"{name} {major}.{number}"
        for name, major in MAJORS.items()
        for number in MINORS[name]
        if number not in {run.minor(name) for run in runs}
    ]
    others = "other combinations of these versions"
    return f"`.ci/versions` did not run {', '.join([*absent, 'and ' + others])}."


def main() -> None:
    """Write the list and the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, nargs="+", help="JUnit XML of .ci/versions")
    parser.add_argument("--readme", type=Path, default=README, help="the place of the list")
    parser.add_argument("--page", type=Path, default=PAGE, help="the place of the table")
    arguments = parser.parse_args()
    runs = read_runs(arguments.results)
    write(arguments.readme, summary(runs))
    write(arguments.page, table(runs))


def write(page: Path, text: str) -> None:
    """Write a text into the place of a page."""
    page.write_text(PLACE.sub(lambda place: place[1] + text + place[3], page.read_text()))


if __name__ == "__main__":
    main()
