"""The bytes of the compressed ONNX file, by the atoms that each group keeps."""

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lightning_prune.deploy.compression import count_zstd_bytes
from lightning_prune.deploy.files import need_libraries
from lightning_prune.deploy.onnx import LIBRARIES
from lightning_prune.deploy.onnx_contents import Constant, put_constants
from lightning_prune.engine.costs import Cost
from lightning_prune.engine.groups import Group
from lightning_prune.engine.onnx_bytes import write_parts
from lightning_prune.engine.scores import TensorScores
from lightning_prune.engine.shapes import count_entries, fix_shape, is_fixed
from lightning_prune.models.calls import Call
from lightning_prune.models.names import named_parameters, named_tensors
from lightning_prune.recipe.budgets import Unit

_LEVELS = (0.0, 0.002, 0.005, 0.01, 0.02, 0.04, 0.07, 0.1, 0.15, 0.2, 0.28, 0.37, 0.5, 0.7, 1.0)
_SAMPLE = 2**16  # entries of a constant that are compressed
_RANKED = 2**20  # atoms of a group that are ranked


class CompressedFileCost(Cost):
    """The bytes of the ONNX file through Zstandard, as `file_size` measures them.

    How far weights shrink depends on their values. So a sample of each constant is compressed, with
    the atoms of the largest weights kept, at a few fractions; between those, bytes are
    interpolated. The samples are also compressed together, and the bytes of each constant are
    scaled to that. With channels, the bytes of a constant fall with the entries that removal
    leaves.

    Args:
        model: The model.
        groups: The groups that are pruned.
        call: The arguments of ``forward``.

    Raises:
        ValueError: If the model cannot be written as an ONNX file.
        ModuleNotFoundError: If a library is not installed.
    """

    unit: Unit = "bytes"
    largest_error: ClassVar[float | None] = 0.01

    def __init__(self, model: nn.Module, groups: Sequence[Group], call: Call) -> None:
        need_libraries(*LIBRARIES, "zstandard")
        with TemporaryDirectory() as folder:
            self._parts = write_parts(model, groups, call, Path(folder) / "dense.onnx")
        parameters = named_parameters(model)
        by_parameter = {
            id(group.members[0].parameter): group for group in groups if not group.removable_places
        }
        self._group_of: dict[str, Group] = {
            name: by_parameter[id(parameters[source.name])]
            for name, source in self._parts.sources.items()
            if id(parameters.get(source.name)) in by_parameter
        }
        self._learn(model)

    def _learn(self, model: nn.Module) -> None:
        """Learn the bytes of all constants from the present weights."""
        graph = count_zstd_bytes(self._parts.graph)
        alone: dict[str, list[int]] = {each.name: [] for each in self._parts.constants}
        together = []
        for drawn in self._draw(model):
            together.append(count_zstd_bytes(put_constants(self._parts.graph, drawn)))
            for name, content in drawn.items():
                alone[name].append(count_zstd_bytes(content))
        weights = {c.name: _count_samples(c) for c in self._parts.constants}
        fixed = {name: each[0] for name, each in alone.items() if name not in self._group_of}
        scale = (together[0] - graph) / max(sum(fixed.values()), 1)
        self._fixed = {name: size * scale * weights[name] for name, size in fixed.items()}
        self._graph = float(graph)
        moving = {name: alone[name] for name in self._group_of}
        sums = [sum(each) for each in zip(*moving.values(), strict=True)]
        self._curves = {
            name: _scale_curve(sizes, sums, together, weights[name])
            for name, sizes in moving.items()
        }

    def __call__(self, kept: Mapping[str, int]) -> float:
        """Return the bytes of the compressed file."""
        moving = sum(
            _interpolate(curve, kept[group.name] / group.total)
            for group, curve in ((self._group_of[n], c) for n, c in self._curves.items())
        )
        return self._graph + moving + sum(self._shrink(kept).values())

    def corrected(self, kept: Mapping[str, int], measured: float) -> "CompressedFileCost":
        """Return the cost that is exact for a model that was measured: all parts are scaled.

        Args:
            kept: Number of atoms that each group of the measured model keeps, by name.
            measured: The bytes of the measured file.
        """
        factor, scaled = measured / self(kept), copy(self)
        scaled._graph = self._graph * factor
        scaled._fixed = {name: size * factor for name, size in self._fixed.items()}
        scaled._curves = {
            name: [size * factor for size in curve] for name, curve in self._curves.items()
        }
        return scaled

    def state_dict(self) -> dict[str, Any]:
        """Return the bytes of all parts, which depend on the weights that were compressed."""
        return {"graph": self._graph, "fixed": self._fixed, "curves": self._curves}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the bytes of all parts."""
        self._graph, self._fixed = state["graph"], dict(state["fixed"])
        self._curves = {name: list(curve) for name, curve in state["curves"].items()}

    def dense_parts(self) -> Mapping[str, float]:
        """Return the bytes of each constant that no group makes smaller, and of the graph."""
        shapes = self._parts.shapes
        fixed = {n: b for n, b in self._fixed.items() if is_fixed(shapes.get(n, ()))}
        return {**fixed, "(graph)": self._graph}

    def _shrink(self, kept: Mapping[str, int]) -> dict[str, float]:
        """Return the bytes of the constants whose zeros no group makes, after removal."""
        shrunk = {}
        for constant in self._parts.constants:
            if constant.name in self._fixed:
                lengths = constant.values.shape
                shape = self._parts.shapes.get(constant.name, fix_shape(lengths))
                left = count_entries(shape, kept) / max(constant.values.size, 1)
                shrunk[constant.name] = self._fixed[constant.name] * left
        return shrunk

    def _draw(self, model: nn.Module) -> Iterator[dict[str, bytes]]:
        """Yield samples of all constants, for each fraction of kept atoms."""
        tensors = named_tensors(model)
        groups = {group.name: group for group in self._group_of.values()}
        ranked = {name: _rank(group) for name, group in groups.items()}
        for level in _LEVELS if groups else (1.0,):
            masks = {name: _keep_best(groups[name], ranked[name], level) for name in groups}
            drawn = {}
            for constant in self._parts.constants:
                group = self._group_of.get(constant.name)
                source = self._parts.sources.get(constant.name)
                values = constant.values
                if source is not None:
                    weights = tensors[source.name].detach().float().cpu()
                    if group is not None:
                        weights = weights.masked_fill(~masks[group.name].cpu(), 0.0)
                    values = weights.permute(source.order).numpy() * source.factor
                drawn[constant.name] = values.reshape(-1)[:_SAMPLE].tobytes()
            yield drawn


def _rank(group: Group) -> Tensor:
    """Return the magnitudes of the atoms of a group of one tensor."""
    member = group.members[0]
    return group.rank({member.name: TensorScores(member, member.weights.abs())})


def _keep_best(group: Group, ranked: Tensor, level: float) -> Tensor:
    """Return the mask of a tensor that keeps a fraction of the atoms, those of the largest."""
    flat = ranked.flatten()
    ordered = flat[:: max(len(flat) // _RANKED, 1)].sort(descending=True).values
    keep = round(level * len(ordered))
    least = ordered[keep - 1].item() if keep else torch.inf
    (_, mask), *_ = group.spread(ranked >= least)
    return mask


def _count_samples(constant: Constant) -> float:
    """Return how many samples a constant has entries for, at least 1."""
    return max(constant.values.size / _SAMPLE, 1.0)


def _scale_curve(
    sizes: Sequence[int], sums: Sequence[int], together: Sequence[int], weight: float
) -> list[float]:
    """Return the bytes of a constant by level, which never fall.

    Args:
        sizes: The bytes of a sample of the constant alone.
        sums: The sums of these over all constants with zeros.
        together: The bytes of all samples together.
        weight: Number of samples in the constant.
    """
    grown = [
        (size - sizes[0]) / max(total - sums[0], 1) * (whole - together[0]) * weight
        for size, total, whole in zip(sizes, sums, together, strict=True)
    ]
    return list(accumulate(grown, max))


def _interpolate(curve: Sequence[float], fraction: float) -> float:
    """Return the value of a curve at a fraction of kept atoms."""
    upper = max(bisect_left(_LEVELS, fraction), 1)
    low, high = _LEVELS[upper - 1], _LEVELS[upper]
    return curve[upper - 1] + (curve[upper] - curve[upper - 1]) * (fraction - low) / (high - low)
