"""Enrolment: the tensors under pruning, which stay unchanged while other tensors join or leave."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor, nn

from lightning_prune.engine.candidates import Selection
from lightning_prune.engine.division import Division, divide
from lightning_prune.engine.groups import Group
from lightning_prune.engine.limits import Limits
from lightning_prune.engine.pools import Pool, make_pools
from lightning_prune.models.names import list_names
from lightning_prune.recipe.recipe import Recipe
from lightning_prune.recipe.targets import format_targets
from lightning_prune.recipe.tensor import PrunedTensor
from lightning_prune.tensors.shards import Shard, sum_by_tensor

_LISTED_NAMES = 5


@dataclass(frozen=True, kw_only=True)
class Enrolment:
    """The tensors under pruning.

    Args:
        selection: The tensors and groups, and the reasons why other parameters stay dense.
        pools: The groups; those of a pool share a number to keep.
        plan: The final sparsity of each group by name; None if it depends on the scores.
        limits: The costs that budgets allow.
        affordable: The numbers of atoms that budgets let the groups keep in the end, by name,
            where scores do not matter; empty without a budget.
    """

    selection: Selection = field(default_factory=Selection)
    pools: tuple[Pool, ...] = ()
    plan: Mapping[str, float | None] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    affordable: Mapping[str, int] = field(default_factory=dict)

    @property
    def kept(self) -> dict[str, int]:
        """The number of atoms that each group keeps, by name."""
        return {group.name: group.atoms_kept for group in self.selection.groups}

    @property
    def final_sparsity(self) -> float:
        """The sparsity that all groups together are due to have in the end.

        Under a budget it is exact where the allocation needs no scores, and else a forecast until
        the budget is met.
        """
        if not self.limits:
            return self.mean_target(lambda index: 1.0)
        if self.limits.fits(self.kept, 1.0):
            return self.sparsity
        groups = self.selection.groups
        kept = sum(self.affordable[each.name] / each.total * each.size for each in groups)
        return 1 - kept / sum(group.size for group in groups)

    @property
    def sparsity(self) -> float:
        """Fraction of the weights, or channels, under pruning that the masks prune."""
        groups = self.selection.groups
        size = sum(group.size for group in groups)
        return 1 - sum(group.kept for group in groups) / size if size else 0.0

    @property
    def parameter_sparsity(self) -> float:
        """Fraction of the weights of all parameters of the model that the masks prune."""
        pruned = sum(tensor.total - tensor.kept for tensor in self.selection.tensors)
        return pruned / sum(self.selection.sizes.values()) if pruned else 0.0

    def find_alive(self) -> dict[str, Tensor]:
        """Return which atoms each group keeps, by name."""
        return {group.name: group.alive() for group in self.selection.groups}

    def compare(self, before: Mapping[str, Tensor]) -> dict[str, float]:
        """Return the share of each group's atoms that differ from an earlier `find_alive`."""
        differing: list[tuple[Tensor, Shard | None]] = []
        for group in self.selection.groups:
            alive = group.alive()
            others = (alive ^ before.get(group.name, alive)).count_nonzero()
            differing.append((others.cpu(), group.shard))
        counts = sum_by_tensor(differing).tolist() if differing else []
        groups = zip(self.selection.groups, counts, strict=True)
        return {group.name: count / group.total for group, count in groups}

    def limit(self, limits: Limits) -> "Enrolment":
        """Return the enrolment under other limits, with another plan."""
        affordable = divide(limits, self.pools, 1.0) if limits else {}
        plan = {name: final for pool in self.pools for name, final in pool.plan(affordable).items()}
        return replace(self, limits=limits, affordable=affordable, plan=plan)

    def divide(
        self, share: float | None, optimizer: int, shares: Callable[[int], float]
    ) -> Division | None:
        """Return what budgets let the pools of an optimizer keep; None without a budget.

        Args:
            share: The share of the final sparsity that is due; None if no pruning is due.
            optimizer: The index of the optimizer.
            shares: The share that has been pruned, by the index of an optimizer.
        """
        if share is None or not self.limits:
            return None
        served = [
            p for p in self.pools if p.optimizer != optimizer and shares(p.optimizer) >= share
        ]
        return Division(self.limits, self.pools, share, served)

    def targets(self, share: Callable[[int], float]) -> dict[str, float]:
        """Return the sparsity that is due for the pool of each group, as far as floors allow.

        Under a budget the cost is due; then the sparsity is what that has led to.

        Args:
            share: The share of the final sparsity that is due, by the index of an optimizer.
        """
        if self.limits:
            groups = (group for pool in self.pools for group in pool.groups)
            return {group.name: 1 - group.kept / group.size for group in groups}
        due: dict[str, float] = {}
        for pool in self.pools:
            reached = pool.reach(pool.sparsity * share(pool.optimizer))
            due |= {group.name: reached for group in pool.groups}
        return due

    def mean_target(self, share: Callable[[int], float]) -> float:
        """Return the sparsity that all groups together are due to have.

        Args:
            share: The share of the final sparsity that is due, by the index of an optimizer.
        """
        if self.limits:
            return self.sparsity
        sizes = [sum(group.size for group in pool.groups) for pool in self.pools]
        due = [pool.reach(pool.sparsity * share(pool.optimizer)) for pool in self.pools]
        pruned = sum(target * size for target, size in zip(due, sizes, strict=True))
        return pruned / sum(sizes) if sizes else 0.0


