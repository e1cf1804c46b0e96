"""Which values fit an annotation, and what an error advises for those that do not."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, NewType, Optional, Protocol, TypedDict, TypeVar

import numpy as np
import pytest
import torch
from jsonargparse.typing import PositiveInt
from torch import Tensor, nn

from lightning_prune.arguments.kinds import conform


class Color(Enum):
    RED = "red"


class Readable(Protocol):
    def read(self) -> str: ...


class Sizes(TypedDict):
    width: int


Layer = TypeVar("Layer", bound=nn.Module)
LINEAR = nn.Linear(2, 2)


@pytest.mark.parametrize(
    ("value", "hint", "plain"),
    [
        (3, float, 3),
        (np.float32(0.5), float, 0.5),
        (np.int64(3), float, 3),
        (Fraction(1, 4), float, 0.25),
        (math.inf, float, math.inf),
        (np.int64(3), int, 3),
        (np.str_("step"), str, "step"),
        (np.str_("step"), Literal["step", "epoch"], "step"),
        (None, int | None, None),
        (None, Optional[int], None),  # noqa: UP045
        ([1, 2.5], tuple[float, ...], (1, 2.5)),
        (range(2), tuple[int, ...], (0, 1)),
        ([4, np.int64(1)], tuple[int, int], (4, 1)),
        ((4, "rows"), tuple[int, str], (4, "rows")),
        (("a", "b"), list[str], ["a", "b"]),
        ({"a": None, "b": np.float64(0.5)}, Mapping[str, float | None], {"a": None, "b": 0.5}),
        (Color.RED, Color, Color.RED),
        (Path("a"), str | Path, Path("a")),
        (LINEAR, Layer, LINEAR),
        (len, Callable[[str], int], len),
        (torch.float16, torch.dtype | None, torch.float16),
    ],
)
def test_a_value_that_fits_becomes_plain(value, hint, plain):
    found = conform("x", value, hint)
    assert found == plain
    assert type(found) is type(plain)


@pytest.mark.parametrize(
    "hint",
    [Any, Readable, Sizes, NewType("Name", str), TypeVar("T"), PositiveInt, "Undefined", object],
)
def test_an_annotation_that_cannot_be_checked_lets_every_value_pass(hint):
    value = object()
    assert conform("x", value, hint) is value


def test_a_compiled_module_has_the_kind_of_the_module_inside():
    compiled = torch.compile(LINEAR, backend="eager")
    assert conform("module", compiled, nn.Linear) is compiled
    with pytest.raises(TypeError, match="need module as a Conv2d, got module=OptimizedModule"):
        conform("module", compiled, nn.Conv2d)


def test_what_can_be_read_only_once_is_not_read():
    batches = iter([torch.ones(2)])
    assert conform("batches", batches, Iterable[Tensor]) is batches
    assert len(list(batches)) == 1


@pytest.mark.parametrize(
    ("value", "hint", "message"),
    [
        (True, float, "need x as a number, got x=True"),
        (True, int | None, "need x as a whole number or None, got x=True"),
        (np.bool_(True), bool, f"need x as True or False, got x={np.True_!r}; write x=True"),
        (1, bool, "need x as True or False, got x=1; write x=True"),
        (2, bool, "need x as True or False, got x=2"),
        (2.0, int, "need x as a whole number, got x=2.0; write x=2"),
        (math.nan, int, "need x as a whole number, got x=nan"),
        ("0.5", float, "need x as a number, got x='0.5'; write x=0.5"),
        ("null", float | None, "need x as a number or None, got x='null'; write x=None"),
        (
            "[1, 2]",
            tuple[int, int],
            "need x as a tuple of 2 whole numbers, got x='[1, 2]'; write x",
        ),
        ((1, 2, 3), tuple[int, int], "need x as a tuple of 2 whole numbers, got x=(1, 2, 3)"),
        ((1, 2), tuple[int, str], "need x[1] as a string, got x[1]=2"),
        (3, tuple[int, str], "need x as a tuple of a whole number and a string, got x=3"),
        (0.5, tuple[float, ...], "need x as a tuple of numbers, got x=0.5; write x=(0.5,)"),
        (np.array([0.5]), tuple[float, ...], "got x=array([0.5]); write x=(0.5,)"),
        (torch.ones(1, device="meta"), float, "got x=tensor(..., device='meta', size=(1,))"),
        (torch.tensor(0.5), float, "need x as a number, got x=tensor(0.5000); write x=0.5"),
        ("net", list[str], "need x as a list of strings, got x='net'; write x=['net']"),
        ([1, "b"], list[str], "need x[0] as a string, got x[0]=1"),
        ({"a": 0.5}, Sequence[str], "need x as a sequence of strings, got x={'a': 0.5}"),
        ({1: 0.5}, dict[str, float], "got x={1: 0.5}; write x={'1': 0.5}"),
        ({"a": "b"}, dict[str, float], "need x['a'] as a number, got x['a']='b'"),
        (3, Callable[[int], int], "need x as a function, got x=3"),
        (nn.Linear, nn.Module, "need x as a Module, got the class Linear"),
        (3, Layer, "need x as a Module, got x=3"),
        ("f16", torch.dtype | None, "need x as a dtype or None, got x='f16'"),
        ("red", Color, "need x as a Color, got x='red'"),
        (3, Literal["a", "b"], "need x as 'a' or 'b', got x=3"),
        ("{[]: 1}", int, "need x as a whole number, got x='{[]: 1}'"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_with_a_remedy(value, hint, message):
    with pytest.raises(TypeError) as refusal:
        conform("x", value, hint)
    assert message in str(refusal.value)
    assert str(refusal.value).endswith(message) or message[-1] not in "')]}"


def test_another_word_is_a_wrong_value_and_not_a_wrong_type():
    with pytest.raises(ValueError, match=r"^need x as 'step' or .*, got x='Steps'; write x='step'"):
        conform("x", "Steps", Literal["step", "epoch"])


def test_a_long_value_is_cut():
    with pytest.raises(TypeError) as refusal:
        conform("x", nn.Sequential(*map(nn.Linear, range(1, 50), range(1, 50))), int)
    assert len(str(refusal.value)) < 150
    assert "\n" not in str(refusal.value)
