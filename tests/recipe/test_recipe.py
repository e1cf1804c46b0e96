"""A recipe is one frozen record of all answers: it checks itself and prints itself as YAML."""

from dataclasses import FrozenInstanceError, dataclass, replace

import pytest
import yaml
from jsonargparse import ArgumentParser

from lightning_prune import (
    Allocation,
    BlockPattern,
    ChannelPattern,
    Criterion,
    ERKAllocation,
    LAMPAllocation,
    MagnitudeCriterion,
    MovementCriterion,
    MultiStepSchedule,
    NMPattern,
    OneShotSchedule,
    Pattern,
    Pruner,
    PruningCallback,
    RandomCriterion,
    Recipe,
    Regrow,
    Rewind,
    Schedule,
    StraightThrough,
    Tolerance,
    UniformAllocation,
    UnstructuredPattern,
)
from tests.conftest import answers

ROUNDS = MultiStepSchedule(milestones=(0.2, 0.4), fractions=(0.5, 1.0))
RECIPES = [
    Recipe(),
    Recipe(sparsity={"*": 0.9, "head": None, "body.*": 0.5}),
    Recipe(straight_through=StraightThrough(every=3), sparsity=0.95),
    Recipe(regrow=Regrow(), schedule=OneShotSchedule(end=0), keep_zeros=True),
    Recipe(regrow=Regrow(first=None, criterion=RandomCriterion(seed=3)), pattern=BlockPattern()),
    Recipe(rewind=Rewind(to=4, what="learning_rate"), schedule=ROUNDS),
    Recipe(tolerance=Tolerance(monitor="val_acc", dense=0.9), sparsity={"*": 0.95, "head": None}),
    Recipe(pattern=NMPattern(n=1, m=4), sparsity=0.8, allocation=UniformAllocation()),
    Recipe(criterion=RandomCriterion(seed=7), allocation=LAMPAllocation()),
    *(Recipe(schedule=kind()) for kind in answers(Schedule)),
    *(Recipe(allocation=kind()) for kind in answers(Allocation)),
    *(Recipe(criterion=kind()) for kind in answers(Criterion)),
    *(Recipe(pattern=kind(), sparsity=0.75) for kind in answers(Pattern)),
]


