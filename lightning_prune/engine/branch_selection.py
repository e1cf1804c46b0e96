"""Branch selection: the residual branches that are pruned, and why the others stay dense."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from lightning_prune.channels.branch_removal import find_unremovable_branches
from lightning_prune.channels.branches import Branch, find_branches
from lightning_prune.engine.branch_groups import BranchGroup
from lightning_prune.engine.candidates import (
    Candidate,
    Selection,
    count_weights,
    find_candidates,
)
from lightning_prune.engine.channel_selection import wait_for_shapes
from lightning_prune.engine.extents import Axis, Product
from lightning_prune.engine.whole_copies import find_from_whole
from lightning_prune.models.calls import make_call
from lightning_prune.recipe.patterns import Pattern
from lightning_prune.recipe.targets import format_target, format_targets
from lightning_prune.recipe.tensor import PrunedTensor

_OUTSIDE = "in no residual branch that can be left out"


def select_branches(
    module: nn.Module,
    optimizers: Sequence[Optimizer],
    sparsity: Mapping[str, float | None],
    pattern: Pattern,
    example: Any,
) -> Selection:
    """Choose the residual branches to prune.

    A branch takes the sparsity of its chosen weights. It stays dense if a weight of it is null, if
    it cannot be left out exactly (which is tried on a copy), if it is in several optimizers, or if
    a parameter of it is frozen, unless globs other than ``*`` name all its weights.

    Args:
        module: The model.
        optimizers: The optimizers that train it.
        sparsity: Final sparsity, or None for dense, by glob.
        pattern: What an atom is.
        example: What ``forward`` takes; None for the model's ``example_input_array``.

    Raises:
        ValueError: If there is no example, the model cannot be traced, a glob matches nothing, or
            weights of one branch have different sparsities.
    """
    found = find_candidates(module, optimizers, sparsity)
    if any(is_lazy(each.parameter) for each in found):
        return wait_for_shapes(found)
    call = make_call(module, example)
    branches = find_from_whole(module, lambda whole: find_branches(whole, make_call(whole, call)))
    by_name = {name: each for each in found for name in each.names}
    members = [_find_members(branch, by_name) for branch in branches]
    tried = find_from_whole(
        module, lambda whole: find_unremovable_branches(whole, make_call(whole, call), branches)
    )
    reasons = {index: tried.get(index) or _why_dense(of) for index, of in enumerate(members)}
    chosen = [_Chosen(branches[i], members[i]) for i, reason in reasons.items() if reason is None]
    for each in chosen:
        _refuse_different_targets(each, sparsity)
    pruned = {member.name for each in chosen for member in each.members}
    tensors = {each.name: each.make_tensor() for each in found if each.name in pruned}
    groups = [(_make_group(alike, tensors, pattern), alike) for alike in _find_alike(chosen)]
    why = {m.name: reason for index, reason in reasons.items() if reason for m in members[index]}
    return Selection(
        names=tuple(each.name for each in found),
        tensors=tuple(tensors.values()),
        dense={
            each.name: why.get(each.name) or each.why_dense or _OUTSIDE
            for each in found
            if each.name not in tensors
        },
        unready=frozenset(m.name for of in members for m in of if _may_pass(m)) - tensors.keys(),
        groups=tuple(group for group, _ in groups),
        sizes=count_weights(found),
        products=tuple(each for pair in groups for each in _describe_products(*pair)),
    )


@dataclass(frozen=True)
class _Chosen:
    """A branch that is pruned, with its parameters, a chosen weight first."""

    branch: Branch
    members: tuple[Candidate, ...]

    @property
    def kin(self) -> tuple[object, ...]:
        """What branches of one group share."""
        first = self.members[0]
        shapes = tuple(tuple(each.parameter.shape) for each in self.members)
        is_trained = first.why_untrained is None
        return self.branch.kind, shapes, first.glob, first.optimizer, is_trained


def _find_members(branch: Branch, by_name: Mapping[str, Candidate]) -> tuple[Candidate, ...]:
    """Return the parameters of a branch, the chosen weights first."""
    members = {by_name[name].name: by_name[name] for name in branch.parameters}
    return tuple(sorted(members.values(), key=lambda each: each.why_dense is not None))


def _find_alike(chosen: Sequence[_Chosen]) -> Iterator[list[_Chosen]]:
    """Yield the branches that are made alike, in the order of the model."""
    found: dict[tuple[object, ...], list[_Chosen]] = {}
    for each in chosen:
        found.setdefault(each.kin, []).append(each)
    yield from found.values()


def _make_group(
    alike: Sequence[_Chosen], tensors: Mapping[str, PrunedTensor], pattern: Pattern
) -> BranchGroup:
    return BranchGroup(
        members=tuple(tensors[member.name] for each in alike for member in each.members),
        pattern=pattern,
        branch_of={m.name: number for number, each in enumerate(alike) for m in each.members},
    )


def _describe_products(group: BranchGroup, alike: Sequence[_Chosen]) -> Iterator[Product]:
    """Yield the products of activations in the modules of each branch, which go with it."""
    number = group.total
    axis = Axis(length=number, spans=((group.name, number, 1),))
    for each in alike:
        for name in each.branch.inside:
            yield Product(module=name, parameters=frozenset(), macs=1, axes=(axis,))


def _why_dense(members: Sequence[Candidate]) -> str | None:
    """Return the first reason why a branch stays dense; None if it can be pruned."""
    first = members[0]
    null = next((each for each in members if each.glob and each.why_dense), None)
    if first.why_dense is not None:
        return null.why_dense if null else first.why_dense
    if null is not None:
        return f"goes with '{null.name}': {null.why_dense}"
    is_named = all(each.is_named for each in members if each.why_dense is None)
    for member in members:
        if why := member.why_unready or (None if is_named else member.why_untrained):
            return f"goes with '{member.name}': {why}"
        if member.optimizer != first.optimizer:
            return f"another optimizer than that of '{first.name}' owns '{member.name}'"
    return None


def _may_pass(member: Candidate) -> bool:
    """Whether a parameter may join later."""
    waits = member.why_unready or member.why_untrained
    return member.why_dense is None and waits is not None


def _refuse_different_targets(chosen: _Chosen, sparsity: Mapping[str, float | None]) -> None:
    """Raise ValueError if the chosen weights of a branch have different sparsities."""
    targets = {each.name: each.sparsity for each in chosen.members if each.why_dense is None}
    if len(set(targets.values())) > 1:
        got = ", ".join(f"'{name}': {format_target(target)}" for name, target in targets.items())
        lines = {**sparsity, **dict.fromkeys(targets, chosen.members[0].sparsity)}
        raise ValueError(
            f"need one sparsity for the weights of a branch, got {got}; to give them one, write\n"
            f"{format_targets(lines)}"
        )
