"""The ``lightning-prune`` command: LightningCLI for any model and data by import path."""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NoReturn

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from rich.console import Console, RenderableType

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


class PruneTrainer(Trainer):
    """Lightning's Trainer, which also does what is not training.

    The rooms where that is done are imported late: their callbacks are none to choose in a config.
    """

    def prune(
        self,
        model: LightningModule,
        *,
        ckpt_path: str,
        datamodule: LightningDataModule | None = None,
        output: str | None = None,
        batches: int = 16,
        train_mode: bool = False,
    ) -> None:
        """Prune a checkpoint in one update without training, and validate before and after.

        What, where, by which criterion and in which pattern is said by the config's
        PruningCallback; its schedule is ignored.

        Args:
            model: The model.
            ckpt_path: The checkpoint to prune.
            datamodule: The data.
            output: The checkpoint to write: by default beside the other, with '-pruned' in its
                name. 'test --ckpt_path' tests it and 'fit --ckpt_path' trains on, sparse, from
                step 0.
            batches: Number of training batches that the criterion is shown, if it needs more than
                the weights, such as gradients; no weight changes.
            train_mode: Whether these run in train mode, for a training_step that needs it.
        """
        from lightning_prune.oneshot import prune_once

        source = Path(ckpt_path)
        target = output or source.with_name(f"{source.stem}-pruned{source.suffix}")
        prune_once(
            self,
            model,
            datamodule,
            ckpt_path=ckpt_path,
            output=target,
            batches=batches,
            train_mode=train_mode,
        )
        _say(f"written: {target}")

    def sensitivity(
        self,
        model: LightningModule,
        *,
        ckpt_path: str,
        monitor: str,
        mode: Literal["max", "min"],
        datamodule: LightningDataModule | None = None,
        sparsities: tuple[float, ...] = (0.5, 0.7, 0.8, 0.9, 0.95),
        tolerance: float = 0.01,
        batches: int = 16,
        train_mode: bool = False,
        output: str = "sensitivity",
        plot: bool = True,
    ) -> None:
        """Prune each tensor of a checkpoint alone to several sparsities, and validate each time.

        Writes a table, a plot, and what each tensor bears as the 'sparsity' of a config. Which
        tensors, by which criterion and in which pattern is said by the config's PruningCallback.

        Args:
            model: The model.
            ckpt_path: The checkpoint; it is only read.
            monitor: Name of the metric, as validation logs it, such as val_acc.
            mode: Whether 'max' or 'min' of it is good.
            datamodule: The data.
            sparsities: The sparsities to try, in (0, 1], rising.
            tolerance: By how much the metric may be worse than that of the dense model, in its own
                unit, for the sparsities that are written out.
            batches: Number of training batches that the criterion is shown, if it needs more than
                the weights, such as gradients; no weight changes.
            train_mode: Whether these run in train mode, for a training_step that needs it.
            output: The folder to write sensitivity.csv, sensitivity.yaml and sensitivity.png to.
            plot: Whether to draw sensitivity.png, which needs matplotlib.
        """
        from lightning_prune.sensitivity import check_plot, check_tolerance, measure_sensitivity

        check_tolerance(tolerance)
        if plot:
            check_plot()
        folder = Path(output)
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"need a folder to write to, got the file output='{output}'")
        measured = measure_sensitivity(
            self,
            model,
            datamodule,
            monitor=monitor,
            mode=mode,
            ckpt_path=ckpt_path,
            sparsities=sparsities,
            batches=batches,
            train_mode=train_mode,
        )
        _say(measured.table(tolerance))
        written = measured.write(folder, tolerance, plot=plot)
        _say(f"written: {', '.join(map(str, written))}")


class PruneCLI(LightningCLI):
    """LightningCLI with two more subcommands, which reports a bad value without a traceback."""

    trainer: PruneTrainer

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return Lightning's subcommands and ours, with the arguments that are not options."""
        ours = {"model", "datamodule"}
        return {**LightningCLI.subcommands(), "prune": ours, "sensitivity": ours}

    def before_instantiate_classes(self) -> None:
        """Leave the config out of the log of a training that is none."""
        if self.subcommand in ("prune", "sensitivity"):
            self.save_config_callback = None

    def prune(self, **arguments: Any) -> None:
        """Prune a checkpoint without training."""
        self._reporting(self.trainer.prune, arguments)

    def sensitivity(self, **arguments: Any) -> None:
        """Measure how much sparsity each tensor bears."""
        self._reporting(self.trainer.sensitivity, arguments)

    def _reporting(self, command: Callable[..., None], arguments: dict[str, Any]) -> None:
        try:
            command(**arguments)
        except ValueError as error:
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


def _say(something: RenderableType) -> None:
    Console().print(something, soft_wrap=isinstance(something, str))


def main() -> None:
    """Run ``fit``, ``prune``, ``sensitivity`` or another command on what the config names."""
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
