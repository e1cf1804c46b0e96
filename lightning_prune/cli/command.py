"""The ``lightning-prune`` command: LightningCLI with more subcommands and clearer errors."""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

import lightning_prune.callbacks  # noqa: F401  (jsonargparse resolves short names of imported classes)
from lightning_prune.cli.errors import explain
from lightning_prune.cli.trainer import PruneTrainer, adopt_shapes

_OURS = ("prune", "sensitivity", "report", "shrink", "export")


class PruneArgumentParser(LightningArgumentParser):
    """Lightning's parser, with errors that name the candidates for a wrong name."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Exit with the causes that the message names, or else with the message."""
        causes = explain(message, _keys(self)) if self.exit_on_error else None
        if causes is None:
            super().error(message, ex)
        self.exit(2, f"error: {causes}\n")


def _keys(parser: argparse.ArgumentParser) -> list[str]:
    """Return all keys of a config, with the keys of the subcommands."""
    keys = [action.dest for action in parser._actions]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            keys += [key for subparser in action.choices.values() for key in _keys(subparser)]
    return keys


class PruneCLI(LightningCLI):
    """LightningCLI with more subcommands, and without a traceback for a bad value."""

    trainer: PruneTrainer

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return Lightning's and our subcommands, with the arguments that are no options."""
        return LightningCLI.subcommands() | {name: {"model", "datamodule"} for name in _OURS}

    def before_instantiate_classes(self) -> None:
        """Save no config for a subcommand that does not train."""
        if self.subcommand in _OURS:
            self.save_config_callback = None

    def before_fit(self) -> None:
        """Adopt the shapes of a shrunk checkpoint."""
        self._adopt_shapes()

    def before_validate(self) -> None:
        """Adopt the shapes of a shrunk checkpoint."""
        self._adopt_shapes()

    def before_test(self) -> None:
        """Adopt the shapes of a shrunk checkpoint."""
        self._adopt_shapes()

    def before_predict(self) -> None:
        """Adopt the shapes of a shrunk checkpoint."""
        self._adopt_shapes()

    def prune(self, **arguments: Any) -> None:
        """Prune a checkpoint without training."""
        self._run(self.trainer.prune, arguments)

    def sensitivity(self, **arguments: Any) -> None:
        """Measure how much sparsity each tensor tolerates."""
        self._run(self.trainer.sensitivity, arguments)

    def report(self, **arguments: Any) -> None:
        """Measure the size, work, memory and latency that pruning has saved."""
        self._run(self.trainer.report, arguments)

    def shrink(self, **arguments: Any) -> None:
        """Remove the zero channels of a checkpoint."""
        self._run(self.trainer.shrink, arguments)

    def export(self, **arguments: Any) -> None:
        """Write a checkpoint as a file to deploy."""
        self._run(self.trainer.export, arguments)

    def instantiate_classes(self) -> None:
        """Build model, data and Trainer from the config."""
        try:
            super().instantiate_classes()
        except (TypeError, ValueError, RuntimeError) as error:
            if explain(str(error)) is None:
                raise
            self.parser.error(str(error))

    def _adopt_shapes(self) -> None:
        """Give the model the shapes of a shrunk checkpoint before Lightning loads its weights."""
        path = self._get(self.config_init, "ckpt_path")
        if path and Path(path).is_file():
            adopt_shapes(self.model, path)

    def _run(self, command: Callable[..., None], arguments: dict[str, Any]) -> None:
        """Run a subcommand, and exit with the cause of a known error."""
        try:
            command(**arguments)
        except (ValueError, ModuleNotFoundError) as error:
            if explain(str(error)) is None:
                raise
            self.parser.error(str(error))


def main() -> None:
    """Run ``fit``, ``prune``, ``report`` or another subcommand with a config's model and data."""
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
