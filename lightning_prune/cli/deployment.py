"""Files to deploy, written from a checkpoint and validated by the user's own validation."""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from rich.console import RenderableType
from rich.progress import track
from torch import nn

from lightning_prune.callbacks.namespace import LightningDataModule, LightningModule, Trainer
from lightning_prune.channels.adoption import shrunk_state
from lightning_prune.channels.shrink import shrink
from lightning_prune.cli.example import find_example
from lightning_prune.cli.loading import choose_output, load_weights
from lightning_prune.cli.validation import has_validation, validate_if_possible
from lightning_prune.deploy.checkpoints import read_checkpoint, write_checkpoint
from lightning_prune.deploy.compression import file_size
from lightning_prune.deploy.files import need_libraries
from lightning_prune.deploy.onnx import LIBRARIES, OnnxFile, export_onnx
from lightning_prune.deploy.onnx_runtime import open_session, run_session
from lightning_prune.deploy.quantization import quantize_onnx, saturates
from lightning_prune.deploy.sparse_file import load_sparse, save_sparse
from lightning_prune.models.calls import Call, bind_call, make_call, refuse_missing_example
from lightning_prune.models.examples import CallRecorder
from lightning_prune.models.trees import find_tensors, move_to_cpu, replace_tensors
from lightning_prune.post_training.calibration import check_one_process, quiet, validate
from lightning_prune.reporting.pruning import change_table

_KEPT_KEYS = (  # the keys of a checkpoint that describe the model, not the training
    "pytorch-lightning_version",
    "hparams_name",
    "hparams_type",
    "hyper_parameters",
    "datamodule_hparams_name",
    "datamodule_hyper_parameters",
)

_NOT_VALIDATED = "the model has no validation_step, or nothing has a val_dataloader"

Say = Callable[[RenderableType], None]


def check_libraries(format: Literal["onnx", "sparse"]) -> None:
    """Raise ModuleNotFoundError if a library for the format is not installed."""
    need_libraries("zstandard", *(LIBRARIES if format == "onnx" else ["safetensors"]))


def write_onnx(
    trainer: Trainer,
    model: LightningModule,
    datamodule: LightningDataModule | None,
    *,
    output: Path,
    precision: Literal["fp32", "fp16", "int8"],
    batches: int,
    reduce_range: bool | None,
    say: Say,
) -> None:
    """Write an ONNX file and validate it in the place of the model's ``forward``.

    Validation records the inputs of ``forward``. With them the file is compared and 8 bits are
    calibrated; the first is the example of a model without ``example_input_array``.

    Args:
        trainer: Validates copies of the model.
        model: The model, which does not change.
        datamodule: The source of batches; by default the model.
        output: The file to write.
        precision: ``"fp32"``, ``"fp16"`` or ``"int8"``.
        batches: Number of calls of ``forward`` to compare and calibrate with.
        reduce_range: Whether 8-bit weights use 7 bits; by default if this machine needs it.
        say: Called with each line and table for the user.
    """
    before, recorded = _validate_and_record(trainer, model, datamodule, batches)
    example = _choose_example(model, recorded)
    if precision == "int8" and not recorded:
        raise ValueError(
            "need a validation_step that calls forward (as self(...)) to calibrate int8, got "
            f"{type(model).__name__}.validation_step without such a call"
        )
    items = _items(make_call(model, example))
    inputs = [call for call in recorded if _items(call) == items]
    if precision == "int8" and reduce_range is None:
        reduce_range = saturates()
    say("writing the ONNX file and comparing it with the model")
    if precision == "int8":
        file = _write_int8(trainer, model, output, example, inputs, reduce_range)
    else:
        file = export_onnx(model, output, example=example, inputs=inputs, precision=precision)
    _describe_onnx(say, file, precision, reduce_range)
    if not before:
        say(f"the quality of the file was not measured: {_NOT_VALIDATED}")
    elif not recorded:
        say(
            "the quality of the file was not measured: validation never calls the model's forward "
            "(as self(...)), which the file would replace"
        )
    else:
        _validate_onnx(trainer, model, datamodule, file.path, example, before, say)


