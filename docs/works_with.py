"""Writes the tables of `works_with.md` from the results of the tests.

    pytest -n 2 --junitxml results.xml && python docs/works_with.py results.xml

A test claims a row by ``@pytest.mark.works_with(section, case)``. If the test shows that the case
is refused by name, the marker has ``refused=True``. With ``--check`` nothing is written, and a page
that differs from the results is an error.
"""

import argparse
import json
import re
import sys
from collections import defaultdict
from pathlib import Path
from xml.etree import ElementTree

PAGE = Path(__file__).with_name("works_with.md")
PLACE = re.compile(r"(<!-- results: (.+?) -->\n)(.*?)(<!-- end of results -->)", re.DOTALL)
NOT_RUN = "not run"


def rows_by_section(results: Path) -> dict[str, dict[str, list[dict]]]:
    """Return the results of the tests by section and case, in the order of the test files."""
    shown: list[dict] = []
    for case in ElementTree.parse(results).iter("testcase"):
        outcome = {child.tag for child in case} & {"failure", "error", "skipped"}
        for entry in case.iter("property"):
            if entry.get("name") == "works_with":
                row = json.loads(entry.get("value", ""))
                row["outcome"] = min(outcome, default="passed")
                row["test"] = case.get("name", "").split("[")[0]
                shown.append(row)
    sections: dict[str, dict[str, list[dict]]] = defaultdict(lambda: defaultdict(list))
    for row in sorted(shown, key=lambda row: (row["order"], row["case"])):
        sections[row["section"]][row["case"]].append(row)
    return sections


def table(cases: dict[str, list[dict]], before: str) -> str:
    """Return a Markdown table with a row for each case.

    A row keeps its old place. A case that was not run keeps its old row. New rows follow in the
    order of the test files.
    """
    lines = ["", "| case | outcome | shown by |", "|---|---|---|"]
    places = [line.split(" | ")[0].removeprefix("| ") for line in before.splitlines()]
    for case, rows in sorted(
        cases.items(), key=lambda item: places.index(item[0]) if item[0] in places else len(places)
    ):
        tests = sorted({f"`{Path(row['order'][0]).name}::{row['test']}`" for row in rows})
        row = f"| {case} | {outcome(rows)} | {', '.join(tests)} |"
        if outcome(rows) == NOT_RUN:
            row = next((old for old in before.splitlines() if old.startswith(f"| {case} |")), row)
        lines.append(row)
    return "\n".join([*lines, "", ""])


def outcome(rows: list[dict]) -> str:
    """Return the outcome of the tests of a case, in words."""
    outcomes = {row["outcome"] for row in rows}
    if outcomes & {"failure", "error"}:
        return "**fails**"
    if "passed" not in outcomes:
        return NOT_RUN
    return "refused by name" if all(row.get("refused") for row in rows) else "holds"


def main() -> None:
    """Write the tables, or compare them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, help="JUnit XML of a whole test run")
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    arguments = parser.parse_args()
    sections = rows_by_section(arguments.results)
    page = PAGE.read_text()
    places = {match[2] for match in PLACE.finditer(page)}
    if places != set(sections):
        sys.exit(
            f"need the same sections on the page and in the tests, got {sorted(places)} and "
            f"{sorted(sections)}"
        )
    new = PLACE.sub(lambda m: m[1] + table(sections[m[2]], before=m[3]) + m[4], page)
    if not arguments.check:
        PAGE.write_text(new)
    elif new != page:
        sys.exit(
            f"need the tables of {PAGE.name} to agree with the tests, got others; run the command "
            f"in {Path(__file__).name} that writes them"
        )


if __name__ == "__main__":
    main()
