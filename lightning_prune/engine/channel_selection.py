"""Which channels of a model are pruned at all, and why the others are not."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from lightning_prune.channels.coupling import CoupledChannels, couple
from lightning_prune.channels.shrink import find_unremovable
from lightning_prune.engine.channel_groups import ChannelGroup
from lightning_prune.engine.selection import Candidate, Selection, candidates, entries
from lightning_prune.models.calls import make_call
from lightning_prune.recipe.patterns import ChannelPattern
from lightning_prune.recipe.targets import as_yaml
from lightning_prune.recipe.tensor import PrunedTensor


def select_channels(
    module: nn.Module,
    optimizers: Sequence[Optimizer],
    sparsity: Mapping[str, float | None],
    pattern: ChannelPattern,
    example: Any,
) -> Selection:
    """Choose the groups of channels to prune.

    A group takes the sparsity of its producers, the weights that make its channels, as
    `selection.select` finds it. It stays dense if one of them is not chosen, if it cannot be pruned
    exactly (which is tried on a copy), or if something of it is frozen or in another optimizer.
    What else is chosen among its tensors is scored, the rest follows.

    Args:
        module: The model.
        optimizers: What trains it.
        sparsity: Final sparsity, or None for dense, by glob.
        pattern: Which groups are in its scope.
        example: What ``forward`` takes; None for the model's ``example_input_array``.

    Raises:
        ValueError: If there is no example, the model cannot be traced, a glob matches nothing, or
            producers of one group have different sparsities.
    """
    found = candidates(module, optimizers, sparsity)
    if any(is_lazy(one.parameter) for one in found):
        return _waiting_for_shapes(found)
    by_name = {name: one for one in found for name in one.names}
    tensors: dict[str, PrunedTensor] = {}
    groups: list[ChannelGroup] = []
    call = make_call(module, example)
    coupling = couple(module, call)
    all_coupled = [_coupled(channels, by_name) for channels in coupling.groups]
    reasons = {index: _why_dense(coupled, pattern) for index, coupled in enumerate(all_coupled)}
    free = [index for index, reason in reasons.items() if reason is None]
    tried = find_unremovable(module, call, coupling, free)
    reasons |= {index: _Reason(why=why) for index, why in tried.items()}
    for index, coupled in enumerate(all_coupled):
        if reasons[index] is not None:
            continue
        _refuse_different_targets(coupled, sparsity)
        for one in coupled.members:
            tensors.setdefault(one.name, one.tensor())
        groups.append(
            ChannelGroup(
                members=tuple(tensors[one.name] for one in coupled.members),
                pattern=pattern,
                slices=coupled.channels.slices,
                channels=coupled.channels.channels,
                width=coupled.channels.width,
            )
        )
    dense = [(all_coupled[index], why) for index, why in reasons.items() if why is not None]
    return Selection(
        names=tuple(one.name for one in found),
        tensors=tuple(tensors[one.name] for one in found if one.name in tensors),
        dense=_reasons(found, dense, tensors),
        waiting=any(reason.passes for _, reason in dense),
        groups=tuple(groups),
        entries=entries(found),
    )


@dataclass(frozen=True, kw_only=True)
class _Coupled:
    """Channels with the parameters where they lie, the first producer first."""

    channels: CoupledChannels
    members: tuple[Candidate, ...]
    producers: tuple[Candidate, ...]


@dataclass(frozen=True, kw_only=True)
class _Reason:
    """Why channels stay dense, whose fault it is, and whether it may pass."""

    why: str
    culprit: str | None = None
    passes: bool = False

    def of(self, name: str) -> str:
        """Return it in words for one of the parameters where they lie."""
        is_other = self.culprit is not None and self.culprit != name
        return f"goes with '{self.culprit}': {self.why}" if is_other else self.why


def _coupled(channels: CoupledChannels, by_name: Mapping[str, Candidate]) -> _Coupled:
    slices = tuple(
        replace(its, name=by_name[its.name].name)
        for its in channels.slices
        if its.name in by_name  # buffers hold nothing to prune
    )
    producers = dict.fromkeys(its.name for its in slices if its.is_output)
    members = dict.fromkeys([*producers, *(its.name for its in slices)])
    return _Coupled(
        channels=replace(channels, slices=slices),
        members=tuple(by_name[name] for name in members),
        producers=tuple(by_name[name] for name in producers),
    )


def _why_dense(coupled: _Coupled, pattern: ChannelPattern) -> _Reason | None:
    channels = coupled.channels
    if channels.why_dense:
        return _Reason(why=channels.why_dense)
    if channels.is_residual and pattern.scope == "inner":
        return _Reason(why="residual stream, which scope='all' prunes")
    for one in coupled.producers:
        if one.why_dense:
            return _Reason(why=one.why_dense, culprit=one.name)
    for one in coupled.members:
        if one.why_unready:
            return _Reason(why=one.why_unready, culprit=one.name, passes=True)
    for one in coupled.members:
        if one.optimizer != coupled.members[0].optimizer:
            return _Reason(
                why=f"another optimizer than that of '{coupled.members[0].name}' owns it",
                culprit=one.name,
            )
    if pattern.round_kept(0, channels.channels, channels.width) == channels.channels:
        return _Reason(why=f"no more channels than round_to={pattern.round_to} keeps")
    return None


def _reasons(
    found: Sequence[Candidate],
    dense: Sequence[tuple[_Coupled, _Reason]],
    tensors: Mapping[str, PrunedTensor],
) -> dict[str, str]:
    """Return by name why channels of a parameter, or all of it, stay dense."""
    reasons: dict[str, str] = {}
    for coupled, reason in dense:
        for one in coupled.producers:
            reasons.setdefault(one.name, reason.of(one.name))
    for coupled, reason in dense:
        for one in coupled.members:
            if one.name not in tensors:
                reasons.setdefault(one.name, reason.of(one.name))
    for one in found:
        if one.name not in tensors:
            alone = one.why_dense or one.why_unready or "its channels cannot be followed"
            reasons.setdefault(one.name, alone)
    return {one.name: reasons[one.name] for one in found if one.name in reasons}


def _waiting_for_shapes(found: Sequence[Candidate]) -> Selection:
    lazy = next(one.name for one in found if is_lazy(one.parameter))
    dense = {
        one.name: one.why_dense or one.why_unready or f"waits for '{lazy}' to be initialised"
        for one in found
    }
    names = tuple(one.name for one in found)
    return Selection(names=names, dense=dense, waiting=True, entries=entries(found))


def _refuse_different_targets(coupled: _Coupled, sparsity: Mapping[str, float | None]) -> None:
    targets = {one.name: one.sparsity for one in coupled.producers}
    if len(set(targets.values())) > 1:
        got = ", ".join(f"'{name}': {target}" for name, target in targets.items())
        lines = {**sparsity, **dict.fromkeys(targets, coupled.producers[0].sparsity)}
        written = "".join(f'\n  "{glob}": {as_yaml(target)}' for glob, target in lines.items())
        raise ValueError(
            f"need one sparsity for channels that go together, got {got}; to give them one (or, "
            f"with null, to leave them dense), write\nsparsity:{written}"
        )
