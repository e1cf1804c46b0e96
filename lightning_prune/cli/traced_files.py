"""ONNX and ExecuTorch files, written from a model and validated by the user's own validation."""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from lightning_prune.callbacks.namespace import LightningDataModule, LightningModule, Trainer
from lightning_prune.callbacks.printing import shows_progress
from lightning_prune.cli.deployment import NOT_VALIDATED, describe_file
from lightning_prune.cli.file_forward import FileForward, MisfitError, Run, run_in_pieces
from lightning_prune.cli.saying import Say
from lightning_prune.cli.validation import has_validation
from lightning_prune.deploy.executorch import export_executorch
from lightning_prune.deploy.executorch_runtime import open_program, run_program
from lightning_prune.deploy.onnx import OnnxFile, export_onnx
from lightning_prune.deploy.onnx_runtime import open_session, run_call
from lightning_prune.deploy.quantization import quantize_onnx, saturates
from lightning_prune.models.calls import Call, make_call, refuse_missing_example
from lightning_prune.models.examples import CallRecorder
from lightning_prune.models.free_sizes import DynamicShapes, find_free_sizes, fixed_sizes
from lightning_prune.post_training.calibration import validate
from lightning_prune.post_training.held_fits import quiet
from lightning_prune.reporting.pruning import change_table