def _write_int8(
    trainer: Trainer,
    model: LightningModule,
    output: Path,
    example: Any,
    inputs: Sequence[Call],
    reduce_range: bool | None,
) -> OnnxFile:
    """Write a file in 32 bits to a temporary folder, and quantize it."""
    calls = track(
        inputs,
        "calibrating 8 bits",
        transient=True,
        disable=trainer.progress_bar_callback is None,
    )
    with TemporaryDirectory() as folder:
        floats = export_onnx(model, Path(folder) / "floats", example=example, inputs=inputs)
        return quantize_onnx(floats.path, output, calls, reduce_range=reduce_range)


def _choose_example(model: LightningModule, recorded: Sequence[Call]) -> Any:
    """Return the model's ``example_input_array``, or else the first recorded input."""
    if model.example_input_array is not None:
        return model.example_input_array
    if not recorded:
        refuse_missing_example(model, "no call of forward in validation_step")
    return recorded[0]


def _describe_onnx(say: Say, file: OnnxFile, precision: str, reduce_range: bool | None) -> None:
    _describe_file(say, file.path, file.zeros, file.entries)
    origin = "a file in fp32" if precision == "int8" else "the model"
    say(
        f"the outputs of the file differ from those of {origin} by at most {file.difference:.2g} "
        "of the largest"
    )
    say(f"the file takes batches of {'any size' if file.any_batch else 'one size only'}")
    if precision == "int8":
        bits = 7 if reduce_range else 8
        say(f"the weights use {bits} of 8 bits (reduce_range={reduce_range})")


def _validate_onnx(
    trainer: Trainer,
    model: LightningModule,
    datamodule: LightningDataModule | None,
    path: Path,
    example: Any,
    before: Mapping[str, float],
    say: Say,
) -> None:
    """Validate a copy of the model with the file as ``forward``, and compare the metrics."""
    copy = deepcopy(model)
    copy.forward = _OnnxForward(model, path, example)  # type: ignore[method-assign]
    try:
        with quiet(".*"):  # validation has already warned about the model
            after = validate(trainer, copy, datamodule)
    except _MisfitError as misfit:
        say(f"the quality of the file was not measured: {misfit}")
    else:
        say(change_table(before, after, f"as {path.name}"))


def write_shrunk(
    trainer: Trainer,
    model: LightningModule,
    datamodule: LightningDataModule | None,
    *,
    ckpt_path: str,
    output: str | None,
    say: Say,
) -> None:
    """Remove zero channels and branches, and write a checkpoint without the training state.

    Args:
        trainer: Validates both models.
        model: The model of the config.
        datamodule: The source of batches; by default the model.
        ckpt_path: The checkpoint of the model. The new checkpoint keeps the hyperparameters.
        output: The checkpoint to write; None for a file beside the other.
        say: Called with each line and table for the user.
    """
    check_one_process(trainer, "to shrink")
    target = choose_output(ckpt_path, output, "shrunk")
    load_weights(model, ckpt_path)
    before = validate_if_possible(trainer, model, datamodule)
    example = find_example(trainer, model, datamodule, samples=2)
    say("finding which channels go together, and comparing the smaller model with the model")
    smaller = shrink(model, example)
    dense, left = (sum(p.numel() for p in each.parameters()) for each in (model, smaller))
    if dense == left:
        raise ValueError(
            f"need zero channels that can be removed, got none in ckpt_path='{ckpt_path}'; prune "
            "them in training with pattern: ChannelPattern, or branches with BranchPattern"
        )
    _write_shrunk_checkpoint(smaller, ckpt_path, target)
    say(f"the smaller model has the same outputs; parameters: {dense:,} before, {left:,} after")
    if before:
        after = validate_if_possible(trainer, smaller, datamodule)
        say(change_table(before, after, "shrunk"))
    say(f"written: {target}")


