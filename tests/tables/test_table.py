import csv
import io
import re

import pytest
from rich.console import Console
from rich.text import Text

from lightning_prune.tables.sheet import Sheet
from lightning_prune.tables.table import Column, Table
from tests.notebook_tables import Page


def table_of(*cells, **arguments):
    columns = (Column(heading="layer", align="left"), Column(heading="zeros"))
    return Table(columns=columns, rows=cells, **arguments)


def printed(table, width=80):
    console = Console(width=width, file=io.StringIO())
    console.print(table)
    return console.file.getvalue()


def test_all_three_forms_hold_the_same_cells():
    table = table_of(("encoder", "1,024"), ("all", "2,048"), has_total=True)
    for text in (printed(table), table.to_markdown()):
        lines = [line.replace("┃", "|").replace("│", "|") for line in text.splitlines()]
        rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
        assert [row for row in rows if row and row[0].isalpha()] == [
            ["layer", "zeros"],
            ["encoder", "1,024"],
            ["all", "2,048"],
        ]
    assert list(csv.reader(io.StringIO(table.to_csv()))) == [
        ["layer", "zeros"],
        ["encoder", "1,024"],
        ["all", "2,048"],
    ]


def test_only_a_terminal_shows_title_notes_and_the_rule_above_the_total():
    table = table_of(("a", 1), ("all", 1), title="Zeros", has_total=True, notes=("dense: b",))
    text = printed(table)
    assert text.startswith("Zeros")
    assert "├" in text
    assert text.rstrip().endswith("dense: b")
    assert len(table.to_markdown().splitlines()) == 4
    assert "Zeros" not in table.to_markdown()


def test_markdown_aligns_numbers_right_and_text_left():
    _, rule, _ = table_of(("encoder", 12)).to_markdown().splitlines()
    left, right = rule.strip("|").split("|")
    assert set(left) == {"-"}
    assert right.endswith(":")
    assert set(right[:-1]) == {"-"}


@pytest.mark.parametrize("columns", ["20", "80"])
def test_markdown_wraps_no_row_however_narrow_the_terminal(columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    name = "decoder.layers." * 200 + "weight"
    *_, row = table_of((name, 12)).to_markdown().splitlines()
    assert [cell.strip() for cell in row.split("|")[1:-1]] == [name, "12"]


@pytest.mark.parametrize("variable", ["FORCE_COLOR", "TTY_COMPATIBLE"])
def test_markdown_is_plain_text_where_colors_are_forced(variable, monkeypatch):
    monkeypatch.setenv(variable, "1")
    table = table_of((Text("a", style="bold red"), 1), ("all", 1), has_total=True)
    assert "\x1b" not in table.to_markdown()


def test_a_bar_or_a_line_end_in_a_name_ends_no_cell_of_markdown():
    *_, row = table_of(("left|right\nbelow", 1)).to_markdown().splitlines()
    assert row.startswith(r"| left\|right below |")


def test_brackets_in_a_name_are_no_markup():
    table = table_of(("experts[bold].weight", 1), title="zeros of [red]")
    assert "experts[bold].weight" in printed(table)
    assert "zeros of [red]" in printed(table)
    assert "experts[bold].weight" in table.to_markdown()


def test_a_narrow_terminal_folds_a_name_and_drops_none_of_it():
    name = "encoder.layers.weight"
    rows = [line.split("│") for line in printed(table_of((name, 1)), width=20).splitlines()]
    assert "".join(cells[1].strip() for cells in rows if len(cells) > 1) == name


def test_html_holds_the_same_cells_and_the_title_and_the_notes():
    table = table_of(("encoder", 12), ("all", 12), has_total=True, title="Zeros", notes=("kept",))
    read = Page(table.to_html())
    assert read.texts == ["Zeros", "layer", "zeros", "encoder", "12", "all", "12", "kept"]
    assert read.tags.count("tr") == 3
    assert read.tags.count("th") == 2


def test_html_shows_names_and_titles_letter_by_letter():
    name = '<script>alert("&amp;")</script>'
    table = table_of((name, 1), title=name, notes=(name,))
    read = Page(table.to_html())
    assert read.texts.count(name) == 3
    assert "script" not in read.tags
    assert Page(Sheet([Text(name)]).to_html()).texts == [name]


def test_html_aligns_numbers_right_and_keeps_styles():
    table = table_of((Text("a", style="dim"), 1), (Text("all", style="dim"), 1), has_total=True)
    cell, number, total, _ = re.findall("<td[^>]*>", table.to_html())
    assert "text-align: left" in cell
    assert "color: #7f7f7f" in cell  # neither too dark nor too bright on any page
    assert "text-align: right" in number
    assert "font-weight: bold" in total


def test_html_of_a_long_table_scrolls():
    short, long = (table_of(*[("a", 1)] * rows).to_html() for rows in (20, 21))
    assert "overflow" not in short
    assert "overflow: auto" in long
