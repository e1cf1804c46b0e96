"""The config that `--print_config` prints."""

import pytest
import yaml

from tests.cli.test_cli import CONFIG, MODULE


@pytest.fixture
def folder(project):
    return project("toy", MODULE, CONFIG)


@pytest.fixture
def print_config(folder, prune_cli, capsys):
    """Return what --print_config prints for a config."""

    def read(name):
        with pytest.raises(SystemExit) as end:
            prune_cli("fit", "--config", name, "--print_config")
        assert end.value.code == 0
        return capsys.readouterr().out

    return read


def test_print_config_round_trips(print_config, folder):
    printed = print_config("recipe.yaml")
    (folder / "printed.yaml").write_text(printed)
    assert print_config("printed.yaml") == printed
    recipe = yaml.safe_load(printed)["trainer"]["callbacks"][0]["init_args"]
    assert recipe["sparsity"] == {"*": 0.75, "*.bias": None}
    assert recipe["schedule"]["init_args"]["begin"] == 0.1
    assert recipe["pattern"]["class_path"] == "lightning_prune.NMPattern"


def test_print_config_names_the_default_answers(print_config, folder):
    answers = "  callbacks:\n    - class_path: lightning_prune.PruningCallback\n"
    before, rest, after = CONFIG.partition("  callbacks:\n")
    (folder / "recipe.yaml").write_text(f"{before}{answers}model: toy.Model\ndata: toy.Data\n")
    printed = print_config("recipe.yaml")
    assert "schedule: null  # PolynomialSchedule\n" in printed
    assert "criterion: null  # MagnitudeCriterion\n" in printed
    assert "allocation: null  # ERKAllocation\n" in printed
    (folder / "recipe.yaml").write_text(before + rest + after.replace("GlobalAllocation", "null"))
    printed = print_config("recipe.yaml")
    assert "allocation: null  # the pattern chooses\n" in printed