def parse(text):
    """Return the recipe of a callback whose arguments stand in YAML, as LightningCLI reads it."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(PruningCallback, "callback")
    config = parser.parse_string(yaml.safe_dump({"callback": yaml.safe_load(text)}))
    return parser.instantiate_classes(config).callback.recipe


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_a_recipe_that_is_written_as_yaml_is_read_as_the_same(recipe):
    found = parse(recipe.to_yaml())
    assert found == replace(recipe, sparsity=found.sparsity)
    assert found.targets == recipe.targets


def test_the_yaml_names_users_classes_by_their_own_path():
    text = Recipe(criterion=Mine(power=2)).to_yaml()
    expected = {"class_path": f"{__name__}.Mine", "init_args": {"power": 2}}
    assert yaml.safe_load(text)["criterion"] == expected


@dataclass(frozen=True, kw_only=True)
class Mine(Criterion):
    power: int = 1

    def score(self, tensor, state):
        return tensor.weights.abs() ** self.power


def test_a_recipe_is_a_value_that_no_one_can_change():
    assert Recipe() == Recipe()
    with pytest.raises(FrozenInstanceError):
        Recipe().sparsity = 0.5
    given = {"a": 0.5}
    recipe = Recipe(sparsity=given)
    given["a"] = 0.9
    assert recipe.targets == {"a": 0.5}


def test_varying_the_pattern_varies_the_default_allocation():
    recipe = Recipe(sparsity=0.75)
    assert recipe.chosen_allocation == ERKAllocation()
    assert replace(recipe, pattern=NMPattern()).chosen_allocation == UniformAllocation()
    assert replace(recipe, pattern=ChannelPattern()).chosen_allocation == UniformAllocation()


def test_a_pattern_of_ones_own_chooses_its_own_allocation():
    @dataclass(frozen=True, kw_only=True)
    class Rows(UnstructuredPattern):
        def default_allocation(self):
            return LAMPAllocation()

    assert Recipe(pattern=Rows()).chosen_allocation == LAMPAllocation()


@pytest.mark.parametrize(
    ("name", "answer", "message"),
    [
        (
            *("schedule", "cosine"),
            r"need schedule as a Schedule \(.*CosineSchedule, .*PolynomialSchedule.*\), "
            r"got schedule='cosine'; write schedule=CosineSchedule\(\)$",
        ),
        (
            *("pattern", NMPattern),
            r"need pattern as a Pattern \(.*BlockPattern, .*ChannelPattern, .*NMPattern, .*\), "
            r"got the class NMPattern; write pattern=NMPattern\(\)$",
        ),
        ("pattern", "2:4", r"NMPattern, .*UnstructuredPattern.*\), got pattern='2:4'$"),
        (
            "allocation",
            "",
            "need allocation as an Allocation .*, got allocation=''; write allocati",
        ),
        ("criterion", "taylor", r"got criterion='taylor'; write criterion=TaylorCriterion\(\)$"),
        ("regrow", True, r"need regrow as a Regrow or None, got regrow=True; write regrow=Regrow"),
        ("keep_zeros", "false", "need keep_zeros as True or False, .*; write keep_zeros=False$"),
        ("keep_zeros", None, "need keep_zeros as True or False, got keep_zeros=None$"),
        ("sparsity", [0.9], "need sparsity as a number, a mapping .*, got sparsity=\\[0.9\\]$"),
        ("sparsity", "0.9", "got sparsity='0.9'; write sparsity=0.9$"),
        ("sparsity", {1: 0.5}, "got sparsity={1: 0.5}; write sparsity={'1': 0.5}$"),
        (
            "sparsity",
            {"a": {"b": 0.5}},
            r"sparsity\['a'\] as a number or None, got sparsity\['a'\]={",
        ),
    ],
)
@pytest.mark.parametrize("make", [Recipe, Pruner, PruningCallback])
def test_an_answer_of_another_kind_is_refused_by_name(make, name, answer, message):
    with pytest.raises(TypeError, match=message):
        make(**{name: answer})


@pytest.mark.parametrize(
    ("clash", "message"),
    [
        (
            {"allocation": LAMPAllocation(), "criterion": MovementCriterion()},
            "need scores >= 0 for LAMPAllocation, got criterion=MovementCriterion",
        ),
        (
            {"allocation": ERKAllocation(), "pattern": ChannelPattern()},
            "need a pattern inside single tensors for ERKAllocation, got pattern=ChannelPattern",
        ),
        (
            {"regrow": Regrow(), "pattern": ChannelPattern()},
            "need a pattern inside single tensors for Regrow, got pattern=ChannelPattern",
        ),
        ({"rewind": Rewind()}, "need a schedule with rounds for rewind"),
        (
            {"rewind": Rewind(), "regrow": Regrow(), "schedule": ROUNDS},
            "need either rewind or regrow, got both",
        ),
        (
            {"straight_through": StraightThrough(), "pattern": ChannelPattern()},
            "need a pattern inside single tensors for StraightThrough, got pattern=ChannelPattern",
        ),
        (
            {"straight_through": StraightThrough(), "keep_zeros": True},
            "need either straight_through or keep_zeros, got both",
        ),
        (
            {"straight_through": StraightThrough(), "regrow": Regrow()},
            "need either straight_through or regrow, got both",
        ),
        (
            {"straight_through": StraightThrough(), "rewind": Rewind(), "schedule": ROUNDS},
            "need either straight_through or rewind, got both",
        ),
        (
            {"straight_through": StraightThrough(), "tolerance": Tolerance(monitor="val_acc")},
            "need either straight_through or tolerance, got both",
        ),
        ({"pattern": NMPattern(), "sparsity": 0.3}, r"at least 1 - n/m = 0.5 for 2:4"),
        ({"sparsity": 1.5}, "need 0 <= sparsity <= 1, got sparsity=1.5"),
        ({"sparsity": {}}, "need at least one glob, got sparsity={}"),
    ],
)
def test_answers_that_clash_are_refused_in_the_constructor(clash, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**clash)
    with pytest.raises(ValueError, match=message):
        PruningCallback(**clash)
    with pytest.raises(ValueError, match=message):
        replace(Recipe(sparsity=clash.get("sparsity", 0.9)), **clash)


def test_the_constructors_and_the_recipe_make_the_same_engine():
    recipe = Recipe(sparsity=0.8, keep_zeros=True)
    assert Pruner(sparsity=0.8, keep_zeros=True).recipe == recipe
    assert Pruner.from_recipe(recipe).recipe is recipe
    assert PruningCallback(sparsity=0.8, keep_zeros=True).recipe == recipe
    assert PruningCallback.from_recipe(recipe).recipe is recipe
    assert Pruner().recipe == PruningCallback().recipe == Recipe()
    assert Recipe().criterion == MagnitudeCriterion()


@pytest.mark.parametrize(
    ("base", "old", "new"),
    [
        (Criterion, "signed", "has_signed_scores"),
        (Criterion, "forgets", "resets_at_update"),
        (Allocation, "pooled", "shares_budget"),
        (Pattern, "holds", "is_satisfied"),
    ],
)
def test_the_old_name_of_an_attribute_is_refused_with_the_new_one(base, old, new):
    with pytest.raises(TypeError, match=f"need '{new}' in Mine, got '{old}'; rename it to '{new}'"):
        type("Mine", (base,), {old: True})
