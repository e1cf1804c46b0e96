"""The table of latencies by the channels that groups keep, measured on this machine."""

import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch import nn

from lightning_prune.arguments.checks import check_arguments
from lightning_prune.channels.narrowing import Narrower
from lightning_prune.deploy.latency_table import WHOLE, LatencyTable
from lightning_prune.engine.candidates import Selection
from lightning_prune.engine.channel_groups import ChannelGroup
from lightning_prune.engine.channel_layers import ChannelLayer, find_layers
from lightning_prune.models.progress import note_progress, show_progress, track_progress
from lightning_prune.recipe.budgets import LatencyBudget
from lightning_prune.reporting.latency import Latency
from lightning_prune.reporting.stopwatch import Stopwatch

WIDTH_BLOCKS = 101  # a single group saves little: more than a report of a whole model has

SECONDS = 300.0
"""Default seconds that the measurement may take."""

_UNIFORM = (0.75, 0.5, 0.25)  # fractions of the channels that all groups keep
_CHOICES = ((0.75, 0.5, 0.25), (0.5, 0.25), (0.5,))  # fractions that a group keeps alone


@check_arguments
def measure_latency_table(
    module: nn.Module,
    example: Any,
    selection: Selection,
    budget: LatencyBudget,
    *,
    seconds: float = SECONDS,
    blocks: int = WIDTH_BLOCKS,
    announce: Callable[[str], object] | None = None,
    timer: Callable[[nn.Module], Latency] | None = None,
    progress: bool = True,
) -> LatencyTable:
    """Measure how long the model takes when single groups, and all groups, keep fewer channels.

    Each narrower model takes turns with the dense model. Groups of the same shapes in other blocks
    are narrowed at once, and each gets an equal part of the saving. So small savings stand out
    from the noise. If the time does not suffice for three widths of each group, there are two, or
    one. The module does not change.

    Args:
        module: The dense model, with any weights; left as it is.
        example: The arguments of ``forward``.
        selection: The groups of channels that are pruned.
        budget: The runtime, the number of threads and the batch size.
        seconds: Time for the measurement, positive. One width of each group is measured even if it
            takes longer.
        blocks: Number of pairs of blocks of calls for each width, at least 6.
        announce: Called with a sentence that says how many widths are measured, and about how long
            it takes.
        timer: Measures a module in turns with the dense module; by default a `Stopwatch`.
        progress: Whether to show a progress bar in a terminal.

    Raises:
        ValueError: If the module cannot be traced or exported, ``seconds`` is not positive, or the
            groups are no channels.
        ModuleNotFoundError: If ONNX Runtime is to be used and not installed.
    """
    if not seconds > 0:
        raise ValueError(f"need seconds > 0, got seconds={seconds}")
    with show_progress(progress):
        note_progress("preparing to measure latencies", 0, 1)
        groups = _list_channels(selection)
        narrower = Narrower(module, example, {group.name: group.places for group in groups})
        measure = timer or Stopwatch(module, example, budget, blocks)
        start = time.perf_counter()
        dense = measure(narrower.narrow({}))
        each = time.perf_counter() - start
        kin = find_kin(groups, find_layers(module, selection, example))
        widths = _plan(kin, seconds, each)
        if announce is not None:
            announce(_describe_plan(len(widths), len(groups), dense, len(widths) * each))
        everything = sum(group.total for group in groups)
        dense_ms = 1000 * dense.dense.median
        ms: dict[str, dict[float, float]] = {WHOLE: {everything: dense_ms}}
        ms |= {group.name: {group.total: dense_ms} for group in groups}
        for width in track_progress(widths, "measuring the latency of narrower models"):
            latency = measure(narrower.narrow(width.kept))
            for name, channels in width.rows.items():
                ms[name][channels] = dense_ms * (1 - (1 - 1 / latency.speedup) / width.shares)
        return LatencyTable(ms=ms, note=_describe_place(dense, budget))


