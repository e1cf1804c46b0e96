"""Which channels of a model live or die together, read off the graphs of its forward pass."""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_prune.channels.flow import Cut, Flow
from lightning_prune.channels.labels import UNLABELLED, Classes
from lightning_prune.channels.operations import Stored
from lightning_prune.channels.walk import walk
from lightning_prune.models.calls import Call, make_call
from lightning_prune.models.compiled import copy_uncompiled
from lightning_prune.models.errors import describe_error
from lightning_prune.models.names import plain_name
from lightning_prune.models.tracing import trace


@dataclass(frozen=True, kw_only=True, eq=False)
class Slices:
    """Where the channels of a group lie in one parameter or buffer.

    Args:
        name: Its qualified name.
        axis: The axis that they lie along.
        channel: Which channel of the group each index of the axis belongs to; -1 for none.
        is_output: Whether this is the output axis of a layer that makes the channels.
    """

    name: str
    axis: int
    channel: Tensor
    is_output: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class CoupledChannels:
    """Channels that can be told apart and removed one by one, with all that goes with them.

    Args:
        slices: Where they lie, in the order of the model; a tensor may come twice, for two axes.
        labels: One for each channel, the same as in `Coupling.cuts`.
        is_residual: Whether an addition of two activations joins their makers.
        why_dense: Why they cannot be removed exactly; None if they can.
    """

    slices: tuple[Slices, ...]
    labels: Tensor
    is_residual: bool
    why_dense: str | None

    @property
    def channels(self) -> int:
        """How many there are."""
        return len(self.labels)

    @property
    def producers(self) -> tuple[str, ...]:
        """The names of the weights that make them."""
        return tuple(its.name for its in self.slices if its.is_output)

    @property
    def width(self) -> int:
        """How many indices along its makers' output axes are one channel, at least: a head's."""
        widths = [int((its.channel == 0).sum()) for its in self.slices if its.is_output]
        return math.gcd(*widths)


@dataclass(frozen=True, kw_only=True, eq=False)
class Coupling:
    """All channels of a model.

    Args:
        groups: Those that have a maker, in the order of the model.
        cuts: Where the model's code may count on their number.
    """

    groups: tuple[CoupledChannels, ...]
    cuts: tuple[Cut, ...]


def couple(module: nn.Module, example: Any) -> Coupling:
    """Trace a module, and find what its channels are coupled to.

    It is traced in training and in evaluation mode, or in the only one in which it can be.

    Args:
        module: Left as it is.
        example: What ``forward`` takes: a tensor, a tuple of arguments, or a dict of named ones.

    Raises:
        ValueError: If the module cannot be traced with this example.
    """
    classes = Classes()
    stored = _stored(module, classes)
    flow = Flow(classes)
    for program in _trace_modes(module, example):
        walk(flow, program, stored)
    flow.settle()
    cuts = [replace(cut, labels=classes.roots(cut.labels)) for cut in flow.cuts]
    return Coupling(groups=tuple(_groups(flow, stored, cuts)), cuts=tuple(cuts))


def _trace_modes(module: nn.Module, example: Any) -> list[torch.export.ExportedProgram]:
    """Trace both modes, or the only mode in which the model can be called."""
    call = make_call(module, example).double_single_sample()
    traced = [_try_trace(copy_uncompiled(module).train(mode), call) for mode in (True, False)]
    programs = [program for program in traced if not isinstance(program, Exception)]
    if isinstance(error := traced[-1], Exception) and not programs:
        raise ValueError(
            "need a forward that torch.export can trace, to find which channels go together, got "
            f"{describe_error(error)}; give an example that forward takes (example=..., or the "
            "module's example_input_array), and keep what depends on values of tensors out of "
            "forward"
        )
    return programs


def _try_trace(module: nn.Module, call: Call) -> "torch.export.ExportedProgram | Exception":
    try:
        return trace(module, call)
    except Exception as error:  # of the model's own code
        return error


def _stored(module: nn.Module, classes: Classes) -> dict[str, Stored]:
    """Return parameters and buffers with new labels for each axis; tied ones share them."""
    known: dict[int, Stored] = {}
    found: dict[str, Stored] = {}
    parameters = list(module.named_parameters(remove_duplicate=False))
    for name, tensor in [*parameters, *module.named_buffers(remove_duplicate=False)]:
        if id(tensor) not in known:
            known[id(tensor)] = Stored(
                name=plain_name(name),
                axes=tuple(classes.new(size) for size in tensor.shape),
                order=tuple(range(tensor.ndim)),
                is_parameter=isinstance(tensor, nn.Parameter),
            )
        found[plain_name(name)] = known[id(tensor)]
    return found


def _groups(
    flow: Flow, stored: Mapping[str, Stored], cuts: Sequence[Cut]
) -> Iterator[CoupledChannels]:
    """Put together the channels that lie along the same axes, and in the same parts of what is cut.

    Only then does what one of them can do tell what the others can.
    """
    places = [
        (tensor.name, axis, flow.classes.roots(labels))
        for tensor in dict.fromkeys(stored.values())
        for axis, labels in enumerate(tensor.axes)
    ]
    spans: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for index, (_, _, roots) in enumerate(places):
        found, counts = torch.unique(roots, return_counts=True)
        for root, count in zip(found.tolist(), counts.tolist(), strict=True):
            spans[root].append((index, count))
    parts = {frozenset(torch.unique(cut.labels).tolist()) for cut in cuts}
    alike: dict[Any, list[int]] = defaultdict(list)
    for root, its_spans in sorted(spans.items()):
        its_parts = frozenset(part for part in parts if root in part)
        alike[tuple(its_spans), its_parts].append(root)
    for (its_places, _), members in alike.items():
        slices = tuple(_slices(flow, places[index], members) for index, _ in its_places)
        if not any(its.is_output for its in slices) or UNLABELLED in members:
            continue
        reasons = [why for root in members if (why := flow.classes.why_dense(root))]
        if not reasons and len(members) == 1 and _is_whole(slices):
            reasons = ["all its channels go together"]
        yield CoupledChannels(
            slices=slices,
            labels=torch.tensor(members),
            is_residual=flow.classes.is_residual(members),
            why_dense=reasons[0] if reasons else None,
        )


def _slices(flow: Flow, place: tuple[str, int, Tensor], members: list[int]) -> Slices:
    name, axis, roots = place
    ordered = torch.tensor(members)
    position = torch.searchsorted(ordered, roots).clamp(max=len(members) - 1)
    return Slices(
        name=name,
        axis=axis,
        channel=torch.where(ordered[position] == roots, position, -1),
        is_output=axis in flow.output_axes.get(name, ()),
    )


def _is_whole(slices: tuple[Slices, ...]) -> bool:
    """Whether there is nothing along the maker's axis but this one channel."""
    return all(bool((its.channel == 0).all()) for its in slices if its.is_output)
