"""Every kind of value for every argument: refused by name, or stored in the right type."""

import dataclasses
import inspect
import math
import re
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_prune import (
    Allocation,
    Budget,
    CosineSchedule,
    Criterion,
    DistillationCallback,
    GrowingPenalty,
    MagnitudeCriterion,
    NMPattern,
    Pattern,
    Phases,
    Pruner,
    PruningCallback,
    Recipe,
    Regrow,
    Repair,
    Rewind,
    Schedule,
    SparsityCheckpoint,
    SparsityMonitor,
    StraightThrough,
    Tolerance,
    UniformAllocation,
)
from tests.conftest import answers

QUESTIONS = Schedule, Allocation, Criterion, Pattern
RECORDS = [*(kind for question in QUESTIONS for kind in answers(question)), Recipe, Regrow]
RECORDS += [GrowingPenalty, Phases, Repair, Rewind, StraightThrough]
CALLBACKS = [SparsityMonitor, SparsityCheckpoint, DistillationCallback]
ENGINES = [Pruner, PruningCallback]

NUMBER, WHOLE, WORD, FLAG = (int, float), (int,), (str,), (bool,)
KINDS = {
    **dict.fromkeys(("begin", "end", "power", "initial", "rate", "scale", "share"), NUMBER),
    **dict.fromkeys(("every", "weight", "temperature", "damping", "largest", "ahead"), NUMBER),
    **dict.fromkeys(("n", "m", "round_to", "seed", "to", "histograms_every", "class_dim"), WHOLE),
    "rounds": WHOLE,
    **dict.fromkeys(
        ("unit", "scope", "what", "optimizer", "quality", "output", "on_revival", "table"), WORD
    ),
    **dict.fromkeys(("per_row", "keep_zeros", "report"), FLAG),
    **dict.fromkeys(("milestones", "fractions", "shape"), (tuple,)),
    **dict.fromkeys(("criterion", "first"), (Criterion,)),
    "schedule": (Schedule,),
    "allocation": (Allocation,),
    "pattern": (Pattern,),
    "regrow": (Regrow,),
    "penalty": (GrowingPenalty,),
    "rewind": (Rewind,),
    "straight_through": (StraightThrough,),
    "gradient_scale": NUMBER,
    "phases": (Phases,),
    **dict.fromkeys(("isomorphic", "budget_met"), FLAG),
    "most": NUMBER,
    "per": WORD,
    "budget": (Budget,),
    "tolerance": (Tolerance,),
    "sparsity": (int, float, dict),
    "features": (dict,),
    "teacher": (str, Path),
}
"""The types that an answer can be stored as, None apart."""

VALUES = {
    "None": None,
    "True": True,
    "False": False,
    "negative whole number": -1,
    "negative number": -0.5,
    "number": 1.5,
    "number that is whole": 2.0,
    "NaN": math.nan,
    "infinity": math.inf,
    "huge whole number": 10**400,
    "empty text": "",
    "text of a number": "0.5",
    "text of a whole number": "1",
    "text of a truth": "false",
    "text of a schedule": "cosine",
    "text of a pattern": "2:4",
    "word that is misspelled": "Weights",
    "bytes": b"step",
    "empty list": [],
    "list": [0.5],
    "list with text": [0.5, "1"],
    "tuple": (1, 2, 3),
    "tuple of numbers": (1.5, 2.5),
    "set": {0.5},
    "range": range(2),
    "generator": (number for number in (1, 2)),
    "empty mapping": {},
    "mapping of a number": {1: 0.5},
    "nested mapping": {"a": {"b": 0.5}},
    "mapping to text": {"a": "0.5"},
    "mapping to a truth": {"a": True},
    "mapping to NaN": {"a": math.nan},
    "float32 of NumPy": np.float32(0.5),
    "float64 of NumPy": np.float64(0.5),
    "whole number of NumPy": np.int64(1),
    "truth of NumPy": np.bool_(True),
    "text of NumPy": np.str_("step"),
    "array": np.array([0.5, 0.7]),
    "array without dimensions": np.array(0.5),
    "tensor without dimensions": torch.tensor(0.5),
    "tensor of a whole number": torch.tensor(1),
    "tensor": torch.ones(2),
    "complex number": 1j,
    "fraction": Fraction(1, 2),
    "decimal": Decimal("0.5"),
    "path": Path("x"),
    "object": object(),
    "function": lambda t: 0.5,
    "module": torch.nn.Linear(2, 2),
    "type": int,
    "class of a schedule": CosineSchedule,
    "class of a pattern": NMPattern,
    "class of regrowth": Regrow,
    "schedule": CosineSchedule(),
    "pattern": NMPattern(),
    "criterion": MagnitudeCriterion(),
    "allocation": UniformAllocation(),
    "regrowth": Regrow(),
    "recipe": Recipe(),
}


def arguments():
    """Return each constructor with each argument that this package checks."""
    found = [(kind, field.name) for kind in RECORDS for field in dataclasses.fields(kind)]
    for kind in [*CALLBACKS, *ENGINES]:
        found += [(kind, name) for name in inspect.signature(kind).parameters]
    return [each for each in found if each[1] not in ("kwargs", "example")]


def make(kind, name, value):
    """Return the object, and the text of the error: one of them is None."""
    beside = {"sparsity": 0.0} if name == "most" else {}  # no sparsity may be above
    try:
        return kind(**{name: value}, **beside), None
    except (TypeError, ValueError) as error:
        return None, str(error)


def describe(value):
    """Return the texts that can stand for a value in an error: also an item can be wrong."""
    if isinstance(value, type):
        return [value.__name__]
    items = value.values() if isinstance(value, dict) else ()
    items = [*value, tuple(value)] if isinstance(value, list | tuple | range) else items
    texts = [repr(value), str(value), *map(repr, items)]
    return [" ".join(text.split())[:40] for text in texts if text]


def find_default(kind, name):
    if kind in ENGINES and name not in ("sparsity", "keep_zeros"):
        return None  # for the default of the recipe
    return inspect.signature(kind).parameters[name].default


@pytest.mark.parametrize(("kind", "name"), arguments())
def test_a_wrong_value_is_refused_by_name_and_a_right_value_is_plain(kind, name):
    refused = 0
    for label, value in VALUES.items():
        made, error = make(kind, name, value)
        if made is None:
            assert re.match(rf"need .*\b{name}\b", error), (label, error)
            assert any(text in error for text in describe(value)), (label, error)
            refused += 1
        elif value is None:
            assert name in ("first", "histograms_every") or find_default(kind, name) is None
        elif stored := getattr(made.recipe if kind in ENGINES else made, name):
            assert isinstance(stored, KINDS[name]), label
            assert not isinstance(stored, bool) or KINDS[name] is FLAG, label
            assert stored is value or type(stored).__module__ == "builtins", label
    assert refused > len(VALUES) / 2


def test_the_table_covers_every_argument():
    assert {name for _, name in arguments()} == set(KINDS)
    assert len(arguments()) * len(VALUES) > 4000
