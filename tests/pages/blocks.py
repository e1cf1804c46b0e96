"""The blocks of code of a Markdown page, and the notes that stand before them.

A note is a comment, which no reader of the rendered page sees:

    <!-- not run: needs a GPU -->    the next block is not run, for this reason
    <!-- file: my.yaml -->           the next block is the content of this file
    <!-- in a clone -->              the commands of the page need the folders of the repository
"""

import re
from dataclasses import dataclass
from pathlib import Path

from tests.commands import ROOT

PAGES = (
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
)
COMMANDS = "bash"
SHELLS = ("sh", "shell", "console", "zsh")  # other names, which no page uses
MINE = ROOT / "tests" / "pages" / "mine"  # the folder of a package that pages name, my_package
IN_A_CLONE = "<!-- in a clone -->"
_BLOCK = re.compile(
    r"(?:^ *<!-- (?P<note>not run|file): (?P<text>[^\n]+?) -->\n\n?)?"
    r"^(?P<indent> *)```(?P<language>\w+)[^\n]*\n(?P<code>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True, kw_only=True)
class Block:
    """A block of code.

    Args:
        place: The page and the line.
        language: Of the code.
        code: Without the indentation of the block.
        reason: Why the block is not run; empty if it is.
        file: The file that has this content; empty if none has.
    """

    place: str
    language: str
    code: str
    reason: str
    file: str


def read_blocks(page: Path) -> list[Block]:
    """Return the blocks of a page, in order."""
    text = page.read_text()
    return [
        Block(
            place=f"{name_page(page)}:{text.count(chr(10), 0, found.start('language')) + 1}",
            language=found["language"],
            code=re.sub(f"^{found['indent']}", "", found["code"], flags=re.MULTILINE),
            reason=found["text"] if found["note"] == "not run" else "",
            file=found["text"] if found["note"] == "file" else "",
        )
        for found in _BLOCK.finditer(text)
    ]


def name_page(page: Path) -> str:
    """Return the name of a page in the repository."""
    return page.relative_to(ROOT).as_posix()
