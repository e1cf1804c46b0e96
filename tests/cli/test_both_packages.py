"""The command for modules of `pytorch_lightning`, and of both packages together."""

import pytest

from lightning_prune.callbacks.namespace import PACKAGES
from lightning_prune.cli.chosen_package import choose_package
from tests.cli.test_cli import CONFIG, MODULE

NEW, OLD = "toy_new.Model", "toy_old.Model"


@pytest.fixture
def folder(project):
    function = "def make_model() -> Model:\n    return Model()\n"
    module = MODULE.replace("lightning.pytorch", "pytorch_lightning")
    path = project("toy_old", f"{module}\n\n{function}", "")
    project("toy_new", MODULE, CONFIG.replace("toy.", "toy_old."))
    return path


@pytest.fixture
def main(folder, prune_cli):
    return prune_cli


def test_the_subcommands_work_for_modules_of_pytorch_lightning(main, folder, capsys):
    main("fit", "--config", "recipe.yaml", "--trainer.logger", "TensorBoardLogger")
    assert "0.7500" in capsys.readouterr().out
    (checkpoint,) = folder.glob("**/*.ckpt")
    given = ("--config", "recipe.yaml", "--ckpt_path", checkpoint)
    main("validate", *given)
    assert "val_acc" in capsys.readouterr().out
    main("prune", *given, "--output", "pruned.ckpt")
    main(
        "sensitivity",
        *given,
        "--monitor",
        "val_acc",
        "--mode",
        "max",
        "--plot",
        "false",
        "--sparsities",
        "[0.75]",
    )
    main("fit", *given[:2], "--ckpt_path", "pruned.ckpt", "--model", "toy_old.make_model")
    assert "0.7500" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("option", "value", "remedy"),
    [
        ("--data", "toy_new.Data", "let Data inherit from pytorch_lightning"),
        (
            "--trainer.callbacks+",
            "lightning.pytorch.callbacks.Timer",
            "write pytorch_lightning.callbacks.Timer",
        ),
        (
            "--trainer.logger",
            "lightning.pytorch.loggers.CSVLogger",
            "write pytorch_lightning.loggers.CSVLogger",
        ),
    ],
)
def test_a_class_of_the_other_package_is_an_error_of_a_line_with_the_cure(
    main, capsys, option, value, remedy
):
    with pytest.raises(SystemExit):
        main("fit", "--config", "recipe.yaml", f"{option}={value}")
    assert capsys.readouterr().err.endswith(
        f"error: need classes of pytorch_lightning, as the model is, got {value} of "
        f"lightning.pytorch; {remedy}\n"
    )


@pytest.mark.parametrize(
    ("arguments", "position"),
    [
        (["fit", "--model", OLD], 1),
        (["fit", f"--model={OLD}", "--model.learning_rate", "0.1"], 1),
        (["fit", "--model.class_path", OLD], 1),
        (["fit", "--model", f"{{class_path: {OLD}}}"], 1),
        (["fit", "--model", "toy_old.make_model"], 1),
        (["fit", "--config", "recipe.yaml"], 1),
        (["--config", "whole.yaml", "fit"], 1),
        (["fit", "-c", "mapping.yaml"], 1),
        (["fit", "--model", "model.yaml"], 1),
        (["fit", "--config", "file.yaml"], 1),
        (["fit", "--config", "recipe.yaml", "--model", NEW], 0),
        (["fit", "--config=missing.yaml", "--data", "toy_old.Data"], 0),
        (["fit", "--model", "unknown.Model"], 0),
        (["fit", "--model"], 0),
        (["fit", "--help"], 0),
        ([], 0),
    ],
)
def test_the_package_is_that_of_the_last_model(folder, arguments, position):
    (folder / "whole.yaml").write_text(f"fit: {{model: {OLD}}}")
    (folder / "mapping.yaml").write_text(f"model: {{class_path: {OLD}, init_args: {{}}}}")
    (folder / "model.yaml").write_text(f"class_path: {OLD}")
    (folder / "file.yaml").write_text("model: model.yaml")
    assert choose_package(arguments) is PACKAGES[position]
