"""Which channels of a model live or die together, read off the graphs of its forward pass."""

import copy
import math
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from lightning_prune.channels.flow import CountedAxis, Flow
from lightning_prune.channels.labels import NO_CHANNEL, Labels
from lightning_prune.channels.operations import StoredTensor
from lightning_prune.channels.walk import walk
from lightning_prune.models.calls import as_call
from lightning_prune.models.names import plain_name


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
        labels: One for each channel, the same as in `Coupling.counted_axes`.
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
        counted_axes: Where the model's code may count on their number.
    """

    groups: tuple[CoupledChannels, ...]
    counted_axes: tuple[CountedAxis, ...]


def couple(module: nn.Module, example: Any) -> Coupling:
    """Trace a module, and find what its channels are coupled to.

    It is traced in training and in evaluation mode, or in the only one in which it can be.

    Args:
        module: Left as it is.
        example: What ``forward`` takes: a tensor, a tuple of arguments, or a dict of named ones.

    Raises:
        ValueError: If the module cannot be traced with this example.
    """
    labels = Labels()
    stored = _stored(module, labels)
    flow = Flow(labels)
    for program in _programs(module, example):
        walk(flow, program, stored)
    flow.settle()
    counted_axes = [
        replace(cut, labels=labels.representatives(cut.labels)) for cut in flow.counted_axes
    ]
    return Coupling(
        groups=tuple(_groups(flow, stored, counted_axes)), counted_axes=tuple(counted_axes)
    )


def with_two_samples(example: Any) -> Any:
    """Return an example whose batch is not of 1: some normalisations cannot train on that."""

    def twice(value: Any) -> Any:
        is_one = isinstance(value, Tensor) and value.ndim > 0 and len(value) == 1
        return torch.cat([value, value]) if is_one else value

    return tree_map(twice, example)


def _programs(module: nn.Module, example: Any) -> list[torch.export.ExportedProgram]:
    """Trace both modes, or the one that can be: some models are not called in the other."""
    args, kwargs = as_call(module, with_two_samples(example))
    traced = [_traced(module, args, kwargs, training) for training in (True, False)]
    programs = [program for program in traced if not isinstance(program, Exception)]
    if not programs:
        error = traced[-1]
        cause = (str(error).splitlines() or [""])[0]
        raise ValueError(
            "need a forward that torch.export can trace, to find which channels go together, got "
            f"{type(error).__name__}: {cause}; give an example that forward takes (example=..., "
            "or the module's example_input_array), and keep what depends on values of tensors "
            "out of forward"
        )
    return programs


def _traced(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], training: bool
) -> "torch.export.ExportedProgram | Exception":
    try:
        copied = copy.deepcopy(module).train(training)
        with _plainly(), undisturbed(module):
            return torch.export.export(copied, args, kwargs, strict=False)
    except Exception as error:  # whatever the model's own code raises
        return error


@contextmanager
def undisturbed(module: nn.Module) -> Iterator[None]:
    """Leave the random number generators that a module may use as they are now."""
    devices = {p.device for p in module.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices):
        yield


@contextmanager
def _plainly() -> Iterator[None]:
    """Trace what is computed, not the fused kernels that hide it."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with (
            torch.compiler.set_stance("force_eager"),
            warnings.catch_warnings(category=FutureWarning, action="ignore"),  # of torch to itself
        ):
            warnings.filterwarnings("ignore", "The tensor attributes .* assigned during export")
            yield  # recurrent layers keep a list of their weights, which is assigned
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _stored(module: nn.Module, labels: Labels) -> dict[str, StoredTensor]:
    """Return parameters and buffers with new labels for each axis; tied ones share them."""
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
        found[name] = known[id(tensor)]
    return found


def _groups(
    flow: Flow, stored: Mapping[str, StoredTensor], counted_axes: Sequence[CountedAxis]
) -> Iterator[CoupledChannels]:
    """Put together the channels that lie along the same axes, and in the same parts of what is cut.

    Only then does what one of them can do tell what the others can.
    """
    places = [
        (tensor.name, axis, flow.labels.representatives(labels))
        for tensor in dict.fromkeys(stored.values())
        for axis, labels in enumerate(tensor.axis_labels)
    ]
    spans: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for index, (_, _, roots) in enumerate(places):
        found, counts = torch.unique(roots, return_counts=True)
        for root, count in zip(found.tolist(), counts.tolist(), strict=True):
            spans[root].append((index, count))
    parts = {frozenset(torch.unique(cut.labels).tolist()) for cut in counted_axes}
    alike: dict[Any, list[int]] = defaultdict(list)
    for root, its_spans in sorted(spans.items()):
        its_parts = frozenset(part for part in parts if root in part)
        alike[tuple(its_spans), its_parts].append(root)
    for (its_places, _), members in alike.items():
        slices = tuple(_slices(flow, places[index], members) for index, _ in its_places)
        if not any(its.is_output for its in slices) or NO_CHANNEL in members:
            continue
        reasons = [why for root in members if (why := flow.labels.why_dense(root))]
        if not reasons and len(members) == 1 and _is_whole(slices):
            reasons = ["all its channels go together"]
        yield CoupledChannels(
            slices=slices,
            labels=torch.tensor(members),
            is_residual=flow.labels.is_residual(members),
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
