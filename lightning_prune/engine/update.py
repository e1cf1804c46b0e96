"""One update of the masks: score, allocate, choose, mask, clear."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.optim import Optimizer

from lightning_prune.engine.choices import Choice, Settled, settle, settle_held
from lightning_prune.engine.division import Division
from lightning_prune.engine.groups import Group, Scores
from lightning_prune.engine.optimizers import clear_pruned, forget_directions
from lightning_prune.engine.pools import Pool
from lightning_prune.engine.scores import ScoreBook
from lightning_prune.recipe.criteria import Criterion
from lightning_prune.recipe.recipe import Recipe
from lightning_prune.recipe.tensor import PrunedTensor, note_pruned, note_renewed
from lightning_prune.tensors.shards import sum_shards


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


def update_masks(recipe: Recipe, pools: Sequence[Pool], optimizer: Optimizer, due: Due) -> None:
    """Prune and regrow the tensors of an optimizer, as far as that is due.

    All answers of the user are asked before the first mask changes. So an answer that raises
    changes nothing.

    Args:
        recipe: The answers.
        pools: The pools of this optimizer.
        optimizer: Its statistics of newly pruned or regrown weights are zeroed.
        due: The pruning and the regrowth that are due.
    """
    book = ScoreBook(tensor.name for pool in pools for tensor in pool.tensors)
    wanted: list[tuple[Group, Choice]] = []
    exchanges: list[tuple[Group, Tensor]] = []
    for pool in pools:
        chosen, exchanged = _choose_with_regrowth(recipe, pool, due, book)
        wanted += chosen
        exchanges += exchanged
        book.release(pool.tensors)
    choices = settle(wanted)
    book.check()
    for pool in pools:
        for group in pool.groups:
            group.forget_changes()
    counts: dict[PrunedTensor, Tensor] = {}
    renewed: dict[PrunedTensor, Tensor] = {}
    for group, choice in choices:
        if group.may_return:
            renewed |= group.renew(choice)
        else:
            counts |= group.intersect(choice)
    note_pruned(counts)
    note_renewed(renewed)
    for group, mask in exchanges:
        group.regrow(mask)
    if due.suspends:
        tensors = dict.fromkeys(tensor for pool in pools for tensor in pool.tensors)
        for tensor in tensors:  # in the same order on all processes, which count together
            if tensor.is_trained:
                tensor.suspend_mask()
    _clear([tensor for pool in pools for tensor in pool.tensors], optimizer)


def prune_pool(pool: Pool, target: float, scores: Scores) -> None:
    """Bring the masks of one pool to a sparsity, outside a training; weights stay as they are."""
    if not pool.is_satisfied(target, was_due_before=False):
        for group, choice in settle(list(pool.choose(target, scores))):
            group.keep(choice)


def find_next(recipe: Recipe, pools: Sequence[Pool], due: Due) -> dict[str, Tensor]:
    """Return the atoms that an update would prune, by the name of the group; nothing changes."""
    book = ScoreBook(tensor.name for pool in pools for tensor in pool.tensors)
    found: dict[str, Tensor] = {}
    for pool in pools:
        for group, choice in settle(_choose(recipe, pool, due, book)):
            goes = group.alive() & ~group.alive_after(choice)
            if int(sum_shards(goes.count_nonzero(), group.shard)):
                found[group.name] = goes
        book.release(pool.tensors)
    book.check()
    return found


def _choose_with_regrowth(
    recipe: Recipe, pool: Pool, due: Due, book: ScoreBook
) -> tuple[Sequence[tuple[Group, Choice]], Sequence[tuple[Group, Tensor]]]:
    """Choose the atoms that stay, and the masks after regrowth; neither holds scores in memory."""
    chosen = _choose(recipe, pool, due, book)
    if due.exchanged is None:
        return settle_held(chosen), []
    settled = settle(chosen)
    return settled, _choose_exchanges(recipe, pool, due, book, dict(settled))


def _choose(recipe: Recipe, pool: Pool, due: Due, book: ScoreBook) -> list[tuple[Group, Choice]]:
    """Score the tensors of a pool, allocate, and choose the atoms that stay."""
    if due.pruned is None:
        return []
    target = pool.sparsity * due.pruned
    if not (due.renews and pool.may_return) and _is_satisfied(recipe, pool, due, target):
        return []
    scores = book.read(pool.tensors, _first_criterion(recipe, pool))
    if due.division is not None:
        return list(due.division.choose(pool, scores))
    if recipe.budgets:
        return list(pool.choose_keeps(pool.atoms_kept, scores))
    return list(pool.choose(target, scores))


def _is_satisfied(recipe: Recipe, pool: Pool, due: Due, target: float) -> bool:
    """Whether no more is kept than due; under a budget, between due points, it is so."""
    if due.division is not None:
        return due.division.is_satisfied
    return bool(recipe.budgets) or pool.is_satisfied(target, was_due_before=due.was_due_before)


def _choose_exchanges(
    recipe: Recipe, pool: Pool, due: Due, book: ScoreBook, chosen: dict[Group, Settled]
) -> list[tuple[Group, Tensor]]:
    """Choose the masks after regrowth, which follows the pruning of the same update."""
    if recipe.regrow is None or due.exchanged is None:
        return []
    found: list[tuple[Group, Tensor]] = []
    for group in pool.groups:
        alive = group.alive_after(chosen[group]) if group in chosen else group.alive()
        if exchanged := group.count_exchanged(alive, due.exchanged):
            drop = book.read(group.members, recipe.chosen_criterion)
            grow = book.read(group.members, recipe.regrow.criterion)
            found.append((group, group.choose_exchange(alive, exchanged, drop=drop, grow=grow)))
    return found


def _first_criterion(recipe: Recipe, pool: Pool) -> Criterion:
    """Return the criterion that prunes: while nothing is pruned, regrowth may name another."""
    first = recipe.regrow.first if recipe.regrow else None
    return first if first and pool.is_dense else recipe.chosen_criterion


def _clear(tensors: Sequence[PrunedTensor], optimizer: Optimizer) -> None:
    """Zero newly pruned weights, and the statistics of all changed weights; not if they return."""
    unique = dict.fromkeys(tensors)
    changed = [tensor for tensor in unique if tensor.changes and not tensor.may_return]
    for tensor in changed:
        tensor.mask.apply(tensor.weights)
        clear_pruned(optimizer, tensor.parameter, tensor.mask)
    if changed:
        forget_directions(optimizer)
