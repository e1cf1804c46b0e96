"""ONNX files of pruned modules: checked against the module, with their zeros counted."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from lightning_prune.arguments.checks import check_arguments
from lightning_prune.deploy.files import check_output_file, need_libraries, replace_file
from lightning_prune.deploy.onnx_names import describe_model, name_outputs
from lightning_prune.deploy.onnx_runtime import open_session, run_call
from lightning_prune.deploy.parity import (
    choose_tolerance,
    collect_calls,
    compare_answers,
    count_needed_zeros,
    refuse_lost_zeros,
)
from lightning_prune.models.calls import make_call
from lightning_prune.models.compiled import copy_uncompiled
from lightning_prune.models.errors import describe_error
from lightning_prune.models.free_sizes import DynamicShapes, find_free_sizes
from lightning_prune.models.names import named_modules
from lightning_prune.models.progress import note_progress, show_progress
from lightning_prune.models.torch_floors import TorchFloor
from lightning_prune.models.tracing import trace_any_batch
from lightning_prune.models.trees import find_tensors, move_to_cpu
from lightning_prune.models.undisturbed import keep_generators, keep_quiet

LIBRARIES = ("onnx", "onnxscript", "onnxruntime")
Precision = Literal["fp32", "fp16"]

_TOLERANCES = {"fp32": 1e-4, "fp16": 1e-2}
_LARGEST = 2**31 - 1  # bytes in a protobuf
_WARNED = (  # by torch, of its own code
    r"`isinstance\(treespec",
    "The tensor attributes? .* assigned during export",
    "_check_is_size will be removed",
)


@dataclass(frozen=True, kw_only=True)
class OnnxFile:
    """The content of an ONNX file, as counted and measured after it was written.

    Args:
        path: The file.
        size: Bytes of the file.
        zeros: Entries that are zero in the weights with two or more dimensions.
        entries: All entries of these weights.
        difference: The largest difference of the outputs from those of the module, or of the file,
            that it was made from, as a fraction of the largest magnitude of the same output.
        any_batch: Whether the file takes batches of any size; else only of the example's.
    """

    path: Path
    size: int
    zeros: int
    entries: int
    difference: float
    any_batch: bool


@check_arguments
def export_onnx(
    module: nn.Module,
    path: str | Path,
    *,
    example: Any = None,
    inputs: Iterable[Any] = (),
    precision: Precision = "fp32",
    tolerance: float | None = None,
    dynamic_shapes: DynamicShapes | None = None,
    metadata: Mapping[str, str] | None = None,
    progress: bool = True,
) -> OnnxFile:
    r"""Write a module's ``forward`` in eval mode as an ONNX file, if it answers as the module does.

    A copy of the module on the CPU is traced (``torch.export``), so the module itself, its buffers,
    hooks and mode, and the state of random number generators stay as they are. The first dimension
    of the inputs may then be of any size, if the module allows it; for texts of any length name
    more dimensions in ``dynamic_shapes``. The inputs of the file have the names of the arguments,
    and the outputs those in the result of ``forward``. Normalizations are merged into convolutions.
    The zeros of weights stay zeros: the function counts them. It then runs the file in ONNX Runtime
    on random inputs like the example (of the same range, and in batches of 1 and other sizes), on
    the example and on ``inputs``. With :math:`y` an output of the module and :math:`y'` the same
    output of the file, the difference is

    .. math:: \max_{\text{outputs}} \frac{\max |y' - y|}{\max |y|}

    For outputs of integers and booleans it is the share of entries that differ.

    Args:
        module: Its ``forward`` takes and returns tensors, or nested tuples, lists and mappings of
            them; other arguments become constants.
        path: The file. It is replaced at the end: if anything fails, an older file stays.
        example: The arguments of ``forward``: a tuple of positional arguments, a mapping of
            keyword arguments, or the only argument. By default ``module.example_input_array``.
        inputs: More examples to compare the outputs for, such as real data; of the same shapes,
            but for the first dimension where that is free.
        precision: ``"fp32"``, or ``"fp16"`` for weights and activations in half precision; inputs
            and outputs of the file are float32 in both.
        tolerance: The largest difference allowed; by default 1e-4, and 1e-2 in ``"fp16"``, which is
            about twenty roundings of :math:`2^{-11}` that add up.
        dynamic_shapes: More dimensions of any size, by the name of the input, such as
            ``{"ids": [1], "mask": [1]}``; dimensions that the module needs equal stay so. The file
            is compared in another size, too.
        metadata: More facts for the metadata of the file, which holds the version of this package
            and the sparsity. Each name gets the prefix ``"lightning_prune."``.
        progress: Whether to show a progress bar in a terminal.

    Raises:
        ValueError: If there is no example, the module cannot be traced (for any size where
            ``dynamic_shapes`` asks for it) or has operators that ONNX lacks, the file would be
            larger than ONNX allows (2 GB) or cannot be written, the tolerance is negative, or if
            the outputs differ or zeros are lost.
        ModuleNotFoundError: If a library is missing.
    """
    need_libraries(*LIBRARIES)
    check_output_file(path, argument="path")
    _refuse_larger_than_onnx(module)
    limit = choose_tolerance(tolerance, _TOLERANCES[precision])
    call = move_to_cpu(make_call(module, example))
    with keep_generators(), torch.no_grad(), quiet_export(), show_progress(progress):
        note_progress("tracing the model", 0, 1)
        copied = copy_uncompiled(module).cpu().float().eval()
        free = find_free_sizes(copied, call, dynamic_shapes or {})
        program, any_batch = trace_any_batch(copied, call, free)
        calls = collect_calls(copied, call, inputs, any_batch, free)
        with replace_file(path) as file:
            note_progress("writing the ONNX file", 0, 1)
            write_program(program, file, precision, metadata or {})
            with _refusing_overflow(copied, precision):
                run = partial(run_call, open_session(file))
                difference = compare_answers(copied, run, calls, limit)
            zeros, entries = count_zeros(file)
            refuse_lost_zeros(zeros, count_needed_zeros(copied, program))
            size = file.stat().st_size
    return OnnxFile(
        path=Path(path),
        size=size,
        zeros=zeros,
        entries=entries,
        difference=difference,
        any_batch=any_batch,
    )


def write_program(
    program: torch.export.ExportedProgram,
    file: Path,
    precision: Precision = "fp32",
    facts: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Write a traced module as an ONNX file.

    Args:
        program: The graph.
        file: The file.
        precision: As in `export_onnx`.
        facts: More metadata of the file, by name.

    Raises:
        ValueError: If ONNX lacks an operator, or torch is too old for the outputs.
    """
    import onnx
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    if None in program.graph.output_node().args[0]:
        TorchFloor.ONNX_OF_NONE.check()
    try:
        translated = torch.onnx.export(program, dynamo=True, verbose=False)
    except torch.onnx.OnnxExporterError as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise ValueError(
            f"need operators that ONNX has, got a module of others: {describe_error(cause)}"
        ) from error
    assert translated is not None
    ClearMetadataAndDocStringPass()(translated.model)  # it names folders of this machine
    name_outputs(program, translated.model)
    translated.model.metadata_props.update(describe_model(program, facts))
    if precision == "fp32":
        translated.save(file, external_data=False)
    else:
        onnx.save(_halve(translated.model_proto), file)


def count_zeros(file: Path) -> tuple[int, int]:
    """Return how many entries of a file's weights are zero, and the number of entries.

    In 8 bits, 0 stands for zero in a symmetric weight, and another number in an embedding.
    """
    import onnx

    graph = onnx.load(file).graph
    constants = {c.name: onnx.numpy_helper.to_array(c) for c in graph.initializer}
    points = {
        node.input[0]: constants[node.input[2]]
        for node in graph.node
        if node.op_type == "DequantizeLinear" and len(node.input) > 2
    }
    zeros = entries = 0
    for name, weight in constants.items():
        if weight.ndim > 1:
            point = points.get(name, 0)
            zeros += int((weight == (point if np.size(point) == 1 else 0)).sum())
            entries += weight.size
    return zeros, entries


@contextmanager
def quiet_export() -> Iterator[None]:
    """Leave out the messages of exporter and quantizer to those who work on them."""
    handler = logging.NullHandler()
    root = logging.getLogger()
    root.addHandler(handler)  # without a handler, the quantizer's first warning would install one
    try:
        with keep_quiet("", "torch.onnx", "torch.fx", "onnxscript", warned=_WARNED):
            yield
    finally:
        root.removeHandler(handler)


def _halve(model: Any) -> Any:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    return convert_float_to_float16(model, keep_io_types=True)


def _refuse_larger_than_onnx(module: nn.Module) -> None:
    size = sum(tensor.nbytes for tensor in module.state_dict().values())
    if size > _LARGEST:
        raise ValueError(
            f"need a module of at most {_LARGEST:,} bytes, which is all ONNX can hold, got {size:,}"
        )


@contextmanager
def _refusing_overflow(module: nn.Module, precision: Precision) -> Iterator[None]:
    """Raise ValueError if a part of a module has larger outputs than half precision can hold.

    ONNX Runtime does not show it: where its CPU kernels are of float32, nothing overflows.
    """
    largest = torch.finfo(torch.float16).max

    def refuse(part: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        for tensor in find_tensors((args, kwargs, output)):
            if tensor.is_floating_point() and (tensor.isfinite() & (tensor.abs() > largest)).any():
                raise ValueError(
                    f"need activations of at most {largest:g} for precision='fp16', got "
                    f"{tensor.abs().max():g} in '{names[part]}'; no file is written"
                )

    parts = named_modules(module) if precision == "fp16" else {}
    names = {part: name or type(part).__name__ for name, part in parts.items()}
    handles = [part.register_forward_hook(refuse, with_kwargs=True) for part in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
