"""ONNX files of pruned modules: checked against the module, with their zeros counted."""

import inspect
import logging
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx.experimental.symbolic_shapes import is_concrete_int
from torch.utils._pytree import tree_map

from lightning_prune.deploy.files import need_libraries, replacing
from lightning_prune.deploy.onnx_runtime import on_cpu, run, session, tensors_of, with_tensors
from lightning_prune.models.calls import Call, as_call
from lightning_prune.models.prunable import prunable_weights

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

LIBRARIES = ("onnx", "onnxscript", "onnxruntime")
Precision = Literal["fp32", "fp16"]

_TOLERANCES = {"fp32": 1e-4, "fp16": 1e-2}
_LARGEST = 2**31 - 1  # bytes in a protobuf


@dataclass(frozen=True, kw_only=True)
class OnnxFile:
    """What is in an ONNX file, as counted and measured after it was written.

    Args:
        path: Where it is.
        size: Its bytes.
        zeros: How many entries of its weights, which have two or more dimensions, are zero.
        entries: How many entries these have.
        difference: By how much its answers differ from what it was made of, at most, as a fraction
            of the largest magnitude of the same output.
        any_batch: Whether it takes batches of any size; else only of the example's.
    """

    path: Path
    size: int
    zeros: int
    entries: int
    difference: float
    any_batch: bool


def export_onnx(
    module: nn.Module,
    path: str | Path,
    *,
    example: Any = None,
    inputs: Iterable[Any] = (),
    precision: Precision = "fp32",
    tolerance: float | None = None,
) -> OnnxFile:
    r"""Write a module's ``forward`` in eval mode as an ONNX file, if it answers as the module does.

    A copy of the module on the CPU is traced (``torch.export``), so the module itself, its buffers,
    hooks and mode, and the state of random number generators stay as they are. The first dimension
    of the inputs may then be of any size, if the module allows it. Normalisations are merged into
    convolutions; the zeros of weights stay zeros, which is counted. The file is then run in ONNX
    Runtime on random inputs like the example (of the same range, and in batches of 1 and other
    sizes), on the example and on ``inputs``. With :math:`y` what the module answers and :math:`y'`
    what the file does, the difference is

    .. math:: \max_{\text{outputs}} \frac{\max |y' - y|}{\max |y|}

    and of outputs that are no floats the share of entries that differ.

    Args:
        module: Its ``forward`` takes and returns tensors, or nested tuples, lists and mappings of
            them; other arguments become constants.
        path: The file. It is replaced at the end: if anything fails, an older one stays.
        example: What ``forward`` is called with: a tuple of positional arguments, a mapping of
            keyword arguments, or the only argument. By default ``module.example_input_array``.
        inputs: More examples to compare the answers for, such as real data; of the same shapes,
            but for the first dimension where that is free.
        precision: ``"fp32"``, or ``"fp16"`` for weights and activations in half precision; inputs
            and outputs of the file are float32 in both.
        tolerance: The largest difference allowed; by default 1e-4, and 1e-2 in ``"fp16"``, which is
            about twenty roundings of :math:`2^{-11}` that add up.

    Raises:
        ValueError: If there is no example, the module cannot be traced or has operators that ONNX
            lacks, the file would be larger than ONNX allows (2 GB), or if it differs: in its
            answers, or by fewer zeros.
        ModuleNotFoundError: If a library is missing.
    """
    need_libraries(*LIBRARIES)
    if tolerance is None:
        tolerance = _TOLERANCES[precision]
    if example is None:
        example = getattr(module, "example_input_array", None)
    if example is None:
        raise ValueError(
            "need an example of what forward is called with, got example=None and no "
            "module.example_input_array; give either"
        )
    module = getattr(module, "_orig_mod", module)  # compiled
    if sum(tensor.nbytes for tensor in module.state_dict().values()) > _LARGEST:
        raise ValueError(f"need a module of at most {_LARGEST:,} bytes, which is all ONNX can hold")
    with torch.random.fork_rng(devices=[]), torch.no_grad(), _silenced():
        copy = deepcopy(module).cpu().float().eval()
        call = as_call(copy, on_cpu(example))
        traced, any_batch = _traced(copy, call)
        calls = [*_random_calls(call, any_batch), call]
        calls += [_like(call, as_call(copy, on_cpu(given)), any_batch) for given in inputs]
        with replacing(path) as file:
            _write(traced, file, precision)
            with _refusing_overflow(copy, precision):
                difference = _largest_difference(copy, session(file), calls, tolerance)
            zeros, entries = _count(file)
            needed = _zeros_needed(copy, traced)
            if zeros < needed:
                raise ValueError(
                    f"need the {needed:,} zeros of the weights in the file, got zeros={zeros:,}; "
                    "no file is written"
                )
            size = file.stat().st_size
    return OnnxFile(
        path=Path(path),
        size=size,
        zeros=zeros,
        entries=entries,
        difference=difference,
        any_batch=any_batch,
    )


