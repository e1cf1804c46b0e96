"""The updates of a training: what is due in each, and how many there were."""

from collections.abc import Mapping

from torch.optim import Optimizer

from lightning_prune.engine.due_points import DuePoints
from lightning_prune.engine.enrolment import Enrolment
from lightning_prune.engine.update import Due, update_masks
from lightning_prune.engine.zero_watch import ZeroWatch
from lightning_prune.recipe.recipe import Recipe


class Updates:
    """Makes the updates of a training, and counts them.

    Args:
        recipe: The answers.
        zeros: Looks for pruned weights that are not 0, before an update.

    Attributes:
        number: Number of updates that were due.
        choices: Number of times that masks were chosen, at due points or between them.
        changed: Share of each group that the last update changed, by name.
    """

    def __init__(self, recipe: Recipe, zeros: ZeroWatch) -> None:
        self.number = self.choices = 0
        self.changed: Mapping[str, float] = {}
        self._recipe, self._zeros = recipe, zeros

    def count(self, changed: Mapping[str, float]) -> None:
        """Count an update that changed these shares of the groups."""
        self.number, self.choices, self.changed = self.number + 1, self.choices + 1, changed

    def make(
        self,
        optimizer: Optimizer,
        index: int,
        enrolment: Enrolment,
        points: DuePoints,
        *,
        renews: bool = False,
    ) -> bool:
        """Update the masks; return whether a due point was passed for the first time.

        Args:
            optimizer: The owner of the tensors.
            index: The index of the optimizer.
            enrolment: The tensors under pruning.
            points: The due points that were served.
            renews: Whether to choose anew also without a due point, where atoms may return.
        """
        pruning, regrowing = points.next_pruning(index), points.next_regrowth(index)
        is_pruned = pruning is None or points.was_pruned(index, pruning)
        is_new = regrowing is not None or not is_pruned
        due = self._find_due(index, enrolment, points, is_new=is_new, renews=renews)
        pools = [pool for pool in enrolment.pools if pool.optimizer == index]
        update_masks(self._recipe, pools, optimizer, due, self._zeros.take_tally())
        points.note_served(index, pruning, regrowing)
        if due.pruned is not None:
            for tensor in (tensor for pool in pools for tensor in pool.tensors):
                tensor.suspended = None
        changed = {group.name: group.changed for pool in pools for group in pool.groups}
        self._note(index, enrolment, points, changed, is_new=is_new)
        return is_new

    def _find_due(
        self, index: int, enrolment: Enrolment, points: DuePoints, *, is_new: bool, renews: bool
    ) -> Due:
        """Return the pruning and the regrowth that are due."""
        pruning, regrowing = points.next_pruning(index), points.next_regrowth(index)
        regrow, phases = self._recipe.regrow, self._recipe.phases
        share = None if pruning is None else self._recipe.schedule(pruning)
        turn = points.last_regrowth(index) if regrowing is None else regrowing
        if phases is not None and phases.is_dense(turn):
            return Due(pruned=None, suspends=regrowing is not None)
        if phases is not None and share is None:
            share = points.share(index)
        division = enrolment.divide(share, index, points.share_of_all)
        if renews and not is_new and (division is None or division.is_satisfied):
            share, division = points.share(index), None
        return Due(
            pruned=share,
            exchanged=regrow.share_at(regrowing) if regrow and regrowing is not None else None,
            was_due_before=points.was_pruned(index, pruning),
            division=division,
            renews=renews or is_new,
        )

    def _note(
        self,
        index: int,
        enrolment: Enrolment,
        points: DuePoints,
        changed: Mapping[str, float],
        *,
        is_new: bool,
    ) -> None:
        """Note the changes of an update, and drop states that no later update needs."""
        # Otherwise a resume has repeated an update, or atoms return, and gathering continues.
        is_counted = is_new or (any(changed.values()) and not points.goes_on)
        if is_counted:
            self.count(changed)
        else:
            self.choices += 1
        for tensor in enrolment.selection.tensors:
            if tensor.optimizer != index:
                continue
            if is_counted and self._recipe.chosen_criterion.resets_at_update:
                tensor.state = {}
            if tensor.hooks and points.is_over(index):
                tensor.remove_hooks()
                tensor.state = {}
