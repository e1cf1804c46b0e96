"""The list and the table of versions that `docs/versions.py` writes."""

import re
from pathlib import Path

import pytest

from tests.commands import run_python

ROOT = Path(__file__).parent.parent
CASES = {
    "passes": "",
    "fails": "<failure/>",
    "breaks": "<error/>",
    "needs": '<skipped type="pytest.skip"/>',
    "refuses": '<skipped type="pytest.xfail"/>',
}


def write_results(path, outcomes, **versions):
    """Write the results of a run as `.ci/versions` does."""
    names = [f'<property name="{name}" value="{value}"/>' for name, value in versions.items()]
    cases = [
        f'<testcase classname="t" name="{n}">{CASES[o]}</testcase>' for n, o in outcomes.items()
    ]
    text = f"<properties>{''.join(names)}</properties>{''.join(cases)}"
    path.write_text(f"<testsuites><testsuite>{text}</testsuite></testsuites>")
    return path


def write_pages(folder, *results):
    """Return the texts that the script writes into the README and into the page."""
    pages = folder / "readme.md", folder / "page.md"
    for page in pages:
        page.write_text("Before\n<!-- versions -->\nold\n<!-- end of versions -->\nAfter\n")
    places = "--readme", pages[0], "--page", pages[1]
    run_python(ROOT / "docs" / "versions.py", *results, *places)
    return [read_place(page) for page in pages]


def read_place(page):
    before, between, after = re.split("<!-- .*versions -->\n", page.read_text())
    assert (before, after) == ("Before\n", "After\n")
    return between


@pytest.mark.slow
def test_a_column_counts_the_outcomes_of_a_run_and_the_rest_is_named(tmp_path):
    outcomes = {"a": "passes", "b": "passes", "c": "passes", "d": "refuses", "e": "refuses"}
    old = write_results(tmp_path / "old.xml", outcomes, torch="2.8.0", python="3.10.1", rich="13.0")
    others = {"a": "fails", "b": "breaks", "c": "needs"}
    new = write_results(tmp_path / "new.xml", others, torch="2.10.1", python="3.13.0", rich="15.0")
    summary, text = write_pages(tmp_path, new, old)
    assert summary.splitlines() == [
        "",
        "- torch 2.8.0, Python 3.10.1: 3 passed, 2 refused by name",
        "- torch 2.10.1, Python 3.13.0: 2 **failed**, 1 skipped",
        "",
    ]
    assert "| | torch 2.8.0 | torch 2.10.1 |" in text
    assert "| tests | 3 passed, 2 refused by name | 2 **failed**, 1 skipped |" in text
    assert "| python | 3.10.1 | 3.13.0 |" in text
    assert "| rich | 13.0 | 15.0 |" in text
    assert "| numpy | missing | missing |" in text
    assert "torch 2.15, python 3.11, python 3.12, python 3.14, and other combinations" in text
    assert "did not run torch 2.9, torch 2.11," in text


@pytest.mark.slow
def test_files_of_the_same_versions_are_parts_of_a_run(tmp_path):
    versions = {"torch": "2.8.0", "python": "3.10.1"}
    first = write_results(tmp_path / "1.xml", {"a": "passes", "b": "fails"}, **versions)
    second = write_results(tmp_path / "2.xml", {"b": "passes", "c": "passes"}, **versions)
    summary, text = write_pages(tmp_path, first, second)
    assert "| tests | 3 passed |" in text
    assert summary.strip().endswith(": 3 passed")


@pytest.mark.slow
def test_results_without_versions_are_refused(tmp_path):
    file = write_results(tmp_path / "plain.xml", {"a": "passes"})
    with pytest.raises(AssertionError, match=r"need results that .ci/versions has written, got"):
        write_pages(tmp_path, file)


@pytest.mark.parametrize("page", ["README.md", "docs/works_with.md"])
def test_a_page_has_a_place_for_the_versions(page):
    assert len(re.findall("<!-- (end of )?versions -->", (ROOT / page).read_text())) == 2
