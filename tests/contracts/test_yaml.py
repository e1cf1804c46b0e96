"""Every answer can be written in YAML, by the path of its class."""

import pytest
from jsonargparse import ArgumentParser

from lightning_prune import Allocation, Criterion, Pattern, PruningCallback, Recipe, Schedule
from tests.conftest import answers_under_contract

QUESTIONS = {
    "schedule": Schedule,
    "allocation": Allocation,
    "pattern": Pattern,
    "criterion": Criterion,
}


@pytest.mark.parametrize(
    ("name", "kind"),
    [(name, kind) for name, base in QUESTIONS.items() for kind in answers_under_contract(base)],
)
def test_an_answer_that_is_written_as_yaml_is_read_as_the_same(name, kind):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(PruningCallback, "callback")
    path = f"{kind.__module__}.{kind.__qualname__}"
    path = f"lightning_prune.{kind.__name__}" if path.startswith("lightning_prune.") else path
    given = {"sparsity": 0.8, name: {"class_path": path}}
    config = parser.parse_object({"callback": given})
    recipe = parser.instantiate_classes(config).callback.recipe
    assert recipe == Recipe(**{"sparsity": 0.8, name: kind()})
    assert f"class_path: {path}\n" in recipe.to_yaml()
