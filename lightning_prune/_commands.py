"""What the ``lightning-prune`` command does beside training: each subcommand is a method here."""

from pathlib import Path
from typing import Literal

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from rich.console import Console, RenderableType


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


def _say(something: RenderableType) -> None:
    Console().print(something, soft_wrap=isinstance(something, str))
