"""The README: how long it is, which Python it shows, and where its links lead."""

import re
import runpy

import pytest

import lightning_prune
from docs.idea import PICTURE, draw
from tests.commands import ROOT
from tests.pages.blocks import MINE, PAGES, name_page, read_blocks

README = ROOT / "README.md"
SET_UP = "python3 -m venv .venv"  # stays as it is, whatever the length
LINK = re.compile(r"\]\(([^)\s]+)\)")


def test_the_readme_is_short_and_narrow():
    lines = README.read_text().splitlines()
    assert len(lines) <= 120
    assert max(len(line) for line in lines if not line.startswith(SET_UP)) <= 120


@pytest.mark.slow
@pytest.mark.parametrize(
    "block",
    [block for block in read_blocks(README) if block.language == "python"],
    ids=lambda block: block.place,
)
def test_the_python_of_the_readme_runs(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mine = runpy.run_path(str(MINE / "my_package.py"))
    exec(block.code, {"model": mine["MyModule"](), "data": mine["MyData"]()})


@pytest.mark.parametrize("page", PAGES, ids=name_page)
def test_the_python_of_a_page_imports_names_that_exist(page):
    for block in read_blocks(page):
        if block.language == "python":
            for names in re.findall(
                r"^from lightning_prune import (.+)$", block.code, re.MULTILINE
            ):
                for name in re.findall(r"\w+", names):
                    assert hasattr(lightning_prune, name), f"{block.place}: {name}"


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"])
def test_every_link_leads_to_a_file_of_the_repository(name):
    links = {link for link in LINK.findall((ROOT / name).read_text()) if "//" not in link}
    missing = [link for link in links if not (ROOT / link.partition("#")[0]).exists()]
    assert missing == []


def test_the_picture_is_the_one_that_its_script_draws():
    assert PICTURE.read_text() == draw()


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("README.md", r"^(\S+), alpha"),
        ("CHANGELOG.md", r"^## (\S+)"),
        ("CITATION.cff", r"^version: (\S+)"),
    ],
)
def test_a_page_names_the_version_of_the_package(name, line):
    found = re.search(line, (ROOT / name).read_text(), re.MULTILINE)
    assert found[1] == lightning_prune.__version__
