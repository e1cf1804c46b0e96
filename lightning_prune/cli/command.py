"""The ``lightning-prune`` command: LightningCLI for any model and data by import path."""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

import lightning_prune.callbacks  # noqa: F401  (jsonargparse resolves short names of what is imported)
from lightning_prune.cli.errors import explained
from lightning_prune.cli.trainer import PruneTrainer, adopt_shapes

_OURS = ("prune", "sensitivity", "report", "shrink", "export")


class PruneArgumentParser(LightningArgumentParser):
    """Lightning's parser, with errors that say what was meant."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Exit with the causes found in the message, or with the message itself."""
        causes = explained(message, _keys(self)) if self.exit_on_error else None
        if causes is None:
            super().error(message, ex)
        self.exit(2, f"error: {causes}\n")


def _keys(parser: argparse.ArgumentParser) -> list[str]:
    """Return all keys of a config, those of the subcommands included."""
    keys = [action.dest for action in parser._actions]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            keys += [key for subparser in action.choices.values() for key in _keys(subparser)]
    return keys


class PruneCLI(LightningCLI):
    """LightningCLI with more subcommands, which reports a bad value without a traceback."""

    trainer: PruneTrainer

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return Lightning's subcommands and ours, with the arguments that are not options."""
        return LightningCLI.subcommands() | {name: {"model", "datamodule"} for name in _OURS}

    def before_instantiate_classes(self) -> None:
        """Leave the config out of the log of a training that is none."""
        if self.subcommand in _OURS:
            self.save_config_callback = None

    def _adopt_shapes(self) -> None:
        """Give the model the shapes of a shrunk checkpoint before Lightning loads its weights."""
        path = self._get(self.config_init, "ckpt_path")
        if path and Path(path).is_file():
            adopt_shapes(self.model, path)

    before_fit = before_validate = before_test = before_predict = _adopt_shapes

    def prune(self, **arguments: Any) -> None:
        """Prune a checkpoint without training."""
        self._reporting(self.trainer.prune, arguments)

    def sensitivity(self, **arguments: Any) -> None:
        """Measure how much sparsity each tensor bears."""
        self._reporting(self.trainer.sensitivity, arguments)

    def report(self, **arguments: Any) -> None:
        """Measure what pruning has bought."""
        self._reporting(self.trainer.report, arguments)

    def shrink(self, **arguments: Any) -> None:
        """Remove the channels of a checkpoint that are zero."""
        self._reporting(self.trainer.shrink, arguments)

    def export(self, **arguments: Any) -> None:
        """Write a checkpoint as a file to deploy."""
        self._reporting(self.trainer.export, arguments)

    def _reporting(self, command: Callable[..., None], arguments: dict[str, Any]) -> None:
        try:
            command(**arguments)
        except (ValueError, ModuleNotFoundError) as error:
            if explained(str(error)) is None:
                raise
            self.parser.error(str(error))

    def instantiate_classes(self) -> None:
        """Build model, data and Trainer from the config."""
        try:
            super().instantiate_classes()
        except (ValueError, RuntimeError) as error:
            if explained(str(error)) is None:
                raise
            self.parser.error(str(error))


def main() -> None:
    """Run ``fit``, ``prune``, ``report`` or another command on what the config names."""
    if os.getcwd() not in sys.path:  # a console script does not see the current directory
        sys.path.insert(0, os.getcwd())
    PruneCLI(
        LightningModule,
        LightningDataModule,
        trainer_class=PruneTrainer,
        subclass_mode_model=True,
        subclass_mode_data=True,
        parser_class=PruneArgumentParser,
    )
