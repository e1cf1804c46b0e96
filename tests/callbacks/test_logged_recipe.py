"""The recipe is among the hyperparameters of each logger, and beside the checkpoints."""

import pytest
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata

from lightning_prune import (
    GlobalAllocation,
    LAMPAllocation,
    OneShotSchedule,
    ParameterBudget,
    PruningCallback,
    Regrow,
)
from tests.callbacks.conftest import Classifier
from tests.callbacks.runs import Curve


class Configured(Classifier):
    def __init__(self, optimizer: str = "adamw") -> None:
        super().__init__(optimizer)
        self.save_hyperparameters()


def read_session(folder):
    """Return the hyperparameters that TensorBoard shows: those of the first session."""
    accumulator = EventAccumulator(folder)
    accumulator.Reload()
    content = accumulator.SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
    shown = metadata.parse_session_start_info_plugin_data(content).hparams
    return {name: value.string_value or value.number_value for name, value in shown.items()}


def test_each_logger_has_the_recipe_beside_the_hyperparameters_of_the_model(
    make_trainer, loader, tmp_path
):
    board, csv = TensorBoardLogger(tmp_path, name="board"), CSVLogger(tmp_path, name="csv")
    pruning = PruningCallback(sparsity={"*": 0.75, "net.2": None}, allocation=LAMPAllocation())
    make_trainer(pruning, logger=[board, csv], max_epochs=1).fit(Configured(), loader)
    shown = read_session(board.log_dir)
    assert shown["optimizer"] == "adamw"
    assert shown["pruning/sparsity"] == "{'*': 0.75, 'net.2': None}"
    assert shown["pruning/schedule"] == "PolynomialSchedule"
    assert shown["pruning/schedule.end"] == 0.5
    assert shown["pruning/allocation"] == "LAMPAllocation"
    assert shown["pruning/criterion"] == "MagnitudeCriterion"
    written = yaml.safe_load((tmp_path / "csv" / "version_0" / "hparams.yaml").read_text())
    assert written["optimizer"] == "adamw"
    assert written["pruning/schedule"] == "PolynomialSchedule"


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        ({}, {"pruning/sparsity": 0.9, "pruning/keep_zeros": False}),
        (
            {"budget": [ParameterBudget(keep=0.5)], "allocation": GlobalAllocation()},
            {"pruning/budget.0": "ParameterBudget", "pruning/budget.0.keep": 0.5},
        ),
        (
            {"schedule": OneShotSchedule(end=0.0), "regrow": Regrow()},
            {"pruning/schedule.end": 0.0, "pruning/regrow.criterion": "GradientCriterion"},
        ),
    ],
    ids=["default", "budgets", "regrowth"],
)
def test_answers_are_plain_hyperparameters(recipe, expected, make_model, make_trainer, loader):
    class Hyperparameters(Curve):
        def log_hyperparams(self, params):
            self.params = params

    logger = Hyperparameters()
    trainer = make_trainer(PruningCallback(**recipe), logger=logger, max_epochs=1)
    trainer.fit(make_model(), loader)
    assert expected.items() <= logger.params.items()
    assert all(type(value) in (str, int, float, bool) for value in logger.params.values())


def test_a_logger_that_refuses_hyperparameters_does_not_end_the_training(
    make_model, make_trainer, loader
):
    class Refusing(Curve):
        def log_hyperparams(self, params):
            raise RuntimeError("changing a value is not allowed")

    trainer = make_trainer(PruningCallback(), logger=Refusing(), max_epochs=1)
    with pytest.warns(UserWarning, match="hyperparameters of Refusing: RuntimeError: changing"):
        trainer.fit(make_model(), loader)
    assert trainer.state.finished


def test_no_hyperparameters_are_logged_where_the_trainer_logs_none(
    make_model, make_trainer, loader, tmp_path
):
    logger = CSVLogger(tmp_path)
    trainer = make_trainer(
        PruningCallback(), logger=logger, max_epochs=1, enable_autolog_hparams=False
    )
    trainer.fit(make_model(), loader)
    assert not logger.experiment.hparams


def fit_with_checkpoints(make_model, make_trainer, loader, folder, **recipe):
    trainer = make_trainer(
        PruningCallback(**recipe),
        ModelCheckpoint(dirpath=folder),
        enable_checkpointing=True,
        max_epochs=1,
    )
    trainer.fit(make_model(), loader)


def test_the_recipe_lies_beside_the_checkpoints(make_model, make_trainer, loader, tmp_path):
    folder = tmp_path / "saved"
    for sparsity in (0.5, 0.75):  # the file is that of the last training
        fit_with_checkpoints(make_model, make_trainer, loader, folder, sparsity=sparsity)
    answers = yaml.safe_load((folder / "recipe.yaml").read_text())
    assert answers["sparsity"] == 0.75
    assert answers["schedule"]["class_path"] == "lightning_prune.PolynomialSchedule"


def test_a_file_of_another_origin_stays(make_model, make_trainer, loader, tmp_path):
    (tmp_path / "recipe.yaml").write_text("flour: 500\n")
    with pytest.warns(UserWarning, match=r"recipe.yaml' is of another origin and stays"):
        fit_with_checkpoints(make_model, make_trainer, loader, tmp_path)
    assert (tmp_path / "recipe.yaml").read_text() == "flour: 500\n"


def test_without_checkpoints_no_recipe_is_written(make_model, make_trainer, loader, tmp_path):
    make_trainer(PruningCallback(), max_epochs=1).fit(make_model(), loader)
    assert not list(tmp_path.rglob("recipe.yaml"))
