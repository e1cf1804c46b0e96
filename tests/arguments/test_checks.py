"""Fields of records and arguments of functions are checked where the user writes them."""

from __future__ import annotations

import copy
import pickle
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel
from torch import nn

import lightning_prune
from lightning_prune import (
    Criterion,
    MagnitudeCriterion,
    MultiStepSchedule,
    OneShotSchedule,
    PolynomialSchedule,
    Pruner,
    PruningCallback,
    Ramp,
    Recipe,
    Sensitivity,
    Sparsity,
)

if TYPE_CHECKING:
    from decimal import Decimal


WEIGHTS = MagnitudeCriterion()


@dataclass(frozen=True, kw_only=True)
class Slope(Ramp):
    height: float = 1.0
    exact: Decimal | None = None
    sizes: list[int] = field(default_factory=list)
    seed: int = None  # type: ignore[assignment]

    def climb(self, p):
        return p


@dataclass(frozen=True, kw_only=True)
class Mixed(Criterion):
    inner: Criterion = WEIGHTS
    share: float = 0.5

    def __post_init__(self):
        super().__post_init__()
        if self.share > 1:
            raise ValueError(f"need share <= 1, got share={self.share}")

    def score(self, tensor, state):
        return self.inner.score(tensor, state)


def test_fields_of_ones_own_answers_are_checked_before_ones_own_checks():
    assert Mixed(share=np.float32(0.25)).share == 0.25
    with pytest.raises(TypeError, match="need share as a number, got share='half'"):
        Mixed(share="half")
    with pytest.raises(TypeError, match=r"got inner='magnitude'; write inner=Magnitude"):
        Mixed(inner="magnitude")
    with pytest.raises(ValueError, match="need share <= 1, got share=2"):
        Mixed(share=2)


def test_ones_own_answers_are_among_the_candidates():
    with pytest.raises(
        TypeError, match=r"GradientCriterion, .*Mixed.*, got criterion='mix'; write"
    ):
        Recipe(criterion="mix")


def test_an_annotation_that_cannot_be_resolved_is_not_checked():
    assert Slope(exact="anything", height=0.5, end=0.75).exact == "anything"
    with pytest.raises(TypeError, match="need end as a number, got end='late'"):
        Slope(exact=None, end="late")


def test_the_default_of_a_field_is_always_accepted():
    assert Slope().seed is None
    assert Slope().sizes == []


@pytest.mark.parametrize(
    "answer",
    [
        MultiStepSchedule(milestones=[1, np.int64(2)], unit="epoch"),
        PolynomialSchedule(end=np.float32(0.75)),
        Recipe(sparsity={"a": np.float64(0.5), "b": None}),
    ],
    ids=lambda answer: type(answer).__name__,
)
def test_a_checked_answer_is_copied_pickled_and_varied(answer):
    for same in (copy.deepcopy(answer), pickle.loads(pickle.dumps(answer)), replace(answer)):
        assert same == answer
        assert "np." not in repr(same)
    with pytest.raises(TypeError, match=r"^need "):
        replace(answer, **{next(iter(vars(answer))): "wrong"})


def test_the_recipe_of_a_sweep_with_numpy_is_written_as_plain_yaml():
    recipes = [Recipe(sparsity={"a": s}) for s in np.linspace(0.5, 0.75, 2, dtype=np.float32)]
    assert [recipe.to_yaml().splitlines()[1] for recipe in recipes] == ["  a: 0.5", "  a: 0.75"]


def test_a_list_and_a_tuple_of_milestones_are_the_same_schedule():
    assert MultiStepSchedule(milestones=[0.2, 0.4]) == MultiStepSchedule(milestones=(0.2, 0.4))
    hash(MultiStepSchedule(milestones=range(1, 4), unit="epoch"))


NET = nn.Linear(4, 4)
OPTIMIZER = torch.optim.SGD(NET.parameters(), lr=0.1)
MODEL = BoringModel()


