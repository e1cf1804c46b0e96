"""Graphs of a module's ``forward``, by `torch.export`."""

import inspect
import io
import logging
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import transformer
from torch.utils._pytree import tree_map

from lightning_prune.models.calls import Call
from lightning_prune.models.compiled import unwrap_compiled
from lightning_prune.models.errors import describe_error
from lightning_prune.models.torch_floors import TorchFloor
from lightning_prune.models.undisturbed import keep_generators, keep_quiet, use_plain_kernels

_CHANGED_ATTRIBUTES = re.compile(  # as older versions of torch say it
    "assigned during export|attrs were (created|deleted) in the model|Node arity mismatch"
)


def trace(module: nn.Module, call: Call, *, shapes: Any = None) -> torch.export.ExportedProgram:
    """Trace a module in its present mode, by the operations that fused kernels are made of.

    Compiled parts are traced as the modules inside. Random number generators stay as they are.
    `torch.export` prints a graph when it fails; here nothing is printed.

    Args:
        module: Its buffers change as by any forward pass: give a copy.
        call: The arguments of ``forward``.
        shapes: The ``dynamic_shapes`` of `torch.export.export`; by default all sizes are fixed.

    Raises:
        ValueError: If ``forward`` sets attributes, and torch is too old to trace it.
    """
    with (
        use_plain_kernels(),
        _take_masks_as_given(),
        _hide_graphs(),
        _leave_out_stacks(),
        keep_generators(),
        torch.compiler.set_stance("force_eager"),
        torch._dynamo.config.patch(error_on_nested_fx_trace=False),  # torch 2.8 forgets the stance
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", FutureWarning)  # of torch to itself
        # As recurrent layers do with the list of their weights.
        warnings.filterwarnings("ignore", "The tensor attributes? .* assigned during export")
        try:
            return torch.export.export(
                unwrap_compiled(module), *call, dynamic_shapes=shapes, strict=False
            )
        except ValueError as error:
            if _CHANGED_ATTRIBUTES.search(str(error)):
                TorchFloor.FORWARD_WITH_ATTRIBUTES.check()
            raise


def trace_any_batch(module: nn.Module, call: Call) -> tuple[torch.export.ExportedProgram, bool]:
    """Trace a module for batches of any size, or else for the size of the call.

    Args:
        module: As in `trace`.
        call: The arguments of ``forward``.

    Returns:
        The graph, and whether the first dimension of the inputs with samples is free in it.

    Raises:
        ValueError: If `torch.export` cannot trace the module.
    """
    if call.batch_size is not None:
        try:
            program = _trace_free_batch(module, call)
        except Exception:  # of the model's own code; the size of the call may still work
            program = None
        if program is not None:
            return program, True
    return trace_one_batch(module, call), False


def trace_one_batch(module: nn.Module, call: Call) -> torch.export.ExportedProgram:
    """Trace a module for the sizes of the call.

    Args:
        module: As in `trace`.
        call: The arguments of ``forward``.

    Raises:
        ValueError: If `torch.export` cannot trace the module.
    """
    try:
        return trace(module, call)
    except Exception as error:
        raise ValueError(
            f"need a module that torch.export can trace, got a {type(module).__name__}: "
            f"{describe_error(error)}"
        ) from error


@contextmanager
def _take_masks_as_given() -> Iterator[None]:
    """Let transformer layers of torch use a mask without a look at the entries.

    To take a faster kernel, they compare an attention mask with the causal mask, and branch on the
    result. A graph cannot branch on entries. Without the comparison the results are the same.
    """
    detect = transformer._detect_is_causal_mask

    def believe(
        mask: Tensor | None, is_causal: bool | None = None, size: int | None = None
    ) -> bool:
        return is_causal is True

    transformer._detect_is_causal_mask = believe
    try:
        yield
    finally:
        transformer._detect_is_causal_mask = detect


@contextmanager
def _leave_out_stacks() -> Iterator[None]:
    """Record no stack of Python for each operation, which takes about a tenth of the time."""
    before = getattr(
        torch.fx.config, "do_not_emit_stack_traces", False
    )  # missing before torch 2.11
    torch.fx.config.do_not_emit_stack_traces = True
    try:
        yield
    finally:
        torch.fx.config.do_not_emit_stack_traces = before


@contextmanager
def _hide_graphs() -> Iterator[None]:
    """Leave out the graph that `torch.export` prints to stderr before it raises an error."""
    printed = io.StringIO()
    loggers = "torch.export", "torch.fx.experimental.symbolic_shapes"
    with redirect_stderr(printed), keep_quiet(*loggers, level=logging.CRITICAL):
        yield
    sys.stderr.write(printed.getvalue())  # of the module's own code


def _trace_free_batch(module: nn.Module, call: Call) -> torch.export.ExportedProgram | None:
    """Return the graph for batches of any size; None if the size has become a constant."""
    from torch.fx.experimental.symbolic_shapes import is_concrete_int

    forward = unwrap_compiled(module).forward
    bound = inspect.signature(forward).bind(*call.arguments, **call.keywords)

    def free(leaf: Any) -> dict[int, Any] | None:
        is_free = isinstance(leaf, Tensor) and call.has_samples(leaf)
        return {0: torch.export.Dim.AUTO} if is_free else None

    shapes = tree_map(free, dict(bound.arguments))
    program = trace(module, call.double_single_sample(), shapes=shapes)
    names = program.graph_signature.user_inputs
    inputs = [node.meta["val"] for node in program.graph.nodes if node.name in names]
    traced = [value for value in inputs if isinstance(value, Tensor)]
    for given, value in zip(call.tensors, traced, strict=True):
        if call.has_samples(given) and (value.ndim == 0 or is_concrete_int(value.shape[0])):
            return None
    return program
