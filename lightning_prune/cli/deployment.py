"""A checkpoint exported, and the file's quality by the user's own validation."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities.model_helpers import is_overridden
from rich.console import RenderableType
from rich.progress import track

from lightning_prune.channels.shrink import shrink, shrunk_state
from lightning_prune.cli.example import find_example
from lightning_prune.deploy.compression import file_size
from lightning_prune.deploy.onnx import export_onnx
from lightning_prune.deploy.onnx_runtime import open_session, run_session
from lightning_prune.deploy.quantization import quantize_onnx
from lightning_prune.deploy.sparse_file import load_sparse, save_sparse
from lightning_prune.models.calls import Call, bind_call, make_call, refuse_missing_example
from lightning_prune.models.examples import CallRecorder
from lightning_prune.models.trees import find_tensors, move_to_cpu, replace_tensors
from lightning_prune.post_training.calibration import quiet, validated
from lightning_prune.reporting.pruning import change_table

_OF_THE_MODEL = (  # what of a checkpoint is not of its training
    "pytorch-lightning_version",
    "hparams_name",
    "hparams_type",
    "hyper_parameters",
    "datamodule_hparams_name",
    "datamodule_hyper_parameters",
)

Say = Callable[[RenderableType], None]


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

    What ``forward`` is called with while the model is validated serves as real inputs: to compare
    the answers for, to calibrate 8 bits with, and as the example if the model has none.

    Args:
        trainer: Validates copies of the model.
        model: Left as it is.
        datamodule: Where batches come from; by default from the model.
        output: The file to write.
        precision: ``"fp32"``, ``"fp16"`` or ``"int8"``.
        batches: With how many calls of ``forward`` files are compared and calibrated.
        reduce_range: Of `quantize_onnx`.
        say: Told what is done, and what came of it.
    """
    before, inputs = _validated_and_watched(trainer, model, datamodule, batches)
    example = model.example_input_array
    if example is None:
        if not inputs:
            refuse_missing_example(model, "no call of forward in validation_step")
        example = inputs[0]
    if precision == "int8" and not inputs:
        raise ValueError(
            "need a validation_step that calls forward (as self(...)) to calibrate int8 with its "
            f"inputs, got one that does not in {type(model).__name__}"
        )
    items = _items(make_call(model, example))
    inputs = [call for call in inputs if _items(call) == items]
    say("writing the ONNX file and comparing it with the model")
    if precision == "int8":
        with TemporaryDirectory() as folder:
            floats = export_onnx(model, Path(folder) / "floats", example=example, inputs=inputs)
            calls = track(
                inputs,
                "calibrating 8 bits",
                transient=True,
                disable=trainer.progress_bar_callback is None,
            )
            file = quantize_onnx(floats.path, output, calls, reduce_range=reduce_range)
    else:
        file = export_onnx(model, output, example=example, inputs=inputs, precision=precision)
    _say_of_the_file(say, file.path, file.zeros, file.entries)
    origin = "a file in fp32" if precision == "int8" else "the model"
    say(
        f"its answers differ from those of {origin} by at most {file.difference:.2g} of the largest"
    )
    say(f"it takes batches of {'any size' if file.any_batch else 'one size only'}")
    if precision == "int8":
        say(f"its weights use {7 if reduce_range else 8} of 8 bits (reduce_range={reduce_range})")
    if not before:
        say(f"its quality was not measured: {_NOT_VALIDATED}")
        return
    if not inputs:
        say(
            "its quality was not measured: validation never calls the model's forward (as "
            "self(...)), whose place the file takes"
        )
        return
    copy = deepcopy(model)
    copy.forward = _OnnxForward(model, file.path, example)  # type: ignore[method-assign]
    try:
        with quiet(".*"):  # of what validation warns has been said of the model
            after = validated(trainer, copy, datamodule)
    except _MisfitError as misfit:
        say(f"its quality was not measured: {misfit}")
        return
    say(change_table(before, after, f"as {file.path.name}"))


