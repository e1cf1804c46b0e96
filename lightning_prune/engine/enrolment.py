"""Enrolment: the tensors that are pruned now, kept as they are while others join or leave."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from lightning_prune.engine.candidates import Selection
from lightning_prune.engine.groups import Group
from lightning_prune.engine.pools import Pool, make_pools
from lightning_prune.recipe.recipe import Recipe
from lightning_prune.recipe.tensor import PrunedTensor


@dataclass(frozen=True, kw_only=True)
class Enrolment:
    """The tensors that are pruned now.

    Args:
        selection: The tensors and groups, and the reasons why others stay dense.
        pools: The groups by the number to keep that they share.
        plan: The final sparsity of each group; None where only the training will tell.
    """

    selection: Selection = field(default_factory=Selection)
    pools: tuple[Pool, ...] = ()
    plan: Mapping[str, float | None] = field(default_factory=dict)

    @property
    def sparsity(self) -> float:
        """Fraction of the weights, or channels, under pruning that is zero: counted from masks."""
        groups = self.selection.groups
        size = sum(group.size for group in groups)
        return 1 - sum(group.kept for group in groups) / size if size else 0.0

    @property
    def parameter_sparsity(self) -> float:
        """Fraction of the entries of all the model's parameters that is pruned."""
        pruned = sum(tensor.total - tensor.kept for tensor in self.selection.tensors)
        return pruned / self.selection.weights if pruned else 0.0


def enroll(
    before: Enrolment,
    found: Selection,
    recipe: Recipe,
    *,
    restore: Callable[[PrunedTensor], None],
    is_fresh: Callable[[PrunedTensor], bool],
) -> Enrolment:
    """Take up a selection; nothing that is pruned already changes, also if this raises.

    Args:
        before: The tensors that are being pruned.
        found: The selection of the model as it is now.
        recipe: The answers.
        restore: Gives a new tensor its saved mask and state.
        is_fresh: Whether a tensor has no saved mask.

    Raises:
        ValueError: If `keep_zeros` finds a group without a weight that is not 0.
    """
    owners = {tensor: tensor.optimizer for tensor in before.selection.tensors}
    try:
        selection = merge_selection(before.selection, found, restore)
        if recipe.keep_zeros:
            fresh = {t for t in selection.tensors if t not in owners and is_fresh(t)}
            _keep_zeros([g for g in selection.groups if fresh.intersection(g.members)])
        pools = make_pools(selection.groups, recipe.chosen_allocation)
        plan = {name: final for pool in pools for name, final in pool.plan().items()}
    except BaseException:
        for tensor, optimizer in owners.items():
            tensor.optimizer = optimizer
        raise
    return Enrolment(selection=selection, pools=pools, plan=plan)


def merge_selection(
    before: Selection, found: Selection, restore: Callable[[PrunedTensor], None]
) -> Selection:
    """Return the selection that is found, with the tensors that are pruned already as they are.

    Tensors under pruning stay so, also where they have been frozen since. Pruned channels are
    pruned in a layer that has replaced another, too.

    Args:
        before: The selection that is being pruned.
        found: The selection of the model as it is now.
        restore: Called with each new tensor first.
    """
    known = {tensor.name: tensor for tensor in before.tensors}
    for tensor in found.tensors:
        same = known.get(tensor.name)
        if same is not None and same.parameter is tensor.parameter:
            same.optimizer = tensor.optimizer
        else:
            restore(tensor)
            known[tensor.name] = tensor
    places = {name: place for place, name in enumerate(found.names)}
    earlier = {
        group.name: group
        for group in before.groups
        if all(member.name in places for member in group.members)
    }
    groups = {
        group.name: replace(group, members=tuple(known[member.name] for member in group.members))
        for group in (*earlier.values(), *found.groups)
    }
    for name, group in groups.items():
        if name in earlier and group.pattern.couples_tensors:
            group.keep(earlier[name].alive())
    ordered = sorted(groups.values(), key=lambda group: places[group.members[0].name])
    tensors = {member.name for group in ordered for member in group.members}
    lost = earlier.keys() - {group.name for group in found.groups}
    hidden = {name for group in lost for name in groups[group].producers}
    hidden |= tensors - {tensor.name for tensor in found.tensors}
    return replace(
        found,
        tensors=tuple(known[name] for name in found.names if name in tensors),
        dense={name: why for name, why in found.dense.items() if name not in hidden},
        groups=tuple(ordered),
    )


def _keep_zeros(groups: list[Group]) -> None:
    """Prune the atoms that are zero already.

    Raises:
        ValueError: If a group has no other atoms.
    """
    nonzero = [(group, group.nonzero()) for group in groups]
    for group, atoms in nonzero:
        if not atoms.any():
            raise ValueError(
                f"need a weight that is not 0 with keep_zeros=True, got none in '{group.name}'"
            )
    for group, atoms in nonzero:
        group.keep(atoms)
