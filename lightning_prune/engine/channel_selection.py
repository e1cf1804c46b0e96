"""Channel selection: the groups of channels that are pruned, and why the others stay dense."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from lightning_prune.channels.coupling import ChannelPlace, CoupledChannels, couple
from lightning_prune.channels.shrink import find_unremovable
from lightning_prune.engine.candidates import (
    Candidate,
    Selection,
    count_weights,
    find_candidates,
)
from lightning_prune.engine.channel_groups import ChannelGroup
from lightning_prune.engine.extents import describe_products
from lightning_prune.engine.whole_copies import find_from_whole
from lightning_prune.models.calls import make_call
from lightning_prune.recipe.patterns import Pattern
from lightning_prune.recipe.targets import UNCAPPED, format_target, format_targets
from lightning_prune.recipe.tensor import PrunedTensor


def select_channels(
    module: nn.Module,
    optimizers: Sequence[Optimizer],
    sparsity: Mapping[str, float | None],
    pattern: Pattern,
    example: Any,
) -> Selection:
    """Choose the groups of channels to prune.

    A group takes the sparsity of its producers, the weights that make its channels. It stays dense
    if a producer is not chosen, if it cannot be pruned exactly (which is tried on a copy), or if a
    member is in another optimizer. It also stays dense if a member is frozen, unless globs other
    than ``*`` name all producers. The criterion scores the chosen tensors of a group;
    the others share their fate.

    Args:
        module: The model.
        optimizers: The optimizers that train it.
        sparsity: Final sparsity, or None for dense, by glob.
        pattern: Which groups are pruned.
        example: What ``forward`` takes; None for the model's ``example_input_array``.

    Raises:
        ValueError: If there is no example, the model cannot be traced, a glob matches nothing, or
            producers of one group have different sparsities.
    """
    found = find_candidates(module, optimizers, sparsity)
    if any(is_lazy(each.parameter) for each in found):
        return wait_for_shapes(found)
    call = make_call(module, example)
    coupling = find_from_whole(module, lambda whole: couple(whole, call))
    by_name = {name: each for each in found for name in each.names}
    coupled = [_find_members(channels, by_name) for channels in coupling.groups]
    reasons = {index: _why_dense(group, pattern) for index, group in enumerate(coupled)}
    free = [index for index, reason in reasons.items() if reason is None]
    tried = find_from_whole(module, lambda whole: find_unremovable(whole, call, coupling, free))
    reasons |= {index: _Reason(why=why) for index, why in tried.items()}
    dense = [(coupled[index], reason) for index, reason in reasons.items() if reason is not None]
    chosen = [coupled[index] for index, reason in reasons.items() if reason is None]
    for group in chosen:
        _refuse_different_targets(group, sparsity)
    pruned = {member.name for group in chosen for member in group.members}
    tensors = {each.name: each.make_tensor() for each in found if each.name in pruned}
    groups = tuple(_make_group(group, tensors, pattern) for group in chosen)
    labels = {made.name: each.channels.labels for made, each in zip(groups, chosen, strict=True)}
    return Selection(
        names=tuple(each.name for each in found),
        tensors=tuple(tensors.values()),
        dense=_list_reasons(found, dense, tensors),
        unready=frozenset(
            member.name for group, reason in dense if reason.may_pass for member in group.members
        ),
        groups=groups,
        sizes=count_weights(found),
        products=describe_products(coupling.multiplications, labels),
    )


@dataclass(frozen=True, kw_only=True)
class _Coupled:
    """Channels with the parameters where they lie, the first producer first.

    Args:
        channels: The channels, with places in parameters only.
        members: The parameters.
        producers: The weights that make the channels.
        buffers: The places in buffers, which hold nothing to prune.
    """

    channels: CoupledChannels
    members: tuple[Candidate, ...]
    producers: tuple[Candidate, ...]
    buffers: tuple[ChannelPlace, ...]


@dataclass(frozen=True, kw_only=True)
class _Reason:
    """Why channels stay dense, because of which parameter, and whether the reason may pass."""

    why: str
    culprit: str | None = None
    may_pass: bool = False

    def describe(self, name: str) -> str:
        """Return the reason in words for a parameter where the channels lie."""
        is_other = self.culprit is not None and self.culprit != name
        return f"goes with '{self.culprit}': {self.why}" if is_other else self.why


def _find_members(channels: CoupledChannels, by_name: Mapping[str, Candidate]) -> _Coupled:
    """Return channels with the parameters where they lie."""
    places = tuple(
        replace(place, name=by_name[place.name].name)
        for place in channels.places
        if place.name in by_name
    )
    producers = dict.fromkeys(place.name for place in places if place.is_output)
    members = dict.fromkeys([*producers, *(place.name for place in places)])
    return _Coupled(
        channels=replace(channels, places=places),
        members=tuple(by_name[name] for name in members),
        producers=tuple(by_name[name] for name in producers),
        buffers=tuple(place for place in channels.places if place.name not in by_name),
    )


def _make_group(
    coupled: _Coupled, tensors: Mapping[str, PrunedTensor], pattern: Pattern
) -> ChannelGroup:
    return ChannelGroup(
        members=tuple(tensors[member.name] for member in coupled.members),
        pattern=pattern,
        places=coupled.channels.places,
        buffers=coupled.buffers,
        channels=coupled.channels.size,
        width=coupled.channels.width,
    )


def _why_dense(coupled: _Coupled, pattern: Pattern) -> _Reason | None:
    """Return the first reason why channels stay dense; None if they can be pruned."""
    channels, owner = coupled.channels, coupled.members[0]
    if channels.why_dense:
        return _Reason(why=channels.why_dense)
    if channels.is_residual and not pattern.prunes_residual_streams:
        return _Reason(why="residual stream, which scope='all' prunes")
    for producer in coupled.producers:
        if producer.why_dense:
            return _Reason(why=producer.why_dense, culprit=producer.name)
    is_named = all(producer.is_named for producer in coupled.producers)
    for member in coupled.members:
        if why := member.why_unready or (None if is_named else member.why_untrained):
            return _Reason(why=why, culprit=member.name, may_pass=True)
    for member in coupled.members:
        if member.optimizer != owner.optimizer:
            why = f"another optimizer than that of '{owner.name}' owns it"
            return _Reason(why=why, culprit=member.name)
    if pattern.round_kept(0, channels.size, channels.width) == channels.size:
        return _Reason(why=f"{pattern} keeps all {channels.size} channels")
    return None


def _list_reasons(
    found: Sequence[Candidate],
    dense: Sequence[tuple[_Coupled, _Reason]],
    tensors: Mapping[str, PrunedTensor],
) -> dict[str, str]:
    """Return by name why a parameter, or the channels that it makes, stays dense."""
    reasons: dict[str, str] = {}
    for coupled, reason in dense:
        for producer in coupled.producers:
            reasons.setdefault(producer.name, reason.describe(producer.name))
    for coupled, reason in dense:
        for member in coupled.members:
            if member.name not in tensors:
                reasons.setdefault(member.name, reason.describe(member.name))
    for each in found:
        if each.name not in tensors:
            waits = each.why_unready or each.why_untrained
            alone = each.why_dense or waits or "its channels cannot be followed"
            reasons.setdefault(each.name, alone)
    return {each.name: reasons[each.name] for each in found if each.name in reasons}


def wait_for_shapes(found: Sequence[Candidate]) -> Selection:
    """Return a selection of nothing, which may grow once all parameters have a shape."""
    lazy = next(each.name for each in found if is_lazy(each.parameter))
    waits = f"waits for '{lazy}' to be initialized"
    return Selection(
        names=tuple(each.name for each in found),
        dense={
            each.name: each.why_dense or each.why_unready or each.why_untrained or waits
            for each in found
        },
        unready=frozenset(each.name for each in found),
        sizes=count_weights(found),
    )


def _refuse_different_targets(coupled: _Coupled, sparsity: Mapping[str, float | None]) -> None:
    """Raise ValueError if the producers of channels have different sparsities."""
    targets = {producer.name: producer.sparsity for producer in coupled.producers}
    if len(set(targets.values())) > 1:
        got = ", ".join(f"'{name}': {format_target(target)}" for name, target in targets.items())
        given = next(target for target in targets.values() if target != UNCAPPED)
        lines = {**sparsity, **dict.fromkeys(targets, given)}
        raise ValueError(
            f"need one sparsity for channels that go together, got {got}; to give them one (or, "
            f"with null, to leave them dense), write\n{format_targets(lines)}"
        )
