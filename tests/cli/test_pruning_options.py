"""The options `--pruning.*`, which add or change the PruningCallback of a config."""

import pytest
import yaml

from lightning_prune import PruningCallback
from lightning_prune.callbacks.namespace import PACKAGES
from tests.cli.test_cli import CONFIG, MODULE

BARE = CONFIG.partition("  callbacks:")[0] + "model: toy.Model\ndata: toy.Data\n"
MONITOR = BARE.replace("model:", "  callbacks: lightning_prune.SparsityMonitor\nmodel:", 1)
RECIPE = "sparsity: {net: 0.8}\nschedule: {class_path: OneShotSchedule, init_args: {end: 0.2}}\n"


@pytest.fixture
def folder(project):
    path = project("toy", MODULE, CONFIG)
    (path / "bare.yaml").write_text(BARE)
    (path / "monitor.yaml").write_text(MONITOR)
    (path / "pruning.yaml").write_text(RECIPE)
    (path / "group.yaml").write_text(yaml.safe_dump({"pruning": yaml.safe_load(RECIPE)}))
    whole = {"subcommand": "fit", "fit": yaml.safe_load(BARE) | {"pruning": {"sparsity": 0.75}}}
    (path / "whole.yaml").write_text(yaml.safe_dump(whole))
    return path


@pytest.fixture
def callbacks(folder, prune_cli, capsys):
    """Return the callbacks of the config that a command line means, by class, in their order."""

    def read(*arguments):
        with pytest.raises(SystemExit) as end:
            prune_cli("fit", "--config", *arguments, "--print_config")
        assert end.value.code == 0
        config = yaml.safe_load(capsys.readouterr().out)
        assert "pruning" not in config
        listed = config["trainer"]["callbacks"] or []
        return {each["class_path"].split(".")[1]: each["init_args"] for each in listed}

    return read


@pytest.fixture
def error(folder, prune_cli, capsys):
    """Return the line with which a command line is refused."""

    def read(*arguments):
        with pytest.raises(SystemExit) as end:
            prune_cli("fit", "--config", *arguments)
        assert end.value.code == 2
        return capsys.readouterr().err

    return read


def test_without_the_options_there_is_no_callback(callbacks):
    assert callbacks("bare.yaml") == {}


def test_the_options_alone_add_a_callback(callbacks):
    found = callbacks("bare.yaml", "--pruning.sparsity", "0.8", "--pruning.schedule=CosineSchedule")
    assert list(found) == ["PruningCallback"]
    assert found["PruningCallback"]["sparsity"] == 0.8
    assert found["PruningCallback"]["schedule"]["class_path"] == "lightning_prune.CosineSchedule"
    assert found["PruningCallback"]["criterion"] is None


def test_an_added_callback_comes_before_the_others(callbacks):
    found = callbacks("monitor.yaml", "--pruning.sparsity", "0.8")
    assert list(found) == ["PruningCallback", "SparsityMonitor"]


def test_beside_a_callback_of_the_config_the_options_change_that_callback(callbacks):
    before = callbacks("recipe.yaml")
    after = callbacks("recipe.yaml", "--pruning.sparsity", "0.8", "--pruning.schedule.end", "0.6")
    assert list(after) == ["PruningCallback", "SparsityMonitor"]
    assert after["PruningCallback"].pop("sparsity") == 0.8
    assert after["PruningCallback"]["schedule"]["init_args"].pop("end") == 0.6
    del (
        before["PruningCallback"]["sparsity"],
        before["PruningCallback"]["schedule"]["init_args"]["end"],
    )
    assert after == before


def test_the_place_of_an_option_on_the_line_does_not_matter(callbacks):
    assert callbacks("recipe.yaml", "--pruning.most", "0.8") == callbacks(
        "bare.yaml", "--pruning.most", "0.8", "--config", "recipe.yaml"
    )


@pytest.mark.parametrize("given", [("--pruning", "pruning.yaml"), ("--config", "group.yaml")])
def test_a_file_of_answers_changes_what_it_names(callbacks, given):
    changed = callbacks("recipe.yaml", *given, "--pruning.keep_zeros", "true")["PruningCallback"]
    assert changed["sparsity"] == {"net": 0.8}
    assert changed["schedule"]["class_path"] == "lightning_prune.OneShotSchedule"
    assert changed["allocation"]["class_path"] == "lightning_prune.GlobalAllocation"
    assert changed["keep_zeros"] is True


def test_the_saved_config_holds_the_callback_and_is_read_again(
    folder, prune_cli, callbacks, capsys
):
    prune_cli("fit", "--config", "bare.yaml", "--pruning.sparsity", "0.75")
    assert "0.7500" in capsys.readouterr().out
    (path,) = folder.glob("logs/**/config.yaml")
    assert "pruning" not in yaml.safe_load(path.read_text())
    assert callbacks(path)["PruningCallback"]["sparsity"] == 0.75


def test_a_config_that_names_the_subcommand_has_the_key_too(folder, prune_cli, monkeypatch, capsys):
    trained = []
    monkeypatch.setattr(PACKAGES[0].Trainer, "fit", lambda trainer, **_: trained.append(trainer))
    prune_cli("--config", "whole.yaml")
    (pruning,) = [c for c in trained[0].callbacks if isinstance(c, PruningCallback)]
    assert pruning.recipe.targets == {"*": 0.75}
    wrong = (folder / "whole.yaml").read_text().replace("sparsity: 0.75", "sparsty: 0.75")
    (folder / "whole.yaml").write_text(wrong)
    with pytest.raises(SystemExit) as end:
        prune_cli("--config", "whole.yaml")
    assert end.value.code == 2
    assert "did you mean 'sparsity'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--pruning.sparsty", "0.8"], "unknown argument 'sparsty' of lightning_prune.Pruning"),
        (["--pruning.schedule", "CosinSchedule"], "did you mean 'CosineSchedule'?"),
        (["--pruning", "no.yaml"], "need a YAML file for --pruning, got --pruning no.yaml"),
        (["--pruning", "0.8"], "need a YAML file for --pruning, got --pruning 0.8; write --pru"),
        (["--pruning.sparsity", "high"], "got sparsity='high'"),
        (["--pruning.sparsity", "1.5"], "need 0 <= sparsity <= 1, got sparsity=1.5"),
        (["--pruning.schedule.end", "0.05"], "need end >= begin=0.1, got end=0.05"),
    ],
)
def test_a_wrong_answer_is_explained(error, given, message):
    assert message in error("recipe.yaml", *given)


def test_an_option_of_the_last_callback_is_refused(error):
    said = error("recipe.yaml", "--trainer.callbacks.sparsity", "0.8")
    assert "got --trainer.callbacks.sparsity, which would change the last callback" in said
    assert "write --pruning.sparsity" in said


def test_an_option_after_an_added_callback_reaches_that_callback(callbacks):
    added = "--trainer.callbacks+=PruningCallback"
    found = callbacks("monitor.yaml", added, "--trainer.callbacks.sparsity", "0.8")
    assert found["PruningCallback"]["sparsity"] == 0.8


def test_the_help_of_the_options_names_every_argument(folder, prune_cli, capsys):
    with pytest.raises(SystemExit) as end:
        prune_cli("fit", "--pruning.help")
    assert end.value.code == 0
    assert "--pruning.straight_through" in capsys.readouterr().out