@pytest.fixture(scope="module")
def trainer():
    options = {"logger": False, "accelerator": "cpu", "enable_checkpointing": False}
    return Trainer(callbacks=[PruningCallback()], enable_progress_bar=False, **options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": nn.Linear}, "need model as a Module, got the class Linear"),
        (
            {"optimizers": None},
            "need optimizers as an Optimizer or a sequence of Optimizers, got o",
        ),
        ({"optimizers": [OPTIMIZER, 3]}, r"need optimizers\[1\] as an Optimizer, got .*=3"),
        ({"steps": "20"}, "need steps as a whole number or None, got steps='20'; write steps=20"),
        ({"steps": 2.5}, "need steps as a whole number or None, got steps=2.5"),
        ({"steps": 0}, "need steps >= 1, got steps=0"),
        ({"steps": 9, "steps_per_epoch": -3}, "need steps_per_epoch >= 1, got steps_per_epoch=-3"),
        ({"clocks": 3}, "need clocks as a function or None, got clocks=3"),
    ],
)
def test_attach_refuses_a_wrong_argument(arguments, message):
    pruner = Pruner(schedule=OneShotSchedule(end=1.0))
    with pytest.raises((TypeError, ValueError), match=message):
        pruner.attach(**{"model": NET, "optimizers": OPTIMIZER, "steps": 9} | arguments)
    pruner.attach(NET, OPTIMIZER, steps=9)
    pruner.detach(completed=False)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("prune_once", {"trainer": None, "model": MODEL}, "need trainer as a Trainer, got t"),
        ("prune_once", {"model": NET}, "need model as a LightningModule, got model=Linear"),
        ("prune_once", {"model": MODEL, "batches": "8"}, "need batches as .*; write batches=8"),
        ("prune_once", {"model": MODEL, "statistics": 2.5}, "need statistics as a whole number"),
        ("reestimate_statistics", {"model": MODEL, "statistics": None}, "need statistics as a wh"),
        (
            "measure_sensitivity",
            {"model": MODEL, "monitor": 3, "mode": "max"},
            "need monitor as a s",
        ),
        ("report", {"module": "net"}, "need module as a Module, got module='net'"),
        ("report", {"module": NET, "blocks": 7.5}, "need blocks as a whole number, got blocks=7.5"),
        ("shrink", {"module": None}, "need module as a Module, got module=None"),
        ("shrink", {"module": NET, "statistics": 16}, "need statistics as an iterable of val"),
        ("shrunk_state", {"module": nn.Linear}, "need module as a Module, got the class Linear"),
        ("adopt", {"module": NET, "state": "x.ckpt"}, "need state as a mapping of strings to val"),
        (
            "export_onnx",
            {"module": NET, "path": None},
            "need path as a string or a path, got path=",
        ),
        (
            "export_onnx",
            {"module": NET, "path": "x", "precision": 16},
            "need precision as 'fp32' or",
        ),
        (
            "export_onnx",
            {"module": NET, "path": "x", "dynamic_shapes": {"ids": 1}},
            r"need dynamic_shapes\[.ids.\] as a sequence of wh",
        ),
        (
            "export_onnx",
            {"module": NET, "path": "x", "metadata": {"step": 3}},
            r"need metadata\[.step.\] as a string, got",
        ),
        (
            "export_executorch",
            {"module": NET, "path": "x", "tolerance": "small"},
            "need tolerance as a number or None",
        ),
        (
            "quantize_onnx",
            {"path": "a", "output": "b", "batches": 3},
            "need batches as an iterable",
        ),
        ("save_sparse", {"weights": 3, "path": "x"}, "need weights as a Module or a mapping of"),
        (
            "save_sparse",
            {"weights": NET, "path": "x", "dtype": "f16"},
            "need dtype as a dtype or N",
        ),
        ("load_sparse", {"path": 3}, "need path as a string or a path, got path=3"),
        ("file_size", {"path": None}, "need path as a string or a path, got path=None"),
        ("sparsity", {"weights": {"a": torch.ones(2)}}, "need weights as a Module, a Tensor or an"),
        ("sparsity", {"weights": [1.0]}, r"need weights\[0\] as a Tensor, got weights\[0\]=1.0"),
    ],
)
def test_a_function_refuses_a_wrong_argument_before_any_work(name, arguments, message, trainer):
    trained = "prune_once", "measure_sensitivity", "reestimate_statistics"
    own = {"trainer": trainer} if name in trained else {}
    arguments = own | arguments
    function = getattr(lightning_prune, name)
    with pytest.raises(TypeError, match=message):
        function(**arguments)
    first = arguments.pop(next(iter(arguments)))
    with pytest.raises(TypeError, match=message):
        function(first, **arguments)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Pruner.from_recipe({}), "need recipe as a Recipe, got recipe={}"),
        (
            lambda: PruningCallback.from_recipe(Recipe),
            "got the class Recipe; write recipe=Recipe()",
        ),
        (lambda: Sparsity().update(3), "need weights as a Module, a Tensor or an iterable of Tens"),
        (
            lambda: Sensitivity(monitor="a", mode="max", dense=1.0, metrics={}).targets("1"),
            "need tolerance as a number, got tolerance='1'; write tolerance=1",
        ),
    ],
)
def test_a_method_refuses_a_wrong_argument(call, message):
    with pytest.raises(TypeError) as refusal:
        call()
    assert message in str(refusal.value)


def test_a_wrong_name_of_an_argument_is_pythons_own_error():
    with pytest.raises(TypeError, match=r"report.. got an unexpected keyword argument 'blcks'"):
        lightning_prune.report(NET, blcks=3)
    with pytest.raises(TypeError, match="positional argument"):
        lightning_prune.file_size("a", "b")


def test_the_sparsity_of_one_tensor_is_that_of_its_entries():
    assert lightning_prune.sparsity(torch.tensor(0.0)) == 1.0
    assert lightning_prune.sparsity(torch.tensor([[0.0, 1.0], [0.0, 0.0]])) == 0.75
