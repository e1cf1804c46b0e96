"""The ``lightning-prune`` command: LightningCLI for any model and data by import path."""

import argparse
import os
import sys
from typing import NoReturn

from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

import lightning_prune.callbacks  # noqa: F401  (jsonargparse resolves short names of what is imported)
from lightning_prune._cli_errors import explained


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
    """LightningCLI that also reports a bad value in a config without a traceback."""

    def instantiate_classes(self) -> None:
        """Build model, data and Trainer from the config."""
        try:
            super().instantiate_classes()
        except (ValueError, RuntimeError) as error:
            if explained(str(error)) is None:
                raise
            self.parser.error(str(error))


def main() -> None:
    """Run ``fit``, ``validate``, ``test`` or ``predict`` on what the config names."""
    if os.getcwd() not in sys.path:  # a console script does not see the current directory
        sys.path.insert(0, os.getcwd())
    PruneCLI(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        parser_class=PruneArgumentParser,
    )