def _write_shrunk_checkpoint(smaller: nn.Module, source: str, output: Path) -> None:
    checkpoint = read_checkpoint(source)
    kept = {key: checkpoint[key] for key in _KEPT_KEYS if key in checkpoint}
    start = {"epoch": 0, "global_step": 0, "optimizer_states": [], "lr_schedulers": []}
    write_checkpoint(kept | start | {"callbacks": {}} | shrunk_state(smaller), output)


def write_sparse(
    trainer: Trainer,
    model: LightningModule,
    datamodule: LightningDataModule | None,
    *,
    output: Path,
    precision: Literal["fp32", "fp16"],
    say: Say,
) -> None:
    """Write a sparse file, load it back, and validate it if values were rounded.

    The file has the types of training: those of ``bf16-true`` are half as large. So its bytes are
    those of a `BytesBudget` in training.

    Args:
        trainer: Validates copies of the model.
        model: The model, which does not change.
        datamodule: The source of batches; by default the model.
        output: The file to write.
        precision: ``"fp32"`` or ``"fp16"``.
        say: Called with each line and table for the user.
    """
    say("writing the sparse file and loading it back")
    model = trainer.precision_plugin.convert_module(deepcopy(model))  # type: ignore[assignment]
    save_sparse(model, output, dtype=None if precision == "fp32" else torch.float16)
    copy = deepcopy(model)
    copy.load_state_dict(load_sparse(output))
    weights = [tensor for tensor in copy.state_dict().values() if tensor.dim() > 1]
    zeros = sum(int((weight == 0).sum()) for weight in weights)
    _describe_file(say, output, zeros, sum(weight.numel() for weight in weights))
    if precision == "fp32":
        say("the file loads back bit for bit, so it keeps the quality of the model")
    elif not has_validation(model, datamodule):
        say(f"the quality of the file was not measured: {_NOT_VALIDATED}")
    else:
        before = validate(trainer, deepcopy(model), datamodule)
        with quiet(".*"):
            after = validate(trainer, copy, datamodule)
        say(change_table(before, after, f"as {output.name}"))


def _describe_file(say: Say, path: Path, zeros: int, entries: int) -> None:
    size = file_size(path)
    say(f"written: {path}, {size.raw:,} bytes, {size.zstd:,} when compressed (zstd)")
    say(f"zeros: {zeros:,} of {entries:,} weights, sparsity {zeros / max(entries, 1):.4f}")


def _items(call: Call) -> list[torch.Size]:
    """Return the shapes without the first dimension, which a traced file requires."""
    return [tensor.shape[1:] for tensor in call.tensors]


def _validate_and_record(
    trainer: Trainer, model: LightningModule, datamodule: LightningDataModule | None, calls: int
) -> tuple[dict[str, float], list[Call]]:
    """Return the metrics of a validated copy, and the first calls of ``forward``."""
    if not has_validation(model, datamodule):
        return {}, []
    copied = deepcopy(model)
    with CallRecorder(copied, limit=calls) as recorder:
        return validate(trainer, copied, datamodule), recorder.calls


class _MisfitError(ValueError):
    """An input with a shape that a file does not take."""


class _OnnxForward:
    """Runs a file in the place of a model's ``forward``, and returns the same structure."""

    def __init__(self, model: LightningModule, path: Path, example: Any) -> None:
        self.model = model
        self.opened = open_session(path)
        copied = deepcopy(model).cpu().float().eval()
        call = move_to_cpu(make_call(copied, example))
        with torch.no_grad():
            self.template = copied(*call.arguments, **call.keywords)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        tensors = bind_call(self.model, args, kwargs).tensors
        for node, tensor in zip(self.opened.get_inputs(), tensors, strict=True):
            if len(node.shape) != tensor.dim() or any(
                isinstance(size, int) and size != found
                for size, found in zip(node.shape, tensor.shape, strict=True)
            ):
                raise _MisfitError(
                    f"validation calls forward with a shape of {list(tensor.shape)}, and the file "
                    f"takes {node.shape}"
                )
        answers = run_session(self.opened, move_to_cpu(tensors))
        device = tensors[0].device
        return replace_tensors(
            self.template,
            [
                answer.to(device, like.dtype)
                for answer, like in zip(answers, find_tensors(self.template), strict=True)
            ],
        )
