"""The ``lightning-prune`` command: LightningCLI with more subcommands and clearer errors."""

import argparse
import os
import sys
from argparse import ArgumentError
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import Any, NoReturn

import lightning_prune.callbacks  # noqa: F401  (jsonargparse resolves short names of imported classes)
from lightning_prune.callbacks.namespace import CommandBase, ParserBase, join
from lightning_prune.cli.chosen_package import choose_package
from lightning_prune.cli.commands import OURS
from lightning_prune.cli.errors import explain
from lightning_prune.cli.loading import adopt_shapes
from lightning_prune.cli.named_defaults import name_defaults
from lightning_prune.cli.next_steps import describe_next_steps
from lightning_prune.cli.pruning_options import (
    KEY,
    OWN_OPTION,
    add_pruning_options,
    refuse_unclear_options,
    resolve_pruning,
    take_options,
)
from lightning_prune.cli.refusals import describe_refusal
from lightning_prune.cli.trainer import PruneTrainer
from lightning_prune.deploy.checkpoints import read_lightning_checkpoint


class PruneArgumentParser(ParserBase):
    """Lightning's parser, with options ``--pruning.*``, and errors that name the candidates."""

    def parse_args(
        self,
        args: Any = None,
        namespace: Any = None,
        env: bool | None = None,
        defaults: bool = True,
        **options: Any,
    ) -> Any:
        """Parse the arguments, and change or add the `PruningCallback` that they describe."""
        if not {KEY, "trainer.callbacks"} <= {action.dest for action in self._actions}:
            return super().parse_args(args, namespace, env, defaults, **options)
        args = sys.argv[1:] if args is None else args
        own, others = take_options(OWN_OPTION, args)
        try:
            refuse_unclear_options(args)
            config = super().parse_args(others, namespace, env, defaults, **options)
            resolve_pruning(config, own)
        except (ArgumentError, ValueError) as error:
            self.error(str(error))
        return config

    def dump(self, *arguments: Any, **options: Any) -> str:
        """Return the config, with the names of default answers as comments."""
        return name_defaults(super().dump(*arguments, **options))

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Exit with the causes that the message names, or else with the message, in lines."""
        if not self.exit_on_error:
            super().error(message, ex)
        causes = explain(message, _keys(self)) or " ".join(message.split())
        self.exit(2, f"error: {causes}\n")


def _keys(parser: argparse.ArgumentParser) -> list[str]:
    """Return all keys of a config, with the keys of the subcommands."""
    keys = [action.dest for action in parser._actions]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            keys += [key for subparser in action.choices.values() for key in _keys(subparser)]
    return keys


class PruneCLI(CommandBase):
    """LightningCLI with more subcommands, and without a traceback for a bad value."""

    trainer: PruneTrainer

    def __init__(self, *arguments: Any, only: str | None = None, **options: Any) -> None:
        """Parse the command line, and run it.

        Args:
            *arguments: Arguments of LightningCLI.
            only: The subcommand of the command line, whose parser is enough; None for all.
            **options: Arguments of LightningCLI.
        """
        self._only = only
        super().__init__(*arguments, **options)

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Return Lightning's and our subcommands, with the arguments that are no options."""
        known = super().subcommands() | {name: {"model", "datamodule"} for name in OURS}
        return known if self._only is None else {self._only: known[self._only]}

    def add_arguments_to_parser(self, parser: Any) -> None:
        """Add the options ``--pruning.*``."""
        add_pruning_options(parser)

    def before_instantiate_classes(self) -> None:
        """Save no config for a subcommand that does not train."""
        if self.subcommand in OURS:
            self.save_config_callback = None

    def parse_arguments(self, parser: Any, args: Any) -> None:
        """Parse, and refuse a bad checkpoint before Lightning looks for hyperparameters in it."""
        super().parse_arguments(parser, args)
        self._hyperparameters: dict[str, Any] = {}
        subcommand = self.config.get("subcommand")  # absent where the CLI is to run nothing
        if subcommand:  # A config that names the subcommand still has the key.
            try:
                resolve_pruning(self.config[subcommand])
            except (ArgumentError, ValueError) as error:
                self.parser.error(str(error))
        path = self.config[subcommand].get("ckpt_path") if subcommand else None
        if path and Path(path).is_file():
            with self._exit_with_cause(path):
                self._hyperparameters = read_lightning_checkpoint(path).get("hyper_parameters", {})

    def _parse_ckpt_path(self) -> None:
        """Take the model from a checkpoint if a LightningCLI wrote it, else from the config."""
        if "_class_path" not in self._hyperparameters:
            return
        said = StringIO()
        try:
            with redirect_stderr(said):
                super()._parse_ckpt_path()
        except SystemExit:
            path = self.config[self.config.subcommand].ckpt_path
            lines = said.getvalue().rpartition("error: ")[2].splitlines()
            cause = " ".join(" ".join(lines[:-1]).split())  # the last line says that it failed
            self.parser.exit(
                2, f"error: need a checkpoint of this model, got ckpt_path='{path}': {cause}\n"
            )

    def fit(self, **arguments: Any) -> None:
        """Train."""
        self._run_in_lightning(self.trainer.fit, arguments)

    def validate(self, **arguments: Any) -> None:
        """Validate."""
        self._run_in_lightning(self.trainer.validate, arguments)

    def test(self, **arguments: Any) -> None:
        """Test."""
        self._run_in_lightning(self.trainer.test, arguments)

    def predict(self, **arguments: Any) -> None:
        """Predict."""
        self._run_in_lightning(self.trainer.predict, arguments)

    def prune(self, **arguments: Any) -> None:
        """Prune a checkpoint without training."""
        self._run(self.trainer.prune, arguments)

    def sensitivity(self, **arguments: Any) -> None:
        """Measure how much sparsity each tensor tolerates."""
        self._run(self.trainer.sensitivity, arguments)

    def search(self, **arguments: Any) -> None:
        """Search the sparsity of each tensor that a tolerance or a budget allows."""
        self._run(self.trainer.search, arguments)

    def report(self, **arguments: Any) -> None:
        """Measure the size, work, memory and latency that pruning has saved."""
        self._run(self.trainer.report, arguments)

    def reestimate(self, **arguments: Any) -> None:
        """Give the batch normalizations of a checkpoint new statistics."""
        self._run(self.trainer.reestimate, arguments)

    def shrink(self, **arguments: Any) -> None:
        """Remove the zero channels of a checkpoint."""
        self._run(self.trainer.shrink, arguments)

    def export(self, **arguments: Any) -> None:
        """Write a checkpoint as a file to deploy."""
        self._run(self.trainer.export, arguments)

    def instantiate_classes(self) -> None:
        """Build model, data and Trainer from the config."""
        with self._exit_with_cause():
            try:
                super().instantiate_classes()
            except (ValueError, RuntimeError, TypeError) as error:
                if explain(str(error)) is None:
                    raise
                self.parser.error(str(error))

    def _say_next_steps(self, options: dict[str, Any]) -> None:
        """Print the commands that may come next, unless a config names the subcommand."""
        if self._only is not None and self.trainer.is_global_zero:
            steps = describe_next_steps(self._only, self.trainer, options, sys.argv[2:])
            sys.stdout.write("".join(f"{step}\n" for step in steps))

    def _run_in_lightning(self, command: Callable[..., Any], arguments: dict[str, Any]) -> None:
        """Run a subcommand of Lightning, also with a shrunk checkpoint."""
        path = arguments.get("ckpt_path")
        with self._exit_with_cause(path):
            if path and Path(path).is_file():
                adopt_shapes(self.model, path)
            command(**arguments)
            self._say_next_steps(arguments)

    def _run(self, command: Callable[..., None], arguments: dict[str, Any]) -> None:
        """Run a subcommand of this package."""
        with self._exit_with_cause(arguments.get("ckpt_path")):
            command(**arguments)
            self._say_next_steps(arguments)

    @contextmanager
    def _exit_with_cause(self, ckpt_path: object = None) -> Iterator[None]:
        """Exit with a line and code 2 at an error that needs no traceback."""
        try:
            yield
        except Exception as error:
            cause = describe_refusal(error, ckpt_path)
            if cause is None:
                raise
            self.parser.exit(2, f"error: {cause}\n")


def run(command: str | None) -> None:
    """Run the command line with the model and the data of a config.

    Args:
        command: The subcommand; None if a config names it.
    """
    if os.getcwd() not in sys.path:  # a console script does not see the current directory
        sys.path.insert(0, os.getcwd())
    package = choose_package(sys.argv[1:])
    classes = import_module(f"{package.__name__}.cli")
    join(PruneCLI, classes.LightningCLI)(
        package.LightningModule,
        package.LightningDataModule,
        only=command,
        trainer_class=join(PruneTrainer, package.Trainer),
        subclass_mode_model=True,
        subclass_mode_data=True,
        parser_class=join(PruneArgumentParser, classes.LightningArgumentParser),
        parser_kwargs={"prog": "lightning-prune"},
    )
