"""Numbers on the pages are those of the results."""

import doctest
import importlib

import pytest

from docs.result_tables import find_strangers
from tests.commands import ROOT

SCRIPTS = sorted(path.stem for path in (ROOT / "docs").glob("*.py"))


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_examples_of_a_script_hold(name):
    assert doctest.testmod(importlib.import_module(f"docs.{name}")).failed == 0


@pytest.mark.parametrize(
    ("line", "strangers"),
    [
        ("| CNN | 98.36 → 98.32 ± 0.10 | 3.2 x |", []),
        ("| CNN | 98.33 → 98.32 ± 0.10 | 2.9 x |", ["98.33", "2.9"]),
        ("ResNet-18 of version 1.2.3 in 1/4 of the time", []),
    ],
)
def test_a_number_that_is_not_among_the_results_is_found(line, strangers):
    assert find_strangers(line, [98.36, 98.32, 0.0981, 3.19]) == strangers
