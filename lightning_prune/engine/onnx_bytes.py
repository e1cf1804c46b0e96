"""The bytes of ONNX files, by the channels that each group keeps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import nn

from lightning_prune.deploy.files import need_libraries
from lightning_prune.deploy.onnx import LIBRARIES
from lightning_prune.deploy.onnx_contents import (
    Constant,
    read_constants,
    read_graph,
    write_unchecked,
)
from lightning_prune.deploy.quantization import quantize_onnx
from lightning_prune.engine.costs import Cost
from lightning_prune.engine.groups import Group
from lightning_prune.engine.onnx_probe import write_smaller
from lightning_prune.engine.onnx_sources import (
    Source,
    find_constant_shapes,
    find_sources,
    follow_lengths,
)
from lightning_prune.engine.shapes import Shape, count_entries, find_shapes, fix_shape, is_fixed
from lightning_prune.models.calls import Call
from lightning_prune.models.comparison import Reference
from lightning_prune.models.compiled import copy_uncompiled
from lightning_prune.models.generic_weights import fill_with_generic_weights
from lightning_prune.models.trees import move_to_cpu
from lightning_prune.recipe.budgets import Unit

_UNKNOWN = 0.002  # share of a file whose change with removal may stay unknown


@dataclass(frozen=True, kw_only=True, eq=False)
class OnnxParts:
    """The dense file of floats, in parts.

    Args:
        size: Bytes of the file.
        graph: The file without the values of the constants.
        constants: The constants.
        sources: The tensors that constants are made of.
        shapes: The shapes of constants after removal; others are fixed.
    """

    size: int
    graph: bytes
    constants: Sequence[Constant]
    sources: Mapping[str, Source]
    shapes: Mapping[str, Shape]


class OnnxFileCost(Cost):
    """The bytes of the file that `export_onnx` or `quantize_onnx` writes of the shrunk model.

    The dense file is written once. Each constant takes bytes in proportion to the entries that
    removal leaves; the rest of the file stays. Equal constants, which the exporter merges, count
    once each, since training makes them different. A zero point takes one byte or two, by the
    values that calibration sees; it counts as two.

    Args:
        model: The dense model.
        groups: The groups of channels.
        call: The arguments of ``forward``.
        quantized: Whether the file is in 8 bits.

    Raises:
        ValueError: If the model cannot be written as an ONNX file.
        ModuleNotFoundError: If a library is not installed.
    """

    unit: Unit = "bytes"

    def __init__(
        self, model: nn.Module, groups: Sequence[Group], call: Call, *, quantized: bool
    ) -> None:
        need_libraries(*LIBRARIES)
        with TemporaryDirectory() as folder:
            file = Path(folder) / "dense.onnx"
            parts = write_parts(model, groups, call, file)
            self._constants, size = parts.constants, parts.size
            if quantized:
                smaller = Path(folder) / "quantized.onnx"
                quantize_onnx(file, smaller, [call], reduce_range=False)
                self._constants, size = read_constants(smaller), smaller.stat().st_size
        points = [each for each in self._constants if each.values.dtype == "uint8"]
        unsure = sum(each.values.size == 1 and each.size == 1 for each in points)
        self._rest = size - sum(constant.size for constant in self._constants) + unsure
        self._shapes = parts.shapes

    def __call__(self, kept: Mapping[str, int]) -> float:
        """Return the bytes of the file."""
        return self._rest + sum(
            _count_bytes(constant, self._shapes, kept) for constant in self._constants
        )

    def dense_parts(self) -> Mapping[str, float]:
        """Return the bytes of each constant that removal does not change, and of the graph."""
        fixed = {
            constant.name: float(constant.size)
            for constant in self._constants
            if is_fixed(_find_shape(constant, self._shapes))
        }
        return {**fixed, "(graph)": float(self._rest)}


def write_parts(model: nn.Module, groups: Sequence[Group], call: Call, file: Path) -> OnnxParts:
    """Write the file of floats of a model with generic weights, and read the parts.

    Args:
        model: Left as it is.
        groups: The groups that are pruned.
        call: The arguments of ``forward``.
        file: The file.
    """
    generic = _make_generic(model, call)
    write_unchecked(generic, call, file)
    constants = read_constants(file)
    sources = find_sources(generic, constants)
    of_tensors = find_shapes(model, groups)
    shapes = find_constant_shapes(constants, sources, of_tensors)
    unknown = [each for each in constants if each.name not in shapes]
    size = file.stat().st_size
    axes = list({axis for shape in of_tensors.values() for axis in shape if axis.widths})
    if axes and sum(constant.size for constant in unknown) > _UNKNOWN * size:
        probe = file.with_suffix(".probe")
        kept = write_smaller(model, groups, axes, call, probe)
        total = {group.name: group.total for group in groups}
        lengths = {each.name: each.values.shape for each in read_constants(probe)}
        for each in unknown:
            before = each.values.shape
            after = lengths.get(each.name, before)
            shapes[each.name] = follow_lengths(before, after, axes, kept, total)
    return OnnxParts(
        size=size, graph=read_graph(file), constants=constants, sources=sources, shapes=shapes
    )


def _make_generic(model: nn.Module, call: Call) -> nn.Module:
    """Return a copy on the CPU with generic weights, or with its own if those give no numbers."""
    generic = copy_uncompiled(model).cpu().float().eval()
    own = copy_uncompiled(generic)
    fill_with_generic_weights(generic)
    try:
        is_finite = Reference(generic, move_to_cpu(call), 1).is_finite
    except Exception:  # of the model's own code, which may refuse such weights
        is_finite = False
    return generic if is_finite else own


def _count_bytes(constant: Constant, shapes: Mapping[str, Shape], kept: Mapping[str, int]) -> float:
    shape = _find_shape(constant, shapes)
    return constant.size * count_entries(shape, kept) / max(constant.values.size, 1)


def _find_shape(constant: Constant, shapes: Mapping[str, Shape]) -> Shape:
    """Return the shape of a constant after removal."""
    lengths = constant.values.shape
    shape = shapes.get(constant.origin)
    if shape is None or constant.values.size == 1:
        return fix_shape(lengths)
    return shape if constant.axis is None else (shape[constant.axis],)