def enroll(
    before: Enrolment,
    found: Selection,
    recipe: Recipe,
    *,
    present: Mapping[str, nn.Parameter],
    restore: Callable[[PrunedTensor], None],
    is_fresh: Callable[[PrunedTensor], bool],
    make_limits: Callable[[Selection], Limits],
) -> Enrolment:
    """Enroll a selection; tensors under pruning do not change, even if this raises.

    Args:
        before: The tensors under pruning.
        found: The selection from the present model.
        recipe: The answers of the user.
        present: The parameters of the present model, under each name that they have.
        restore: Gives a new tensor the saved mask and state.
        is_fresh: Whether a tensor has no saved mask.
        make_limits: Returns the costs that budgets allow.

    Raises:
        ValueError: If a budget cannot be reached, `keep_zeros` finds a group without a weight that
            is not 0, a saved mask keeps no weight of a group, or a row that must keep a weight has
            none.
    """
    owners = {t: (t.optimizer, t.is_trained) for t in before.selection.tensors}
    try:
        selection = merge_selection(before.selection, found, present, restore)
        new = {tensor for tensor in selection.tensors if tensor not in owners}
        fresh = {tensor for tensor in new if is_fresh(tensor)}
        _refuse_empty_masks([g for g in selection.groups if (new - fresh).intersection(g.members)])
        if recipe.keep_zeros:
            _keep_zeros([g for g in selection.groups if fresh.intersection(g.members)], recipe)
        _refuse_lost_rows(selection.groups)
        limits = make_limits(selection) if selection.groups else Limits()
        limits.check(selection.groups)
        allocation, by_glob = recipe.chosen_allocation, not recipe.budgets
        pools = make_pools(selection.groups, allocation, limits.savings, by_glob=by_glob)
        enrolment = Enrolment(selection=selection, pools=pools).limit(limits)
    except BaseException:
        for tensor, owner in owners.items():
            tensor.optimizer, tensor.is_trained = owner
        raise
    return enrolment


def merge_selection(
    before: Selection,
    found: Selection,
    present: Mapping[str, nn.Parameter],
    restore: Callable[[PrunedTensor], None],
) -> Selection:
    """Return the selection found, with unchanged tensors and groups for those under pruning.

    Tensors under pruning stay under pruning, even if the user has frozen them since, or taken them
    from their optimizer. They leave with their parameter. If a layer has replaced another layer,
    the pruned channels are pruned in the new layer too.

    Args:
        before: The selection under pruning.
        found: The selection from the present model.
        present: The parameters of the present model, under each name that they have.
        restore: Gives a new tensor the saved mask and state.
    """
    known = _merge_tensors(before, found, restore)
    places = {name: place for place, name in enumerate(found.names)}
    earlier = {
        group.name: group
        for group in before.groups
        if all(known[member.name].parameter is present.get(member.name) for member in group.members)
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


def _merge_tensors(
    before: Selection, found: Selection, restore: Callable[[PrunedTensor], None]
) -> dict[str, PrunedTensor]:
    """Return all tensors by name; a tensor found again stays the same object.

    A tensor that an optimizer trained once stays in the pool of that optimizer.
    """
    known = {tensor.name: tensor for tensor in before.tensors}
    for tensor in found.tensors:
        same = known.get(tensor.name)
        if same is not None and same.parameter is tensor.parameter:
            if tensor.is_trained:
                same.optimizer, same.is_trained = tensor.optimizer, True
        else:
            restore(tensor)
            known[tensor.name] = tensor
    return known


def _refuse_lost_rows(groups: Sequence[Group]) -> None:
    """Raise ValueError if a group lacks a row: a saved mask or `keep_zeros` has taken it."""
    for group in groups:
        if group.rows and (lost := group.count_lost_rows()):
            raise ValueError(
                f"need a weight in each row of '{group.name}', which the model divides by the norm "
                f"of the row, got {lost} rows without any, by the saved masks or keep_zeros=True; "
                f'to leave that dense, write sparsity: {{"*": {group.sparsity}, '
                f'"{group.name}": null}}'
            )


def _refuse_empty_masks(groups: list[Group]) -> None:
    """Raise ValueError for a group that has a saved mask but no weight left to train."""
    for group in groups:
        if group.atoms_kept == 0 and group.sparsity < 1 and group.floor:
            raise ValueError(
                f"need a saved mask that keeps a weight, got none in '{group.name}': the state is "
                "damaged, or comes from a run with sparsity 1; go on from another checkpoint, or "
                f"write sparsity={{'{group.name}': 1.0}}"
            )


def _keep_zeros(groups: list[Group], recipe: Recipe) -> None:
    """Prune the atoms with only zero weights.

    Raises:
        ValueError: If all atoms of a group have only zero weights, as the last matrix of an adapter
            has at the start.
    """
    if not groups:
        return
    nonzero = [(group, group.nonzero()) for group in groups]
    counts = sum_by_tensor([(atoms.count_nonzero().cpu(), group.shard) for group, atoms in nonzero])
    empty = [group.name for group, n in zip(groups, counts, strict=True) if group.floor and not n]
    if empty:
        listed = list_names([f"'{name}'" for name in empty], _LISTED_NAMES)
        lines = format_targets({**recipe.targets, **dict.fromkeys(empty)})
        raise ValueError(
            f"need a weight that is not 0 with keep_zeros=True, got none in {listed}; to leave "
            f"that dense, write\n{lines}"
        )
    for group, atoms in nonzero:
        group.keep(atoms)
