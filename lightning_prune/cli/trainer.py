"""What the ``lightning-prune`` command does beside training: each subcommand is a method here."""

from copy import deepcopy
from pathlib import Path
from typing import Literal

import torch
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
        from lightning_prune.post_training.one_shot import prune_once

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
        from lightning_prune.post_training.sensitivity import (
            check_plot,
            check_tolerance,
            measure_sensitivity,
        )

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

    def report(
        self,
        model: LightningModule,
        *,
        ckpt_path: str,
        datamodule: LightningDataModule | None = None,
        batch_size: int = 1,
        latency: bool = True,
        threads: int = 1,
        blocks: int = 51,
        output: str | None = None,
    ) -> None:
        """Measure what pruning has bought: size, multiplications, memory and latency.

        Compares a checkpoint with the same network without zeros, or a shrunk one with the model
        of the config, in torch and in ONNX Runtime, with the model's example_input_array as input,
        or else with what validation first calls the model with.

        Args:
            model: The model.
            ckpt_path: The checkpoint; it is only read.
            datamodule: The data.
            batch_size: Number of samples of a validation batch that the model is run on, if it has
                no example_input_array.
            latency: Whether to measure latencies, the only part that takes long. Those of ONNX
                Runtime need lightning-prune[export].
            threads: Number of threads that one operation may use, on CPU.
            blocks: Number of pairs of blocks of calls, at least 6, each of about 10 ms or one
                call; more make the interval narrower.
            output: Where to write it, too: a .json, .csv or .md file, or a folder for all three.
        """
        from lightning_prune.cli.example import find_example
        from lightning_prune.post_training.calibration import check_one_process, checked_checkpoint
        from lightning_prune.reporting.records import check_output
        from lightning_prune.reporting.report import report

        if batch_size < 1:
            raise ValueError(f"need batch_size >= 1, got batch_size={batch_size}")
        if output is not None:
            check_output(Path(output))
        check_one_process(self, "to report")
        checked_checkpoint(ckpt_path)
        dense = deepcopy(model)
        is_shrunk = _load(model, ckpt_path)
        example = find_example(self, model, datamodule, batch_size)
        measured = report(
            model.to(self.strategy.root_device),
            example,
            dense=dense if is_shrunk else None,
            latency=latency,
            threads=threads,
            blocks=blocks,
            progress=self.progress_bar_callback is not None,
        )
        _say(measured.table())
        if output is not None:
            _say(f"written: {', '.join(map(str, measured.write(Path(output))))}")

    def shrink(
        self,
        model: LightningModule,
        *,
        ckpt_path: str,
        datamodule: LightningDataModule | None = None,
        output: str | None = None,
    ) -> None:
        """Remove the channels of a checkpoint that are zero, compare, and validate it.

        Channels are zero where ChannelPattern has pruned them. The smaller model is compared with
        the pruned one before it is written; what else takes it by '--ckpt_path' (test, fit, report,
        export) gives the config's model its shapes.

        Args:
            model: The model.
            ckpt_path: The checkpoint; it is only read.
            datamodule: The data.
            output: The checkpoint to write: by default beside the other, with '-shrunk' in its
                name. In Python, adopt(Model(), torch.load(output)) loads it.
        """
        from lightning_prune.cli.deployment import write_shrunk
        from lightning_prune.post_training.calibration import (
            check_one_process,
            checked_checkpoint,
            checked_output,
        )

        check_one_process(self, "to shrink")
        source = Path(checked_checkpoint(ckpt_path) or ckpt_path)
        beside = source.with_name(f"{source.stem}-shrunk{source.suffix}")
        target = checked_output(output or beside, source)
        _load(model, ckpt_path)
        write_shrunk(self, model, datamodule, source=source, output=target, say=_say)

    def export(
        self,
        model: LightningModule,
        *,
        ckpt_path: str,
        datamodule: LightningDataModule | None = None,
        output: str | None = None,
        format: Literal["onnx", "sparse"] = "onnx",
        precision: Literal["fp32", "fp16", "int8"] = "fp32",
        batches: int = 16,
        reduce_range: bool | None = None,
    ) -> None:
        """Write a checkpoint as a file to deploy, compare it with the model, and validate it.

        An ONNX file is compared in ONNX Runtime, then validated by the model's own
        validation_step, where it takes the place of forward.

        Args:
            model: The model.
            ckpt_path: The checkpoint; it is only read.
            datamodule: The data.
            output: The file to write: by default beside the checkpoint and named after it, ending
                in .onnx or .safetensors.
            format: 'onnx', or 'sparse' for a file without the zeros, which load_sparse reads.
            precision: 'fp32', 'fp16' (of a sparse file: its values), or 'int8' for an ONNX file
                with weights and activations in 8 bits.
            batches: With how many validation batches a file is compared and int8 is calibrated.
            reduce_range: For int8, whether weights use 7 of the 8 bits, which x86 processors
                without VNNI need: by default whether this machine does.
        """
        from lightning_prune.cli.deployment import write_onnx, write_sparse
        from lightning_prune.deploy.files import need_libraries
        from lightning_prune.deploy.onnx import LIBRARIES
        from lightning_prune.deploy.quantization import saturates
        from lightning_prune.post_training.calibration import (
            check_batches,
            check_one_process,
            checked_checkpoint,
            checked_output,
        )

        check_batches(batches)
        if precision == "int8":
            if format == "sparse":
                raise ValueError("need fp32 or fp16 for a sparse file, got precision=int8")
            reduce_range = saturates() if reduce_range is None else reduce_range
        elif reduce_range is not None:
            raise ValueError(
                f"need int8 for reduce_range={reduce_range}, got precision={precision}"
            )
        check_one_process(self, "to export")
        need_libraries("zstandard", *(LIBRARIES if format == "onnx" else ["safetensors"]))
        source = checked_checkpoint(ckpt_path)
        target = checked_output(output or _beside(ckpt_path, format, precision), source)
        _load(model, ckpt_path)
        if precision != "int8" and format == "sparse":
            write_sparse(self, model, datamodule, output=target, precision=precision, say=_say)
            return
        write_onnx(
            self,
            model,
            datamodule,
            output=target,
            precision=precision,
            batches=batches,
            reduce_range=reduce_range,
            say=_say,
        )