def quantize_onnx(
    path: str | Path,
    output: str | Path,
    batches: Iterable[Any],
    *,
    reduce_range: bool | None = None,
) -> OnnxFile:
    """Write an ONNX file with weights and activations in 8 bits (static quantisation, QDQ format).

    Weights are int8, symmetric and scaled per output channel; activations are uint8, over the range
    that calibration finds, and embeddings are quantised like these. A zero stays exactly zero in
    both, which is counted.

    Args:
        path: A file that `export_onnx` has written in ``"fp32"``.
        output: The file to write. It is replaced at the end: if anything fails, an older one stays.
        batches: What to calibrate with: examples of inputs, each as in `export_onnx`, in the order
            of ``forward``'s arguments.
        reduce_range: Whether weights use 7 of the 8 bits. x86 processors without VNNI instructions
            add products of 8 bits up in 16, which saturates; 7 bits do not. By default whether this
            machine is one of those: say it, if the file is for another.

    Returns:
        What is in the file; its difference is that from the file of floats on ``batches``.

    Raises:
        ValueError: If there are no batches, or zeros are lost.
        ModuleNotFoundError: If a library is missing.
    """
    need_libraries(*LIBRARIES)
    import onnx
    from onnxruntime.quantization import QuantType, quantize_static

    remaining = iter(batches)
    first = next(remaining, None)
    if first is None:
        raise ValueError("need at least one batch to calibrate with, got batches=[]")
    if reduce_range is None:
        reduce_range = saturates()
    floats = session(path)
    names = [node.name for node in floats.get_inputs()]
    shown = _Batches(names, chain([first], remaining))
    with replacing(output) as file, _silenced():
        model = onnx.load(path)
        # Shapes are inferred and normalisations merged; without this mark, it asks for that.
        onnx.helper.set_model_props(model, {"onnx.quant.pre_process": "onnxruntime.quant"})
        prepared = file.with_suffix(".prepared")
        onnx.save(model, prepared)
        quantize_static(
            prepared,
            file,
            shown,
            per_channel=True,
            reduce_range=reduce_range,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        integers = session(file)
        difference = max(
            _difference(expected, found)
            for batch in shown.seen
            for expected, found in zip(run(floats, batch), run(integers, batch), strict=True)
        )
        (zeros, entries), (needed, _) = _count(file), _count(Path(path))
        if zeros < needed:
            raise ValueError(f"need the {needed:,} zeros of '{path}', got zeros={zeros:,} in int8")
        size = file.stat().st_size
    return OnnxFile(
        path=Path(output),
        size=size,
        zeros=zeros,
        entries=entries,
        difference=difference,
        any_batch=isinstance(floats.get_inputs()[0].shape[0], str),
    )


def saturates() -> bool:
    """Whether this machine's products of 8 bits saturate: x86 without VNNI or AMX instructions."""
    able = torch.cpu.get_capabilities()
    without = not (able.get("avx512_vnni") or able.get("avx_vnni") or able.get("amx_int8"))
    return str(able["architecture"]).startswith("x86") and without


class _Batches:
    """Hands batches to ONNX Runtime one by one, and keeps them."""

    def __init__(self, names: list[str], batches: Iterable[Any]) -> None:
        self.names = names
        self.batches = iter(batches)
        self.seen: list[list[Tensor]] = []

    def get_next(self) -> dict[str, Any] | None:
        for batch in self.batches:
            self.seen.append(tensors_of(on_cpu(batch)))
            arrays = [tensor.numpy() for tensor in self.seen[-1]]
            return dict(zip(self.names, arrays, strict=True))
        return None


def _traced(module: nn.Module, call: Call) -> tuple[torch.export.ExportedProgram, bool]:
    """Return the traced module, and whether it takes batches of any size.

    A batch of one would be taken for a constant, so it is doubled.
    """
    batch = _batch_of(call)
    if batch is not None:
        doubled = [
            torch.cat([t, t]) if batch == 1 and _starts(t, 1) else t for t in tensors_of(call)
        ]
        args, kwargs = with_tensors(call, doubled)
        arguments = inspect.signature(module.forward).bind(*args, **kwargs).arguments
        free = [_starts(tensor, max(batch, 2)) for tensor in doubled]
        shapes = tree_map(
            lambda leaf: {0: torch.export.Dim.AUTO} if _starts(leaf, max(batch, 2)) else None,
            dict(arguments),
        )
        try:
            traced = torch.export.export(module, args, kwargs, dynamic_shapes=shapes)
        except Exception:  # for any reason; for one size it may still do
            pass
        else:
            if not any(f and fixed for f, fixed in zip(free, _fixed(traced), strict=True)):
                return traced, True
    try:
        return torch.export.export(module, *call), False
    except Exception as error:
        raise ValueError(
            f"need a module that torch.export can trace, got a {type(module).__name__}: "
            f"{_first_line(error)}"
        ) from error


def _fixed(traced: torch.export.ExportedProgram) -> list[bool]:
    """Return of each input whether the size of its first dimension has become a constant."""
    names = traced.graph_signature.user_inputs
    values = [node.meta["val"] for node in traced.graph.nodes if node.name in names]
    tensors = [value for value in values if isinstance(value, Tensor)]
    return [tensor.dim() == 0 or is_concrete_int(tensor.shape[0]) for tensor in tensors]


def _write(traced: torch.export.ExportedProgram, file: Path, precision: Precision) -> None:
    import onnx
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    try:
        program = torch.onnx.export(traced, dynamo=True, verbose=False)
    except torch.onnx.OnnxExporterError as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise ValueError(
            f"need operators that ONNX has, got a module of others: {_first_line(cause)}"
        ) from error
    assert program is not None
    ClearMetadataAndDocStringPass()(program.model)  # it names folders of this machine
    if precision == "fp32":
        program.save(file, external_data=False)
    else:
        onnx.save(_half(program.model_proto), file)


def _half(model: Any) -> Any:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    return convert_float_to_float16(model, keep_io_types=True)


def _like(example: Call, call: Call, any_batch: bool) -> Call:
    """Return a call; raise ValueError if the file does not take its shapes."""
    start = 1 if any_batch else 0
    shapes = [[list(tensor.shape) for tensor in tensors_of(given)] for given in (example, call)]
    here, there = ([shape[start:] for shape in each] for each in shapes)
    if here != there:
        free = " but for the first dimension" if any_batch else ""
        raise ValueError(
            f"need inputs of the example's shapes{free}, {shapes[0]}, got {shapes[1]}; the module "
            "does not take others when traced"
        )
    return call


def _random_calls(call: Call, any_batch: bool) -> Iterator[Call]:
    """Yield calls like this one, of other numbers: the same batch, and one of one and one more."""
    generator = torch.Generator().manual_seed(0)
    batch = _batch_of(call)
    sizes = dict.fromkeys([batch, 1, batch + 1]) if any_batch and batch is not None else [batch]
    for size in sizes:
        tensors = []
        for tensor in tensors_of(call):
            shape = list(tensor.shape)
            if size is not None and _starts(tensor, batch):
                shape[0] = size
            tensors.append(_random_like(tensor, shape, generator))
        yield with_tensors(call, tensors)


def _random_like(tensor: Tensor, shape: list[int], generator: torch.Generator) -> Tensor:
    """Return random entries of the range of a tensor; normal ones if it has none."""
    if tensor.numel() == 0:
        return tensor
    if tensor.dtype == torch.bool:
        return torch.rand(shape, generator=generator) < 0.5
    if not tensor.is_floating_point():
        first, last = int(tensor.min()), int(tensor.max())
        return torch.randint(first, last + 1, shape, generator=generator, dtype=tensor.dtype)
    low, high = tensor.min(), tensor.max()
    if low == high:
        return torch.randn(shape, generator=generator)
    return low + (high - low) * torch.rand(shape, generator=generator)


def _largest_difference(
    module: nn.Module, opened: "InferenceSession", calls: Iterable[Call], tolerance: float
) -> float:
    largest = 0.0
    for args, kwargs in calls:
        expected = tensors_of(module(*args, **kwargs))
        found = run(opened, tensors_of((args, kwargs)))
        for place, (here, there) in enumerate(zip(expected, found, strict=True)):
            difference = _difference(here, there)
            if difference > tolerance:
                shapes = [list(tensor.shape) for tensor in tensors_of((args, kwargs))]
                raise ValueError(
                    f"need answers within tolerance={tolerance:g} of the module's, got a "
                    f"difference={difference:.3g} in output {place} for inputs of shapes {shapes}; "
                    "no file is written"
                )
            largest = max(largest, difference)
    return largest


@contextmanager
def _refusing_overflow(module: nn.Module, precision: Precision) -> Iterator[None]:
    """Raise ValueError if a part of a module answers with more than half precision can hold.

    ONNX Runtime does not show it: where its CPU kernels are of float32, nothing overflows.
    """
    largest = torch.finfo(torch.float16).max

    def refuse(part: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        for tensor in tensors_of((args, kwargs, output)):
            if tensor.is_floating_point() and (tensor.isfinite() & (tensor.abs() > largest)).any():
                raise ValueError(
                    f"need activations of at most {largest:g} for precision='fp16', got "
                    f"{tensor.abs().max():g} in '{names[part]}'; no file is written"
                )

    names = {part: name or type(part).__name__ for name, part in module.named_modules()}
    parts = module.modules() if precision == "fp16" else ()
    handles = [part.register_forward_hook(refuse, with_kwargs=True) for part in parts]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _difference(expected: Tensor, found: Tensor) -> float:
    """Return how far an output is off, relative to its largest magnitude; inf if incomparable."""
    if expected.shape != found.shape:
        return float("inf")
    same = (expected == found) | (expected.isnan() & found.isnan())
    if same.all():
        return 0.0
    if not expected.is_floating_point():
        return 1 - same.double().mean().item()
    distance = (found.double() - expected.double()).abs().masked_fill(same, 0.0).max()
    largest = expected.double().abs().nan_to_num(0.0, posinf=0.0).max()
    return (distance / largest).nan_to_num(float("inf"), posinf=float("inf")).item()


def _count(file: Path) -> tuple[int, int]:
    """Return how many entries of a file's weights are zero, and how many these are.

    What stands for zero in 8 bits is 0 in a symmetric weight, another number in an embedding.
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


def _zeros_needed(module: nn.Module, traced: torch.export.ExportedProgram) -> int:
    """Return how many entries are zero in the prunable weights that ``forward`` uses.

    Equal ones count once, as the file may hold them once.
    """
    names = traced.graph_signature.inputs_to_parameters
    graph = deepcopy(traced.graph)
    graph.eliminate_dead_code()  # as the exporter does
    used = {names[node.name] for node in graph.nodes if node.name in names and node.users}
    weights = prunable_weights(module)
    distinct = {
        (weight.shape, sha256(weight.detach().numpy().tobytes()).digest()): weight
        for name, weight in weights.items()
        if name in used
    }
    return sum(int((weight == 0).sum()) for weight in distinct.values())


def _batch_of(call: Call) -> int | None:
    """Return the size of the first dimension of the first input that has any."""
    return next((tensor.shape[0] for tensor in tensors_of(call) if tensor.dim() > 0), None)


def _starts(leaf: Any, size: int | None) -> bool:
    return isinstance(leaf, Tensor) and leaf.dim() > 0 and leaf.shape[0] == size


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


@contextmanager
def _silenced() -> Iterator[None]:
    """Leave out what exporter and quantiser say to those who work on them."""
    root = logging.getLogger()
    loggers = [
        root,
        *(logging.getLogger(name) for name in ("torch.onnx", "torch.fx", "onnxscript")),
    ]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    handler = logging.NullHandler()
    root.addHandler(handler)  # without any, the quantiser's first warning would install one
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"`isinstance\(treespec", FutureWarning)
            warnings.filterwarnings("ignore", "The tensor attributes? .* assigned during export")
            yield
    finally:
        root.removeHandler(handler)
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