def _list_channels(selection: Selection) -> tuple[ChannelGroup, ...]:
    """Return the groups of channels; raise ValueError for groups that cannot be removed."""
    for group in selection.groups:
        if not group.pattern.couples_tensors:
            raise ValueError(
                "need a pattern whose atoms can be removed, such as ChannelPattern(), to measure "
                f"latencies, got pattern={group.pattern}"
            )
    return cast("tuple[ChannelGroup, ...]", selection.groups)


def find_kin(
    groups: Sequence[ChannelGroup], layers: Sequence[ChannelLayer]
) -> list[list[ChannelGroup]]:
    """Return groups of equal shapes and equal work that share no tensor, together.

    Args:
        groups: The groups.
        layers: The layers of the model.
    """
    work: dict[str, float] = defaultdict(float)
    for layer in layers:
        work[layer.name] += layer.work
    alike: dict[Hashable, list[list[ChannelGroup]]] = defaultdict(list)
    for group in groups:
        families = alike[_describe_shapes(group, work)]
        names = {place.name for place in group.places}
        for family in families:
            if names.isdisjoint(place.name for other in family for place in other.places):
                family.append(group)
                break
        else:
            families.append([group])
    return [family for families in alike.values() for family in families]


@dataclass(frozen=True, kw_only=True)
class _Width:
    """A narrower model to measure.

    Args:
        kept: The channels that groups keep in the model, by name.
        rows: The channels in the table, by the name of the row.
        shares: Among how many groups the saving is shared.
    """

    kept: Mapping[str, int]
    rows: Mapping[str, int]
    shares: int


def _plan(kin: Sequence[Sequence[ChannelGroup]], seconds: float, each: float) -> list[_Width]:
    """Return the narrower models, as many as the time suffices for if each takes some seconds."""
    for fractions in _CHOICES:
        widths = [*_narrow_all(kin), *_narrow_single(kin, fractions)]
        if len(widths) * each <= seconds:
            return widths
    return widths


def _narrow_all(kin: Sequence[Sequence[ChannelGroup]]) -> Iterator[_Width]:
    everything = sum(group.total for family in kin for group in family)
    measured = {everything}
    for fraction in _UNIFORM:
        kept = {group.name: _round(group, fraction) for family in kin for group in family}
        if (total := sum(kept.values())) not in measured:
            measured.add(total)
            yield _Width(kept=kept, rows={WHOLE: total}, shares=1)


def _narrow_single(
    kin: Sequence[Sequence[ChannelGroup]], fractions: Sequence[float]
) -> Iterator[_Width]:
    for family in kin:
        first = family[0]
        for kept in dict.fromkeys(_round(first, fraction) for fraction in fractions):
            if kept < first.total:
                of_all = {group.name: kept for group in family}
                yield _Width(kept=of_all, rows=of_all, shares=len(family))


def _round(group: ChannelGroup, fraction: float) -> int:
    return group.round_keep(round(fraction * group.total))


def _describe_shapes(group: ChannelGroup, work: Mapping[str, float]) -> Hashable:
    """Return what two groups have in common if removing channels saves the same work."""
    shapes = {member.name: tuple(member.mask.shape) for member in group.members}
    places = [
        (
            shapes[place.name],
            place.axis,
            place.is_output,
            work[place.name],
            tuple(place.channel_of_index.tolist()),
        )
        for place in group.places
    ]
    return group.total, tuple(sorted(places))


def _describe_plan(widths: int, groups: int, dense: Latency, seconds: float) -> str:
    return (
        f"measures {widths} widths of {groups} groups of channels in {dense.runtime} "
        f"({_count_threads(dense)}), about {max(1, round(seconds))} s"
    )


def _describe_place(dense: Latency, budget: LatencyBudget) -> str:
    batch = "" if budget.batch_size is None else f", batch size {budget.batch_size}"
    return f"{dense.runtime}, {dense.device}, {_count_threads(dense)}{batch}"


def _count_threads(latency: Latency) -> str:
    return f"{latency.threads} thread{'s' if latency.threads > 1 else ''}"