def _beside(ckpt_path: str, format: str, precision: str) -> Path:
    """Return the checkpoint's name with what the file is of."""
    source = Path(ckpt_path)
    suffix = ".safetensors" if format == "sparse" else ".onnx"
    return source.with_name(source.stem + ("" if precision == "fp32" else f"-{precision}") + suffix)


def adopt_shapes(model: LightningModule, ckpt_path: str | Path) -> bool:
    """Give a model the shapes of a shrunk checkpoint, and say whether it is one."""
    checkpoint = torch.load(ckpt_path, map_location="cpu", weights_only=True)
    if "shrunk_attributes" not in checkpoint:
        return False
    from lightning_prune.channels.shrink import adopt

    model.configure_model()
    adopt(model, checkpoint)
    return True


def _load(model: LightningModule, ckpt_path: str) -> bool:
    """Put the weights of a checkpoint into a model, and say whether it was shrunk."""
    model.configure_model()
    is_shrunk = adopt_shapes(model, ckpt_path)
    checkpoint = torch.load(ckpt_path, map_location="cpu", weights_only=True)
    if "state_dict" not in checkpoint:
        raise ValueError(f"need a checkpoint of Lightning, got ckpt_path='{ckpt_path}'")
    model.on_load_checkpoint(checkpoint)
    try:
        model.load_state_dict(checkpoint["state_dict"], strict=model.strict_loading)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"need a checkpoint of the model, got {ckpt_path=}; {reason}") from error
    return is_shrunk


def _say(something: RenderableType) -> None:
    Console().print(something, soft_wrap=isinstance(something, str))
