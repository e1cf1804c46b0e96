"""Every answer can be written in YAML, by the path of its class."""

import pytest
import yaml
from jsonargparse import ArgumentParser

from lightning_prune import (
    Allocation,
    Criterion,
    GlobalAllocation,
    Pattern,
    PruningCallback,
    Recipe,
    Schedule,
)
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
    path = f"{kind.__module__}.{kind.__qualname__}"
    path = f"lightning_prune.{kind.__name__}" if path.startswith("lightning_prune.") else path
    given = {"sparsity": 0.8, name: {"class_path": path}}
    recipe = read(given)
    assert recipe == Recipe(**{"sparsity": 0.8, name: kind()})
    assert f"class_path: {path}\n" in recipe.to_yaml()


def read(given):
    """Return the recipe of a callback whose arguments are those of a config."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(PruningCallback, "callback")
    config = parser.parse_object({"callback": given})
    return parser.instantiate_classes(config).callback.recipe


def test_the_costs_and_kinds_of_a_global_allocation_are_written_and_read():
    allocation = GlobalAllocation(per="latency", isomorphic=True)
    written = Recipe(allocation=allocation).to_yaml()
    arguments = "  init_args:\n    per: latency\n    isomorphic: true\n"
    assert f"class_path: lightning_prune.GlobalAllocation\n{arguments}" in written
    assert read({"allocation": yaml.safe_load(written)["allocation"]}).allocation == allocation
