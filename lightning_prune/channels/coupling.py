"""Channels of a model that go together, found by a walk over the graphs of its forward pass."""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_prune.channels.flow import CountedAxis, Flow
from lightning_prune.channels.labels import Labels
from lightning_prune.channels.multiplications import Multiplication
from lightning_prune.channels.operations import StoredTensor
from lightning_prune.channels.walk import walk
from lightning_prune.models.calls import Call, make_call
from lightning_prune.models.compiled import copy_uncompiled, unwrap_compiled
from lightning_prune.models.errors import describe_error, locate_error
from lightning_prune.models.names import plain_name
from lightning_prune.models.progress import note_progress
from lightning_prune.models.tracing import trace


@dataclass(frozen=True, kw_only=True, eq=False)
class ChannelPlace:
    """An axis of a parameter or buffer along which the channels of a group lie.

    Args:
        name: The qualified name of the parameter or buffer.
        axis: The axis.
        channel_of_index: For each index of the axis, the channel in the group; -1 for none.
        is_output: Whether a weight produces the channels along this axis.
    """

    name: str
    axis: int
    channel_of_index: Tensor
    is_output: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class CoupledChannels:
    """A group of alike channels: each can be removed alone, from all places where it lies.

    Args:
        places: Where the channels lie, in the order of the model. A tensor with two axes of
            channels comes twice.
        labels: The label of each channel, as in `Coupling.counted_axes`.
        is_residual: Whether an addition of two activations has joined the channels.
        why_dense: Why the channels cannot be removed exactly; None if they can.
    """

    places: tuple[ChannelPlace, ...]
    labels: Tensor
    is_residual: bool
    why_dense: str | None

    @property
    def size(self) -> int:
        """Number of channels."""
        return len(self.labels)

    @property
    def producers(self) -> tuple[str, ...]:
        """The names of the weights that produce the channels."""
        return tuple(place.name for place in self.places if place.is_output)

    @property
    def width(self) -> int:
        """Number of indices of a channel along the output axes, such as the size of a head.

        If the axes differ, it is the greatest common divisor.
        """
        outputs = [place.channel_of_index for place in self.places if place.is_output]
        return math.gcd(*(int((channels == 0).sum()) for channels in outputs))


@dataclass(frozen=True, kw_only=True, eq=False)
class Coupling:
    """All channels of a model.

    Args:
        groups: The channels that a weight produces, in the order of the model.
        counted_axes: The axes whose lengths may stand as numbers in the model's code.
        multiplications: The products of a forward pass, in evaluation mode where that can be
            traced.
    """

    groups: tuple[CoupledChannels, ...]
    counted_axes: tuple[CountedAxis, ...]
    multiplications: tuple[Multiplication, ...]


def couple(module: nn.Module, example: Any) -> Coupling:
    """Trace a module, and find the channels that go together.

    The module is traced in training and in evaluation mode; a single mode is enough if the other
    cannot be traced.

    Args:
        module: The module; it is left as it is.
        example: What ``forward`` takes: a tensor, a tuple of arguments, or a dict of named ones.

    Raises:
        ValueError: If the module cannot be traced with this example.
    """
    labels = Labels()
    stored = _label_axes(unwrap_compiled(module), labels)
    flow = Flow(labels)
    for program in _trace_modes(module, example):
        walk(flow, program, stored)
    flow.settle()
    counted_axes = tuple(
        replace(counted, labels=labels.representatives(counted.labels))
        for counted in flow.counted_axes
    )
    groups = tuple(_group_channels(flow, stored, counted_axes))
    multiplications = tuple(each.settle(labels) for each in flow.multiplications)
    return Coupling(groups=groups, counted_axes=counted_axes, multiplications=multiplications)


def _trace_modes(module: nn.Module, example: Any) -> list[torch.export.ExportedProgram]:
    """Trace both modes, or the only mode in which the model can be called."""
    call = make_call(module, example).double_single_sample()
    traced = []
    for done, mode in enumerate((True, False)):
        note_progress("tracing both modes of the model", done, 2)
        traced.append(_try_trace(copy_uncompiled(module).train(mode), call))
    programs = [program for program in traced if not isinstance(program, Exception)]
    if isinstance(error := traced[-1], Exception) and not programs:
        raise ValueError(
            "need a forward that torch.export can trace, to find which channels go together, got "
            f"{describe_error(error)}{locate_error(error)}; give an example that forward takes "
            "(example=..., or the module's example_input_array), and let forward neither branch "
            "on values of tensors nor turn them into Python numbers (len(x) of chosen rows is "
            "x.shape[0])"
        )
    return programs


