"""ExecuTorch files of pruned modules: checked against the module, with their zeros counted."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lightning_prune.arguments.checks import check_arguments
from lightning_prune.deploy.executorch_contents import count_zeros
from lightning_prune.deploy.executorch_runtime import EXTRA, LIBRARY, open_program, run_program
from lightning_prune.deploy.files import check_output_file, need_libraries, replace_file
from lightning_prune.deploy.onnx import quiet_export
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
from lightning_prune.models.progress import note_progress, show_progress
from lightning_prune.models.tracing import trace_one_batch
from lightning_prune.models.trees import move_to_cpu
from lightning_prune.models.undisturbed import keep_generators, keep_quiet

_TOLERANCE = 1e-4
_LOGGERS = ("executorch", "torchao", "torch.utils._pytree")


@dataclass(frozen=True, kw_only=True)
class ExecutorchFile:
    """The content of an ExecuTorch file, as counted and measured after it was written.

    Args:
        path: The file.
        size: Bytes of the file.
        zeros: Entries that are zero in the weights with two or more dimensions, read from the file.
        entries: All entries of these weights.
        difference: The largest difference of the outputs from those of the module, as a fraction
            of the largest magnitude of the same output.
        batch_size: The first dimension of the example, the only size of a batch that the file
            takes; None without inputs that have dimensions.
    """

    path: Path
    size: int
    zeros: int
    entries: int
    difference: float
    batch_size: int | None


@check_arguments
def export_executorch(
    module: nn.Module,
    path: str | Path,
    *,
    example: Any = None,
    inputs: Iterable[Any] = (),
    tolerance: float | None = None,
    progress: bool = True,
) -> ExecutorchFile:
    r"""Write a module's ``forward`` in eval mode as an ExecuTorch file, for phones and boards.

    A copy of the module on the CPU is traced (``torch.export``), so the module itself, its buffers,
    hooks and mode, and the state of random number generators stay as they are. XNNPACK runs the
    operators that it has; kernels of ExecuTorch run the others. All sizes of the inputs are those
    of the example, the size of the batch, too. The zeros of weights stay zeros: the function counts
    them in the file. It then runs the file in ExecuTorch's runtime on random inputs like the
    example, on the example and on ``inputs``. With :math:`y` an output of the module and
    :math:`y'` the same output of the file, the difference is

    .. math:: \max_{\text{outputs}} \frac{\max |y' - y|}{\max |y|}

    For outputs of integers and booleans it is the share of entries that differ.

    Args:
        module: Its ``forward`` takes and returns tensors, or nested tuples, lists and mappings of
            them; the file takes other arguments, too, always as in the example.
        path: The file, usually with the suffix ``.pte``. It is replaced at the end: if anything
            fails, an older file stays.
        example: The arguments of ``forward``: a tuple of positional arguments, a mapping of
            keyword arguments, or the only argument. By default ``module.example_input_array``.
        inputs: More examples of the same shapes to compare the outputs for, such as real data.
        tolerance: The largest difference allowed; by default 1e-4.
        progress: Whether to show a progress bar in a terminal.

    Raises:
        ValueError: If there is no example, the module cannot be traced or has operators that
            ExecuTorch lacks, the file cannot be written, the tolerance is negative, or if the
            outputs differ or zeros are lost.
        ModuleNotFoundError: If ExecuTorch is missing.
    """
    need_libraries(LIBRARY, extra=EXTRA)
    check_output_file(path, argument="path")
    limit = choose_tolerance(tolerance, _TOLERANCE)
    call = move_to_cpu(make_call(module, example))
    with keep_generators(), torch.no_grad(), quiet_export(), show_progress(progress):
        note_progress("tracing the model", 0, 1)
        copied = copy_uncompiled(module).cpu().float().eval()
        program = trace_one_batch(copied, call)
        calls = collect_calls(copied, call, inputs, any_batch=False)
        needed = count_needed_zeros(copied, program)
        with replace_file(path) as file:
            note_progress("writing the ExecuTorch file", 0, 1)
            file.write_bytes(_lower(program))
            run = partial(run_program, open_program(file), call)
            difference = compare_answers(copied, run, calls, limit)
            zeros, entries = count_zeros(file)
            refuse_lost_zeros(zeros, needed)
            size = file.stat().st_size
    return ExecutorchFile(
        path=Path(path),
        size=size,
        zeros=zeros,
        entries=entries,
        difference=difference,
        batch_size=call.batch_size,
    )


def _lower(program: torch.export.ExportedProgram) -> bytes:
    """Return the file of a traced module.

    Raises:
        ValueError: If ExecuTorch lacks an operator.
    """
    try:
        with keep_quiet(*_LOGGERS, warned=[".*"]):  # nothing here is of the module's own code
            from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
            from executorch.exir import to_edge_transform_and_lower

            lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
            return bytes(lowered.to_executorch().buffer)
    except Exception as error:  # of many kinds, from the passes of ExecuTorch
        raise ValueError(
            f"need operators that ExecuTorch has, got a module of others: {describe_error(error)}"
        ) from error
