"""The recipe among the hyperparameters of all loggers, and beside the checkpoints."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import yaml
from fsspec.core import url_to_fs

from lightning_prune.callbacks.namespace import LightningModule, Trainer
from lightning_prune.models.errors import describe_error
from lightning_prune.recipe.recipe import Recipe

_FIRST_LINE = "# The recipe of lightning_prune: the init_args of a PruningCallback.\n"


def log_recipe(trainer: Trainer, model: LightningModule, recipe: Recipe) -> None:
    """Write the recipe into the hyperparameters of all loggers, as ``pruning/sparsity`` and so on.

    TensorBoard shows only the first hyperparameters of a run. So call this before Lightning logs
    those of the model and the data: they are logged here, too.

    Args:
        trainer: The Trainer, at ``on_fit_start``.
        model: The model.
        recipe: The answers.
    """
    if not trainer.enable_autolog_hparams:
        return
    given: dict[str, Any] = {}
    for holder in (model, trainer.datamodule):  # type: ignore[union-attr]
        if getattr(holder, "_log_hyperparams", False):
            given |= {k: v for k, v in holder.hparams_initial.items() if k != "_class_path"}
    for logger in trainer.loggers:
        with _go_on_without(type(logger).__name__):
            logger.log_hyperparams(given | flatten_recipe(recipe))


def write_recipe(trainer: Trainer, recipe: Recipe) -> None:
    """Write ``recipe.yaml`` into the folders of the Trainer's checkpoints, in the first process.

    Only training writes there. A file of this name that comes from elsewhere stays.

    Args:
        trainer: The Trainer.
        recipe: The answers.
    """
    folders = {getattr(callback, "dirpath", None) for callback in trainer.checkpoint_callbacks}
    writes = trainer.is_global_zero and trainer.state.fn == "fit"
    for folder in filter(None, folders) if writes else ():
        files, path = url_to_fs(str(folder))
        path = f"{path}/recipe.yaml"
        if files.exists(path) and not files.cat_file(path).startswith(_FIRST_LINE.encode()):
            warnings.warn(
                f"'{path}' is of another origin and stays, so the recipe is not written beside the "
                "checkpoints",
                stacklevel=2,
            )
            continue
        files.makedirs(str(folder), exist_ok=True)
        files.pipe_file(path, (_FIRST_LINE + recipe.to_yaml()).encode())


def flatten_recipe(recipe: Recipe) -> dict[str, str | int | float | bool]:
    """Return the answers as hyperparameters, with the defaults in force; answers of None are out.

    Args:
        recipe: The answers.

    Examples:
        >>> list(flatten_recipe(Recipe(sparsity=0.8)).items())[:3]
        [('pruning/sparsity', 0.8), ('pruning/schedule', 'PolynomialSchedule'), \
('pruning/schedule.begin', 0.1)]
        >>> flatten_recipe(Recipe(sparsity={"*": 0.8, "head": None}))["pruning/sparsity"]
        "{'*': 0.8, 'head': None}"
    """
    chosen = replace(recipe, allocation=recipe.chosen_allocation, criterion=recipe.chosen_criterion)
    answers = yaml.safe_load(chosen.to_yaml())
    if recipe.sparsity is not None or not recipe.budgets:
        targets = recipe.targets
        answers["sparsity"] = targets["*"] if list(targets) == ["*"] else str(targets)
    return {
        f"pruning/{name}": value
        for answer, inner in answers.items()
        for name, value in _flatten(answer, inner)
    }


def _flatten(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield names and plain values; a class as a name, and each argument after a dot."""
    if isinstance(value, list):
        value = dict(enumerate(value))
    if not isinstance(value, Mapping):
        if value is not None:
            yield name, value
        return
    if "class_path" in value:
        yield name, value["class_path"].removeprefix("lightning_prune.")
        value = value.get("init_args", {})
    for key, inner in value.items():
        yield from _flatten(f"{name}.{key}", inner)


@contextmanager
def _go_on_without(logger: str) -> Iterator[None]:
    """Warn of a logger that refuses, as MLflow does if a run goes on with another recipe."""
    try:
        yield
    except Exception as error:
        warnings.warn(
            f"no recipe in the hyperparameters of {logger}: {describe_error(error)}", stacklevel=4
        )
