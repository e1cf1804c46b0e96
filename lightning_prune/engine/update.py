"""One update of the masks: score, allocate, choose, mask, clear."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor
from torch.optim import Optimizer

from lightning_prune.engine.choices import Choice, Waiting, settle, unpack
from lightning_prune.engine.division import Division
from lightning_prune.engine.groups import Group, Scores, count_atoms
from lightning_prune.engine.optimizers import mask_tensors
from lightning_prune.engine.pools import Pool
from lightning_prune.engine.scores import ScoreBook
from lightning_prune.engine.tally import Counted, Tally
from lightning_prune.recipe.criteria import Criterion
from lightning_prune.recipe.recipe import Recipe
from lightning_prune.recipe.tensor import PrunedTensor
from lightning_prune.tensors.parts import count_pieces


@dataclass(frozen=True, kw_only=True)
class Due:
    """The pruning and the regrowth that are due in an update.

    Args:
        pruned: Share of the final sparsity that is due; None if no pruning is.
        exchanged: Share of the kept atoms that regrowth exchanges; None if it is not due.
        was_due_before: Whether this pruning was already applied before a resume.
        division: The atoms that budgets let the pools keep; None without a budget, or where the
            groups keep as many as before.
        suspends: Whether a dense phase begins, in which all trained weights are kept.
        renews: Whether pools whose atoms may return choose anew, also if as many are kept as due.
    """

    pruned: float | None
    exchanged: float | None = None
    was_due_before: bool = False
    division: Division | None = None
    suspends: bool = False
    renews: bool = False


@dataclass(frozen=True, kw_only=True, eq=False)
class _Exchange:
    """The atoms of a group before and after regrowth.

    Args:
        group: The group.
        alive: Which local atoms are kept before.
        atoms: Which local atoms are kept after.
    """

    group: Group
    alive: Tensor
    atoms: Tensor


def update_masks(
    recipe: Recipe, pools: Sequence[Pool], optimizer: Optimizer, due: Due, tally: Tally
) -> None:
    """Prune and regrow the tensors of an optimizer, as far as that is due.

    All answers of the user are asked before the first mask changes. So an answer that raises
    changes nothing.

    Args:
        recipe: The answers.
        pools: The pools of this optimizer.
        optimizer: Its statistics of newly pruned or regrown weights are zeroed.
        due: The pruning and the regrowth that are due.
        tally: Numbers that the host has to read before the first mask changes.
    """
    book = ScoreBook(tensor.name for pool in pools for tensor in pool.tensors)
    groups = [group for pool in pools for group in pool.groups]
    count_atoms(groups)

    def choose() -> Iterator[tuple[Group, Choice]]:
        for pool in pools:
            yield from _choose(recipe, pool, due, book)
            if due.exchanged is None:
                book.release(pool.tensors)

    choices = settle(choose())
    exchanges = _choose_exchanges(recipe, pools, due, book, dict(choices))
    book.ask(tally)
    _carry_out(groups, choices, exchanges, tally)
    if due.suspends:
        tensors = dict.fromkeys(tensor for pool in pools for tensor in pool.tensors)
        for tensor in tensors:
            if tensor.is_trained:
                tensor.suspend_mask()
    _clear([tensor for pool in pools for tensor in pool.tensors], optimizer)


def prune_pool(pool: Pool, target: float, scores: Scores) -> None:
    """Bring the masks of one pool to a sparsity, outside a training; weights stay as they are."""
    if not pool.is_satisfied(target, was_due_before=False):
        for group, choice in settle(pool.choose(target, scores)):
            group.keep(unpack(choice))


def find_next(recipe: Recipe, pools: Sequence[Pool], due: Due) -> dict[str, Tensor]:
    """Return the atoms that an update would prune, by the name of the group; nothing changes."""
    book = ScoreBook(tensor.name for pool in pools for tensor in pool.tensors)
    count_atoms(group for pool in pools for group in pool.groups)
    goes: dict[str, Tensor] = {}
    numbers: dict[str, int] = {}
    tally = Tally()
    for pool in pools:
        for group, choice in settle(_choose(recipe, pool, due, book)):
            goes[group.name] = group.alive() & ~group.alive_after(unpack(choice))
            count = count_pieces(goes[group.name])
            tally.add(count, group.shard, partial(numbers.__setitem__, group.name))
        book.release(pool.tensors)
    book.ask(tally)
    tally.read()
    return {name: atoms for name, atoms in goes.items() if numbers[name]}


def _carry_out(
    groups: Sequence[Group],
    choices: Sequence[tuple[Group, Waiting]],
    exchanges: Sequence[_Exchange],
    tally: Tally,
) -> None:
    """Change the masks, once a tally has found nothing to refuse, and note what has changed."""
    foreseen: list[Callable[[], None]] = []
    regrown: list[Callable[[], None]] = []

    def add(numbers: Iterable[Counted], later: list[Callable[[], None]]) -> None:
        for count, shard, take in numbers:
            tally.add(count, shard, lambda *found, take=take: later.append(partial(take, *found)))

    for group, choice in choices:
        add(group.foresee(unpack(choice)), foreseen)
    for each in exchanges:
        add(each.group.foresee_exchange(each.alive, each.atoms), regrown)
    tally.read()
    for group in groups:
        group.forget_changes()
    counted = Tally()
    for group, choice in ((group, unpack(waiting)) for group, waiting in choices):
        counts = group.renew(choice) if group.may_return else group.intersect(choice)
        for tensor, count in counts.items():
            counted.add(count, tensor.shard, tensor.note_changed)
    for take in foreseen:
        take()
    for group in groups:
        group.ask(counted)
    counted.read()
    for each in exchanges:
        each.group.regrow(each.atoms)
    for take in regrown:
        take()


def _choose(
    recipe: Recipe, pool: Pool, due: Due, book: ScoreBook
) -> Iterable[tuple[Group, Choice]]:
    """Score the tensors of a pool, allocate, and choose the atoms that stay, group by group."""
    if due.pruned is None:
        return []
    target = pool.sparsity * due.pruned
    if not (due.renews and pool.may_return) and _is_satisfied(recipe, pool, due, target):
        return []
    scores = book.read(pool.tensors, _first_criterion(recipe, pool))
    if due.division is not None:
        return due.division.choose(pool, scores)
    if recipe.budgets:
        return pool.choose_keeps(pool.atoms_kept, scores)
    return pool.choose(target, scores)


def _is_satisfied(recipe: Recipe, pool: Pool, due: Due, target: float) -> bool:
    """Whether no more is kept than due; under a budget, between due points, it is so."""
    if due.division is not None:
        return due.division.is_satisfied
    return bool(recipe.budgets) or pool.is_satisfied(target, was_due_before=due.was_due_before)


def _choose_exchanges(
    recipe: Recipe, pools: Sequence[Pool], due: Due, book: ScoreBook, chosen: dict[Group, Waiting]
) -> list[_Exchange]:
    """Choose the masks after regrowth, which follows the pruning of the same update."""
    if recipe.regrow is None or due.exchanged is None:
        return []

    def find_alive(group: Group) -> Tensor:
        return group.alive_after(unpack(chosen[group])) if group in chosen else group.alive()

    kept: dict[Group, int] = {}
    tally = Tally()
    for group in (group for pool in pools for group in pool.groups):
        count = count_pieces(find_alive(group))
        tally.add(count, group.shard, partial(kept.__setitem__, group))
    tally.read()
    found: list[_Exchange] = []
    for pool in pools:
        for group in pool.groups:
            if exchanged := group.count_exchanged(kept[group], due.exchanged):
                alive = find_alive(group)
                drop = book.read(group.members, recipe.chosen_criterion)
                grow = book.read(group.members, recipe.regrow.criterion)
                atoms = group.choose_exchange(alive, kept[group], exchanged, drop=drop, grow=grow)
                found.append(_Exchange(group=group, alive=alive, atoms=atoms))
        book.release(pool.tensors)
    return found


def _first_criterion(recipe: Recipe, pool: Pool) -> Criterion:
    """Return the criterion that prunes: while nothing is pruned, regrowth may name another."""
    first = recipe.regrow.first if recipe.regrow else None
    return first if first and pool.is_dense else recipe.chosen_criterion


def _clear(tensors: Sequence[PrunedTensor], optimizer: Optimizer) -> None:
    """Zero newly pruned weights, and the statistics of all changed weights; not if they return."""
    unique = dict.fromkeys(tensors)
    changed = [tensor for tensor in unique if tensor.changes and not tensor.may_return]
    if changed:
        mask_tensors(optimizer, changed)