def write_onnx(
    trainer: Trainer,
    model: LightningModule,
    datamodule: LightningDataModule | None,
    *,
    output: Path,
    precision: Literal["fp32", "fp16", "int8"],
    batches: int,
    reduce_range: bool | None,
    dynamic_shapes: DynamicShapes,
    facts: Mapping[str, str],
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
        dynamic_shapes: Dimensions of any size, by the name of the input.
        facts: Facts for the metadata of the file, by name.
        say: Called with each line and table for the user.
    """
    before, recorded = _validate_and_record(trainer, model, datamodule, batches)
    example = _choose_example(model, recorded)
    if precision == "int8" and not recorded:
        raise ValueError(
            "need a validation_step that calls forward (as self(...)) to calibrate int8, got "
            f"{type(model).__name__}.validation_step without such a call"
        )
    call = make_call(model, example)
    free = find_free_sizes(model, call, dynamic_shapes)
    items = fixed_sizes(call, 1, free)
    inputs = [each for each in recorded if fixed_sizes(each, 1, free) == items]
    progress = shows_progress(trainer)
    write = partial(
        export_onnx,
        model,
        example=example,
        inputs=inputs,
        dynamic_shapes=dynamic_shapes,
        metadata=facts,
        progress=progress,
    )
    if precision == "int8" and reduce_range is None:
        reduce_range = saturates()
    say("writing the ONNX file and comparing it with the model")
    if precision == "int8":
        file = _write_int8(write, output, inputs, reduce_range, progress)
    else:
        file = write(output, precision=precision)
    _describe_onnx(say, file, precision, reduce_range)
    session = open_session(file.path)
    shapes = [node.shape for node in session.get_inputs()]
    forward = FileForward(model, partial(run_call, session), shapes, example)
    _validate_file(trainer, datamodule, forward, file.path, before, bool(recorded), say)


def write_executorch(
    trainer: Trainer,
    model: LightningModule,
    datamodule: LightningDataModule | None,
    *,
    output: Path,
    batches: int,
    say: Say,
) -> None:
    """Write an ExecuTorch file and validate it in the place of the model's ``forward``.

    Validation records the inputs of ``forward``, as in `write_onnx`. The file takes batches of one
    size, so it is compared with the first samples of each, and validated in pieces of this size.

    Args:
        trainer: Validates copies of the model.
        model: The model, which does not change.
        datamodule: The source of batches; by default the model.
        output: The file to write.
        batches: Number of calls of ``forward`` to compare with.
        say: Called with each line and table for the user.
    """
    before, recorded = _validate_and_record(trainer, model, datamodule, batches)
    example = _choose_example(model, recorded)
    call = make_call(model, example)
    shapes = [tensor.shape for tensor in call.tensors]
    samples = [each.take_samples(call.batch_size or 0) for each in recorded]
    inputs = [each for each in samples if [tensor.shape for tensor in each.tensors] == shapes]
    say("writing the ExecuTorch file and comparing it with the model")
    progress = shows_progress(trainer)
    file = export_executorch(model, output, example=example, inputs=inputs, progress=progress)
    describe_file(say, file.path, file.zeros, file.entries)
    _describe_difference(say, file.difference, "the model")
    say(f"the file takes batches of {file.batch_size} only, the size of the example")
    run: Run = partial(run_program, open_program(file.path), call)
    free = [
        ["batch", *tensor.shape[1:]] if call.has_samples(tensor) else list(tensor.shape)
        for tensor in call.tensors
    ]
    if file.batch_size is not None:
        run = partial(run_in_pieces, run, file.batch_size)
    forward = FileForward(model, run, free, example)
    _validate_file(trainer, datamodule, forward, file.path, before, bool(recorded), say)


def _write_int8(
    write: Callable[[Path], OnnxFile],
    output: Path,
    inputs: Sequence[Call],
    reduce_range: bool | None,
    progress: bool,
) -> OnnxFile:
    """Write a file in 32 bits to a temporary folder, and quantize it."""
    with TemporaryDirectory() as folder:
        floats = write(Path(folder) / "floats")
        return quantize_onnx(
            floats.path, output, inputs, reduce_range=reduce_range, progress=progress
        )


def _choose_example(model: LightningModule, recorded: Sequence[Call]) -> Any:
    """Return the model's ``example_input_array``, or else the first recorded input."""
    if model.example_input_array is not None:
        return model.example_input_array
    if not recorded:
        refuse_missing_example(model, "no call of forward in validation_step")
    return recorded[0]


def _describe_onnx(say: Say, file: OnnxFile, precision: str, reduce_range: bool | None) -> None:
    describe_file(say, file.path, file.zeros, file.entries)
    _describe_difference(
        say, file.difference, "a file in fp32" if precision == "int8" else "the model"
    )
    say(f"the file takes batches of {'any size' if file.any_batch else 'one size only'}")
    if precision == "int8":
        bits = 7 if reduce_range else 8
        say(f"the weights use {bits} of 8 bits (reduce_range={reduce_range})")


def _describe_difference(say: Say, difference: float, origin: str) -> None:
    say(
        f"the outputs of the file differ from those of {origin} by at most {difference:.2g} of the "
        "largest"
    )


def _validate_file(
    trainer: Trainer,
    datamodule: LightningDataModule | None,
    forward: FileForward,
    path: Path,
    before: Mapping[str, float],
    has_calls: bool,
    say: Say,
) -> None:
    """Validate a copy of the model with the file as ``forward``, and compare the metrics."""
    if not before:
        say(f"the quality of the file was not measured: {NOT_VALIDATED}")
        return
    if not has_calls:
        say(
            "the quality of the file was not measured: validation never calls the model's forward "
            "(as self(...)), which the file would replace"
        )
        return
    copy = deepcopy(forward.model)
    copy.forward = forward  # type: ignore[method-assign]
    try:
        with quiet(".*"):  # validation has already warned about the model
            after = validate(trainer, copy, datamodule)
    except MisfitError as misfit:
        say(f"the quality of the file was not measured: {misfit}")
    else:
        say(change_table(before, after, f"as {path.name}"))


def _validate_and_record(
    trainer: Trainer, model: LightningModule, datamodule: LightningDataModule | None, calls: int
) -> tuple[dict[str, float], list[Call]]:
    """Return the metrics of a validated copy, and the first calls of ``forward``."""
    if not has_validation(model, datamodule):
        return {}, []
    copied = deepcopy(model)
    with CallRecorder(copied, limit=calls) as recorder:
        return validate(trainer, copied, datamodule), recorder.calls
