"""Every command of the README and of the docs, in an empty folder, or with the reason why not.

The commands of a page run in order, in a shell. Pages that need the repository say so by a note.
"""

import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from tests.commands import ROOT, run_command
from tests.pages.blocks import COMMANDS, IN_A_CLONE, MINE, PAGES, SHELLS, name_page, read_blocks

QUICK = ("README.md",)  # the other pages take minutes
SECONDS = 3600  # for all commands of a page, on a busy machine
FOLDERS = ("benchmarks", "configs", "docs", "examples")


def read_commands(page):
    return [block for block in read_blocks(page) if block.language == COMMANDS]


def mark(page):
    name = name_page(page)
    return pytest.param(page, id=name, marks=[] if name in QUICK else [pytest.mark.rare])


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    "page",
    [mark(page) for page in PAGES if any(not block.reason for block in read_commands(page))],
)
def test_the_commands_of_a_page_run_in_an_empty_folder(page, tmp_path):
    for block in read_blocks(page):
        if block.file:
            (tmp_path / block.file).write_text(block.code)
    if IN_A_CLONE in page.read_text():
        for name in FOLDERS:
            (tmp_path / name).symlink_to(ROOT / name)
    run = "".join(block.code for block in read_commands(page) if not block.reason)
    paths = filter(None, [str(MINE), os.environ.get("PYTHONPATH")])
    environment = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(paths),
    }
    command = "bash", "-euxo", "pipefail", "-c", run
    run_command(*command, folder=tmp_path, environment=environment, seconds=SECONDS)


@pytest.mark.parametrize("page", PAGES, ids=name_page)
def test_a_command_that_is_not_run_says_why(page):
    for block in read_commands(page):
        if "pip install" in block.code or "<" in block.code or "pytest" in block.code:
            assert block.reason, f"{block.place} needs the network, a file or the tests"


@pytest.mark.parametrize("page", PAGES, ids=name_page)
def test_commands_have_a_single_name_of_a_language(page):
    assert [block.place for block in read_blocks(page) if block.language in SHELLS] == []


@pytest.mark.parametrize("page", PAGES, ids=name_page)
def test_every_note_stands_before_a_block(page):
    notes = re.findall(r"^ *<!-- (?:not run|file): ", page.read_text(), re.MULTILINE)
    assert len(notes) == sum(bool(block.reason or block.file) for block in read_blocks(page))
