"""The constants of an ONNX file, with the bytes that they take."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from lightning_prune.deploy.onnx import quiet_export, write_program
from lightning_prune.models.calls import Call
from lightning_prune.models.compiled import copy_uncompiled
from lightning_prune.models.tracing import trace_any_batch
from lightning_prune.models.trees import move_to_cpu
from lightning_prune.models.undisturbed import keep_generators

_SUFFIX = "_quantized"
_FIELDS = ("raw_data", "float_data", "int32_data", "int64_data", "double_data")


@dataclass(frozen=True, kw_only=True, eq=False)
class Constant:
    """A constant of an ONNX file.

    Args:
        name: The name.
        values: The values.
        size: Bytes of the values in the file.
        origin: The name of the constant in the file of floats; the same name in that file. For
            scales and zero points it is the constant that they belong to.
        axis: The axis of the origin along which scales and zero points lie; None for all axes.
    """

    name: str
    values: "np.ndarray[Any, Any]"
    size: int
    origin: str
    axis: int | None


def write_unchecked(module: nn.Module, call: Call, file: Path) -> None:
    """Write the file of `export_onnx` in ``"fp32"``, without a comparison of outputs.

    Args:
        module: Left as it is.
        call: The arguments of ``forward``.
        file: The file.

    Raises:
        ValueError: If the module cannot be traced, or ONNX lacks an operator.
    """
    with keep_generators(), torch.no_grad(), quiet_export():
        copied = copy_uncompiled(module).cpu().float().eval()
        program, _ = trace_any_batch(copied, move_to_cpu(call))
        write_program(program, file)


def read_constants(file: Path) -> list[Constant]:
    """Return the constants of a file of `export_onnx` or `quantize_onnx`."""
    import onnx

    graph = onnx.load(file).graph
    origins: dict[str, tuple[str, int | None]] = {}
    for node in graph.node:
        if node.op_type == "DequantizeLinear":
            weight, *others = node.input
            axis = next((each.i for each in node.attribute if each.name == "axis"), 1)
            origin = weight.removesuffix(_SUFFIX)
            origins |= {weight: (origin, None)} | dict.fromkeys(others, (origin, axis))
    constants = []
    for tensor in graph.initializer:
        origin, axis = origins.get(tensor.name, (tensor.name, None))
        constants.append(
            Constant(
                name=tensor.name,
                values=onnx.numpy_helper.to_array(tensor),
                size=_count_bytes(tensor),
                origin=origin,
                axis=axis,
            )
        )
    return constants


def read_graph(file: Path) -> bytes:
    """Return an ONNX file without the values of the constants."""
    import onnx

    model = onnx.load(file)
    for tensor in model.graph.initializer:
        for field in _FIELDS:
            tensor.ClearField(field)
    return bytes(model.SerializeToString())


def put_constants(graph: bytes, values: Mapping[str, bytes]) -> bytes:
    """Return the file of `read_graph` with raw values for the constants."""
    import onnx

    model = onnx.load_from_string(graph)
    for tensor in model.graph.initializer:
        tensor.raw_data = values[tensor.name]
    return bytes(model.SerializeToString())


def _count_bytes(tensor: Any) -> int:
    """Return the bytes of the values: raw, or each in the encoding of the field that holds it."""
    if tensor.HasField("raw_data"):
        return len(tensor.raw_data)
    bare = type(tensor)()
    bare.CopyFrom(tensor)
    for field in _FIELDS:
        bare.ClearField(field)
    size = int(tensor.ByteSize() - bare.ByteSize())
    return size - 1 - max(math.ceil((size - 2).bit_length() / 7), 1) if size else 0