def _try_trace(module: nn.Module, call: Call) -> "torch.export.ExportedProgram | Exception":
    try:
        return trace(module, call)
    except Exception as error:  # of the model's own code
        return error


# -- groups of channels --------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class _LabeledAxis:
    """An axis of a parameter or buffer, with the representative of each index."""

    name: str
    axis: int
    representatives: Tensor
    is_output: bool


def _label_axes(module: nn.Module, labels: Labels) -> dict[str, StoredTensor]:
    """Return parameters and buffers with new labels for each axis; tied tensors share them."""
    known: dict[int, StoredTensor] = {}
    found: dict[str, StoredTensor] = {}
    parameters = list(module.named_parameters(remove_duplicate=False))
    for name, tensor in [*parameters, *module.named_buffers(remove_duplicate=False)]:
        if id(tensor) not in known:
            known[id(tensor)] = StoredTensor(
                name=plain_name(name),
                axis_labels=tuple(labels.create(size) for size in tensor.shape),
                model_axes=tuple(range(tensor.ndim)),
                is_parameter=isinstance(tensor, nn.Parameter),
            )
        found[plain_name(name)] = known[id(tensor)]
    return found


def _group_channels(
    flow: Flow, stored: Mapping[str, StoredTensor], counted_axes: Sequence[CountedAxis]
) -> Iterator[CoupledChannels]:
    """Yield groups of alike channels, for all channels that a weight produces."""
    axes = [
        _LabeledAxis(
            name=tensor.name,
            axis=axis,
            representatives=flow.labels.representatives(labels),
            is_output=axis in flow.output_axes.get(tensor.name, ()),
        )
        for tensor in dict.fromkeys(stored.values())
        for axis, labels in enumerate(tensor.axis_labels)
    ]
    for positions, channels in _find_alike(axes, counted_axes):
        places = tuple(_place_channels(axes[position], channels) for position in positions)
        if any(place.is_output for place in places):
            yield CoupledChannels(
                places=places,
                labels=torch.tensor(channels, device="cpu"),
                is_residual=flow.labels.is_residual(channels),
                why_dense=_find_reason(flow, places, channels),
            )


def _find_alike(
    axes: Sequence[_LabeledAxis], counted_axes: Sequence[CountedAxis]
) -> list[tuple[list[int], list[int]]]:
    """Return alike channels, as positions of axes and representatives of the channels there.

    Channels are alike if they lie along the same axes, with equally many indices, and in the same
    counted axes. Then a trial with one channel shows whether the others can be removed.
    """
    spans: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for position, axis in enumerate(axes):
        found, counts = torch.unique(axis.representatives, return_counts=True)
        for channel, count in zip(found.tolist(), counts.tolist(), strict=True):
            spans[channel].append((position, count))
    parts = {frozenset(torch.unique(counted.labels).tolist()) for counted in counted_axes}
    alike: dict[Any, list[int]] = defaultdict(list)
    for channel, spanned in sorted(spans.items()):
        containing = frozenset(part for part in parts if channel in part)
        alike[tuple(spanned), containing].append(channel)
    return [
        ([position for position, _ in spanned], channels)
        for (spanned, _), channels in alike.items()
    ]


def _place_channels(axis: _LabeledAxis, channels: Sequence[int]) -> ChannelPlace:
    """Return where channels lie along an axis; they are given in ascending order."""
    ascending = torch.tensor(channels, device="cpu")
    position = torch.searchsorted(ascending, axis.representatives).clamp(max=len(channels) - 1)
    is_found = ascending[position] == axis.representatives
    return ChannelPlace(
        name=axis.name,
        axis=axis.axis,
        channel_of_index=torch.where(is_found, position, -1),
        is_output=axis.is_output,
    )


def _find_reason(flow: Flow, places: Sequence[ChannelPlace], channels: Sequence[int]) -> str | None:
    """Return why a group of channels stays dense; None if it can be removed."""
    for channel in channels:
        if reason := flow.labels.why_dense(channel):
            return reason
    outputs = [place.channel_of_index for place in places if place.is_output]
    fills_outputs = all(bool((indices == 0).all()) for indices in outputs)
    return "all channels go together" if len(channels) == 1 and fills_outputs else None
