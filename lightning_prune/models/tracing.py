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

from lightning_prune.models.calls import Call, bind_arguments
from lightning_prune.models.compiled import unwrap_compiled
from lightning_prune.models.errors import describe_error
from lightning_prune.models.free_sizes import FreeSizes, name_tensors
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


def trace_any_batch(
    module: nn.Module, call: Call, free: FreeSizes = ()
) -> tuple[torch.export.ExportedProgram, bool]:
    """Trace a module for batches of any size, or else for the size of the call.

    Args:
        module: As in `trace`.
        call: The arguments of ``forward``.
        free: Other dimensions that must be free, for each tensor; by default none.

    Returns:
        The graph, and whether the first dimension of the inputs with samples is free in it.

    Raises:
        ValueError: If `torch.export` cannot trace the module, or the other dimensions are not free.
    """
    must = [set(dimensions) for dimensions in free] or [set() for _ in call.tensors]
    may = [
        {*dimensions, 0} if call.has_samples(tensor) else dimensions
        for tensor, dimensions in zip(call.tensors, must, strict=True)
    ]
    if call.batch_size is not None:
        try:
            program = _trace_free(module, call.double_single_sample(), may)
        except Exception:  # of the model's own code; the size of the call may still work
            program = None
        if program is not None:
            return program, True
    if not any(must):
        return trace_one_batch(module, call), False
    with _explaining(module):
        program = _trace_free(module, call, must)
    if program is None:
        named = {n: sorted(d) for n, d in zip(name_tensors(module, call), must, strict=True) if d}
        raise ValueError(
            f"need a forward that takes any size for dynamic_shapes={named}, got a "
            f"{type(module).__name__} that turns a size into a constant"
        )
    return program, False


def trace_one_batch(module: nn.Module, call: Call) -> torch.export.ExportedProgram:
    """Trace a module for the sizes of the call.

    Args:
        module: As in `trace`.
        call: The arguments of ``forward``.

    Raises:
        ValueError: If `torch.export` cannot trace the module.
    """
    with _explaining(module):
        return trace(module, call)


@contextmanager
def _explaining(module: nn.Module) -> Iterator[None]:
    """Raise ValueError with the reason if `torch.export` cannot trace a module."""
    try:
        yield
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


def _trace_free(
    module: nn.Module, call: Call, free: FreeSizes
) -> torch.export.ExportedProgram | None:
    """Return the graph with free dimensions; None if the size of one has become a constant."""
    from torch.fx.experimental.symbolic_shapes import is_concrete_int

    dimensions = iter(free)

    def mark(leaf: Any) -> dict[int, Any] | None:
        if not isinstance(leaf, Tensor):
            return None
        return dict.fromkeys(next(dimensions), torch.export.Dim.AUTO) or None

    with _name_keywords(unwrap_compiled(module), call):
        program = trace(module, call, shapes=tree_map(mark, bind_arguments(module, call)))
    names = program.graph_signature.user_inputs
    inputs = [node.meta["val"] for node in program.graph.nodes if node.name in names]
    traced = [value for value in inputs if isinstance(value, Tensor)]
    for value, marked in zip(traced, free, strict=True):
        if any(value.ndim <= each or is_concrete_int(value.shape[each]) for each in marked):
            return None
    return program


@contextmanager
def _name_keywords(module: nn.Module, call: Call) -> Iterator[None]:
    """Show ``forward(**batch)`` with the names of a call, by which `torch.export` takes shapes."""
    forward = module.forward
    signature = inspect.signature(forward)
    kinds = {each.kind: each for each in signature.parameters.values()}
    if inspect.Parameter.VAR_KEYWORD not in kinds:
        yield
        return
    own = vars(module).get("forward")
    known = [each for each in signature.parameters.values() if each.kind is not each.VAR_KEYWORD]
    more = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY)
        for name in call.keywords
        if name not in signature.parameters
    ]

    def named(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, **kwargs)

    named.__signature__ = signature.replace(parameters=[*known, *more])  # type: ignore[attr-defined]
    module.forward = named
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own