def write_shrunk(
    trainer: Trainer,
    model: LightningModule,
    datamodule: LightningDataModule | None,
    *,
    source: Path,
    output: Path,
    say: Say,
) -> None:
    """Remove zero channels, and write a checkpoint that holds the smaller model and no training.

    Args:
        trainer: Validates both models.
        model: Left as it is.
        datamodule: Where batches come from; by default from the model.
        source: The checkpoint that was loaded, whose hyper-parameters are kept.
        output: The checkpoint to write.
        say: Told what is done, and what came of it.
    """
    before = _validated(trainer, model, datamodule)
    example = find_example(trainer, model, datamodule, samples=2)
    say("finding which channels go together, and comparing the model without those that are zero")
    smaller = shrink(model, example)
    parameters = [sum(p.numel() for p in each.parameters()) for each in (model, smaller)]
    if parameters[0] == parameters[1]:
        raise ValueError(
            f"need channels that are zero in all places, got none in ckpt_path='{source}'; prune "
            "them in training with pattern: ChannelPattern"
        )
    checkpoint = torch.load(source, map_location="cpu", weights_only=True)
    kept = {key: checkpoint[key] for key in _OF_THE_MODEL if key in checkpoint}
    nothing = {"epoch": 0, "global_step": 0, "optimizer_states": [], "lr_schedulers": []}
    torch.save(kept | nothing | {"callbacks": {}} | shrunk_state(smaller), output)
    say(
        f"its outputs are those of the model; parameters: {parameters[0]:,} before, "
        f"{parameters[1]:,} after"
    )
    if before:
        after = _validated(trainer, smaller, datamodule)
        say(change_table(before, after, "shrunk"))
    say(f"written: {output}")


def write_sparse(
    trainer: Trainer,
    model: LightningModule,
    datamodule: LightningDataModule | None,
    *,
    output: Path,
    precision: Literal["fp32", "fp16"],
    say: Say,
) -> None:
    """Write a sparse file, load it back, and validate it if values were rounded."""
    say("writing the sparse file and loading it back")
    save_sparse(model, output, dtype=None if precision == "fp32" else torch.float16)
    copy = deepcopy(model)
    copy.load_state_dict(load_sparse(output))
    weights = [tensor for tensor in copy.state_dict().values() if tensor.dim() > 1]
    zeros = sum(int((weight == 0).sum()) for weight in weights)
    _say_of_the_file(say, output, zeros, sum(weight.numel() for weight in weights))
    if precision == "fp32":
        say("it loads back bit for bit, so its quality is the model's")
    elif not _validates(model, datamodule):
        say(f"its quality was not measured: {_NOT_VALIDATED}")
    else:
        before = validated(trainer, deepcopy(model), datamodule)
        with quiet(".*"):
            after = validated(trainer, copy, datamodule)
        say(change_table(before, after, f"as {output.name}"))


def _say_of_the_file(say: Say, path: Path, zeros: int, entries: int) -> None:
    size = file_size(path)
    say(f"written: {path}, {size.raw:,} bytes, {size.zstd:,} when compressed (zstd)")
    say(f"zeros: {zeros:,} of {entries:,} weights, sparsity {zeros / max(entries, 1):.4f}")


def _validated(
    trainer: Trainer, model: LightningModule, datamodule: LightningDataModule | None
) -> dict[str, float]:
    """Return what validation logs for a copy; nothing if there is none."""
    return validated(trainer, deepcopy(model), datamodule) if _validates(model, datamodule) else {}


_NOT_VALIDATED = "the model has no validation_step, or nothing has a val_dataloader"


def _validates(model: LightningModule, datamodule: LightningDataModule | None) -> bool:
    sources = (model, datamodule)
    return is_overridden("validation_step", model) and any(
        source is not None and is_overridden("val_dataloader", source) for source in sources
    )


def _items(call: Call) -> list[torch.Size]:
    """Return the shapes without their first dimension; a traced file is for these."""
    return [tensor.shape[1:] for tensor in call.tensors]


def _validated_and_watched(
    trainer: Trainer, model: LightningModule, datamodule: LightningDataModule | None, calls: int
) -> tuple[dict[str, float], list[Call]]:
    """Return the metrics that validation logs for a copy, and the first calls of ``forward``."""
    if not _validates(model, datamodule):
        return {}, []
    copied = deepcopy(model)
    with CallRecorder(copied, limit=calls) as recorder:
        return validated(trainer, copied, datamodule), recorder.calls


class _MisfitError(ValueError):
    """An input that a file does not take."""


class _OnnxForward:
    """Answers in the place of a model's ``forward``, and in the same nest."""

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
