"""The subcommand ``export``."""

from lightning_prune.callbacks.namespace import LightningDataModule, LightningModule, Trainer
from lightning_prune.cli.deployment import write_sparse
from lightning_prune.cli.formats import (
    Format,
    Precision,
    check_precision,
    name_beside,
    read_dynamic,
    read_facts,
)
from lightning_prune.cli.loading import load_weights
from lightning_prune.cli.saying import Say
from lightning_prune.cli.traced_files import write_executorch, write_onnx
from lightning_prune.deploy.checkpoints import read_lightning_checkpoint
from lightning_prune.deploy.executorch_runtime import EXTRA, LIBRARY
from lightning_prune.deploy.files import check_output_file, need_libraries
from lightning_prune.deploy.onnx import LIBRARIES as ONNX_LIBRARIES
from lightning_prune.post_training.calibration import check_batches, check_one_process


def export_and_write(
    trainer: Trainer,
    model: LightningModule,
    datamodule: LightningDataModule | None,
    *,
    ckpt_path: str,
    output: str | None,
    format: Format,
    precision: Precision,
    batches: int,
    reduce_range: bool | None,
    dynamic: str | None,
    say: Say,
) -> None:
    """Check all arguments, load the checkpoint, and write the file.

    Args:
        trainer: Validates.
        model: The model of the config.
        datamodule: The data; None for those of the model.
        ckpt_path: The checkpoint.
        output: The file to write; None for a file beside the checkpoint.
        format: ``"onnx"``, ``"executorch"`` or ``"sparse"``.
        precision: ``"fp32"``, ``"fp16"`` or ``"int8"``.
        batches: Number of validation batches to compare and calibrate with.
        reduce_range: Whether 8-bit weights use 7 bits; by default if this machine needs it.
        dynamic: Dimensions of any size, such as ``"ids:1"``; None for none.
        say: Prints a text or a table.
    """
    check_batches(batches)
    check_precision(format, precision, reduce_range)
    dynamic_shapes = read_dynamic(dynamic, format)
    check_one_process(trainer, "to export")
    _check_libraries(format)
    facts = read_facts(read_lightning_checkpoint(ckpt_path))
    beside = name_beside(ckpt_path, format, precision)
    target = check_output_file(output or beside, ckpt_path=ckpt_path)
    load_weights(model, ckpt_path)
    if format == "executorch":
        write_executorch(trainer, model, datamodule, output=target, batches=batches, say=say)
    elif format == "sparse" and precision != "int8":
        write_sparse(trainer, model, datamodule, output=target, precision=precision, say=say)
    else:
        write_onnx(
            trainer,
            model,
            datamodule,
            output=target,
            precision=precision,
            batches=batches,
            reduce_range=reduce_range,
            dynamic_shapes=dynamic_shapes,
            facts=facts,
            say=say,
        )


def _check_libraries(format: Format) -> None:
    """Raise ModuleNotFoundError if a library for the format is not installed."""
    if format == "executorch":
        need_libraries(LIBRARY, "zstandard", extra=EXTRA)
    else:
        need_libraries("zstandard", *(ONNX_LIBRARIES if format == "onnx" else ["safetensors"]))
