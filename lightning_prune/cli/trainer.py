"""The subcommands of ``lightning-prune`` that do not train, as methods of a Trainer."""

from pathlib import Path
from typing import Literal

from lightning_prune.callbacks.namespace import LightningDataModule, LightningModule, TrainerBase
from lightning_prune.cli.formats import Format, Precision
from lightning_prune.cli.saying import say
from lightning_prune.post_training.defaults import (
    BATCHES,
    SEARCH_SPARSITIES,
    SPARSITIES,
    STATISTICS,
    TOLERANCE,
    TRIALS,
)
from lightning_prune.recipe.budgets import Budget
from lightning_prune.recipe.repair import Repair
from lightning_prune.reporting.latency import BLOCKS, THREADS


class PruneTrainer(TrainerBase):
    """Lightning's Trainer, with subcommands that do not train.

    Most modules are imported late, so that LightningCLI does not offer their callbacks.
    """

    def prune(
        self,
        model: LightningModule,
        *,
        ckpt_path: str,
        datamodule: LightningDataModule | None = None,
        output: str | None = None,
        batches: int = BATCHES,
        train_mode: bool = False,
        statistics: int = STATISTICS,
        repair: Repair | None = None,
    ) -> None:
        """Prune a checkpoint in one update without training, and validate before and after.

        The config's PruningCallback gives the recipe; its schedule is ignored.

        Args:
            model: The model.
            ckpt_path: The checkpoint to prune.
            datamodule: The data.
            output: The checkpoint to write; by default beside the other, with '-pruned' in the
                name. 'fit --ckpt_path' trains it on from step 0 and keeps the zeros.
            batches: Number of training batches for a repair, or for a criterion that needs them.
            train_mode: Whether the modules are in train mode in these batches.
            statistics: Largest number of training batches for new statistics of batch
                normalizations in the pruned model; 0 leaves them as they are.
            repair: How kept weights make up for pruned weights, such as '{damping: 0.01}'.
        """
        from lightning_prune.cli.pruning import prune_and_write

        prune_and_write(
            self,
            model,
            datamodule,
            ckpt_path=ckpt_path,
            output=output,
            say=say,
            batches=batches,
            train_mode=train_mode,
            statistics=statistics,
            repair=repair,
        )

    def sensitivity(
        self,
        model: LightningModule,
        *,
        ckpt_path: str,
        monitor: str,
        mode: Literal["max", "min"],
        datamodule: LightningDataModule | None = None,
        sparsities: tuple[float, ...] = SPARSITIES,
        tolerance: float = TOLERANCE,
        batches: int = BATCHES,
        train_mode: bool = False,
        statistics: int = STATISTICS,
        output: str = "sensitivity",
        plot: bool = True,
    ) -> None:
        """Prune each tensor of a checkpoint alone to several sparsities, and validate each time.

        Writes a table, a plot, and the largest tolerable sparsity of each tensor as the 'sparsity'
        of a config. The config's PruningCallback sets tensors, criterion and pattern.

        Args:
            model: The model.
            ckpt_path: The checkpoint, which does not change.
            monitor: Name of a metric that validation logs, such as val_acc.
            mode: Whether 'max' or 'min' of the metric is good.
            datamodule: The data.
            sparsities: The sparsities to try, in (0, 1], rising.
            tolerance: Largest allowed loss of the metric against the dense model, in the unit of
                the metric, for the sparsities that are written.
            batches: Number of training batches for a criterion that needs gradients or inputs.
            train_mode: Whether the modules are in train mode during these batches, for a
                training_step that needs it.
            statistics: Largest number of training batches for new statistics of batch
                normalizations before each validation; 0 leaves them as they are.
            output: The folder to write sensitivity.csv, sensitivity.yaml and sensitivity.png to.
            plot: Whether to draw sensitivity.png, which needs matplotlib.
        """
        from lightning_prune.cli.sensitivity import measure_and_write

        measure_and_write(
            self,
            model,
            datamodule,
            folder=Path(output),
            tolerance=tolerance,
            plot=plot,
            say=say,
            monitor=monitor,
            mode=mode,
            ckpt_path=ckpt_path,
            sparsities=sparsities,
            batches=batches,
            train_mode=train_mode,
            statistics=statistics,
        )

    def search(
        self,
        model: LightningModule,
        *,
        ckpt_path: str,
        monitor: str,
        mode: Literal["max", "min"],
        tolerance: float | None = None,
        budget: Budget | None = None,
        datamodule: LightningDataModule | None = None,
        sparsities: tuple[float, ...] = SEARCH_SPARSITIES,
        trials: int = TRIALS,
        batches: int = BATCHES,
        train_mode: bool = False,
        statistics: int = STATISTICS,
        output: str = "search",
        plot: bool = True,
    ) -> None:
        """Search the sparsity of each tensor that a tolerance or a budget allows.

        Prunes each tensor alone, combines the losses, and validates with all tensors pruned. No
        weight is trained. Writes the result as the 'sparsity' of a config, and as a checkpoint. The
        config's PruningCallback sets tensors, criterion and pattern.

        Args:
            model: The model.
            ckpt_path: The checkpoint, which does not change.
            monitor: Name of a metric that validation logs, such as val_acc.
            mode: Whether 'max' or 'min' of the metric is good.
            tolerance: Largest allowed loss of the metric against the dense model, in the unit of
                the metric. The search makes the number of parameters least. Give this or budget.
            budget: Largest cost, such as MacsBudget or ParameterBudget. The search makes the loss
                of the metric least.
            datamodule: The data.
            sparsities: The sparsities that a tensor can get beside 0, in (0, 1], rising.
            trials: Largest number of validations with all tensors pruned.
            batches: Number of training batches for a criterion that needs gradients or inputs.
            train_mode: Whether the modules are in train mode during these batches, for a
                training_step that needs it.
            statistics: Largest number of training batches for new statistics of batch
                normalizations before each validation; 0 leaves them as they are.
            output: The folder to write search.yaml, search.csv, search.png, search.ckpt and
                search_curves.csv to. A later search reuses the curves.
            plot: Whether to draw search.png, which needs matplotlib.
        """
        from lightning_prune.cli.searching import search_and_write

        search_and_write(
            self,
            model,
            datamodule,
            folder=Path(output),
            plot=plot,
            say=say,
            monitor=monitor,
            mode=mode,
            tolerance=tolerance,
            budget=budget,
            ckpt_path=ckpt_path,
            sparsities=sparsities,
            trials=trials,
            batches=batches,
            train_mode=train_mode,
            statistics=statistics,
        )

    def report(
        self,
        model: LightningModule,
        *,
        ckpt_path: str,
        datamodule: LightningDataModule | None = None,
        batch_size: int = 1,
        latency: bool = True,
        threads: int = THREADS,
        blocks: int = BLOCKS,
        output: str | None = None,
    ) -> None:
        """Measure the size, multiplications, memory and latency that pruning has saved.

        Compares a checkpoint with the same network without zeros, in torch and in ONNX Runtime. A
        shrunk checkpoint is compared with the config's model. The input is the model's
        example_input_array, or else the first input of forward during validation.

        Args:
            model: The model.
            ckpt_path: The checkpoint, which does not change.
            datamodule: The data.
            batch_size: Number of samples of a validation batch, for a model without
                example_input_array.
            latency: Whether to measure latencies, the only part that takes long. ONNX Runtime
                needs lightning-prune[export].
            threads: Number of threads that an operation may use on CPU.
            blocks: Number of pairs of blocks of calls, at least 6. A block takes about 10 ms, or
                one call. More blocks narrow the interval.
            output: A .json, .csv or .md file to write the report to, or a folder for all three.
        """
        from lightning_prune.cli.reporting import report_and_write

        report_and_write(
            self,
            model,
            datamodule,
            ckpt_path=ckpt_path,
            batch_size=batch_size,
            output=None if output is None else Path(output),
            say=say,
            latency=latency,
            threads=threads,
            blocks=blocks,
        )

    def reestimate(
        self,
        model: LightningModule,
        *,
        ckpt_path: str,
        datamodule: LightningDataModule | None = None,
        output: str | None = None,
        statistics: int = STATISTICS,
        train_mode: bool = False,
    ) -> None:
        """Give the batch normalizations of a checkpoint new statistics, and validate.

        They do not fit if no training followed the last update of the masks. Nothing else changes.

        Args:
            model: The model.
            ckpt_path: The checkpoint, which does not change.
            datamodule: The data.
            output: The checkpoint to write; by default beside the other, with '-reestimated' in the
                name. Nothing but the statistics differs.
            statistics: Largest number of training batches.
            train_mode: Whether all modules are in train mode, for a training_step that needs it.
        """
        from lightning_prune.cli.statistics import reestimate_and_write

        reestimate_and_write(
            self,
            model,
            datamodule,
            ckpt_path=ckpt_path,
            output=output,
            say=say,
            statistics=statistics,
            train_mode=train_mode,
        )

    def shrink(
        self,
        model: LightningModule,
        *,
        ckpt_path: str,
        datamodule: LightningDataModule | None = None,
        output: str | None = None,
    ) -> None:
        """Remove the channels of a checkpoint that are zero, compare the models, and validate.

        ChannelPattern makes such channels. The smaller model is compared with the pruned model
        before the checkpoint is written. Other subcommands (test, fit, report, export) take the new
        checkpoint by '--ckpt_path' and give the config's model its shapes.

        Args:
            model: The model.
            ckpt_path: The checkpoint, which does not change.
            datamodule: The data.
            output: The checkpoint to write; by default beside the other, with '-shrunk' in the
                name. In Python, adopt(Model(), torch.load(output)) loads it.
        """
        from lightning_prune.cli.deployment import write_shrunk

        write_shrunk(self, model, datamodule, ckpt_path=ckpt_path, output=output, say=say)

    def export(
        self,
        model: LightningModule,
        *,
        ckpt_path: str,
        datamodule: LightningDataModule | None = None,
        output: str | None = None,
        format: Format = "onnx",
        precision: Precision = "fp32",
        batches: int = BATCHES,
        reduce_range: bool | None = None,
        dynamic: str | None = None,
    ) -> None:
        """Write a checkpoint as a file to deploy, compare the file with the model, and validate it.

        An ONNX or ExecuTorch file is compared with the model in the runtime of the format. Then the
        model's validation_step runs with the file in the place of forward.

        Args:
            model: The model.
            ckpt_path: The checkpoint, which does not change.
            datamodule: The data.
            output: The file to write; by default beside the checkpoint, with the same name and the
                suffix .onnx, .pte or .safetensors.
            format: 'onnx'; 'executorch' for phones and boards, in batches of the example's size;
                or 'sparse' for a file without the zeros, which load_sparse reads.
            precision: 'fp32'; 'fp16' (in a sparse file for the values only); or 'int8' for an ONNX
                file with weights and activations in 8 bits.
            batches: Number of validation batches to compare a file and to calibrate int8 with.
            reduce_range: Whether int8 weights use 7 of the 8 bits, which x86 processors without
                VNNI need; by default if this machine needs it.
            dynamic: Dimensions of any size in an ONNX file, such as 'ids:1,mask:1' for texts.
        """
        from lightning_prune.cli.exporting import export_and_write

        export_and_write(
            self,
            model,
            datamodule,
            ckpt_path=ckpt_path,
            output=output,
            format=format,
            precision=precision,
            batches=batches,
            reduce_range=reduce_range,
            dynamic=dynamic,
            say=say,
        )
