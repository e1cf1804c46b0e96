"""One training under pruning: its tensors, its due points, and the hooks on its optimizers."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lightning_prune.engine.checkpoint import describe_tensors
from lightning_prune.engine.due_points import DuePoints
from lightning_prune.engine.earlier_masks import EarlierMasks
from lightning_prune.engine.enrolment import Enrolment, enroll
from lightning_prune.engine.ownership import Ownership
from lightning_prune.engine.selection import select
from lightning_prune.engine.update import Due, update_masks
from lightning_prune.engine.zero_keeper import ZeroKeeper
from lightning_prune.models.names import named_parameters
from lightning_prune.models.sharding import reshard
from lightning_prune.recipe.clocks import Clock
from lightning_prune.recipe.recipe import Recipe
from lightning_prune.recipe.schedules import Schedule
from lightning_prune.recipe.tensor import PrunedTensor
from lightning_prune.tensors.shards import sum_replicas, sum_shards


class Training:
    """One training under pruning. Before `begin` it is empty; after `end` it stays readable.

    A method that raises leaves all as it was.

    Args:
        recipe: The answers.

    Attributes:
        enrolment: The tensors that are pruned now.
        due_points: The completed steps, and the due points that were served.
        updates: Number of updates that were due.
        changed: Share of each group that the last update changed, by name.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.enrolment = Enrolment()
        regrow = recipe.regrow.schedule if recipe.regrow else None
        self.due_points = DuePoints(recipe.schedule, regrow)
        self.updates = 0
        self.changed: dict[str, float] = {}
        self._model: nn.Module | None = None
        self._optimizers: list[Optimizer] = []
        self._is_trial_step: Callable[[Optimizer], bool]
        self._example: Any = None
        self._earlier = EarlierMasks(None, nn.Module())
        self._ownerships: list[Ownership] = []
        self._hooks: list[RemovableHandle] = []
        self._keepers: list[ZeroKeeper] = []

    @property
    def is_running(self) -> bool:
        """Whether hooks are on the optimizers: between `begin` and `end`."""
        return self._model is not None

    @property
    def tensors(self) -> tuple[PrunedTensor, ...]:
        """The tensors that are pruned, in the order of the model."""
        return self.enrolment.selection.tensors

    def begin(
        self,
        model: nn.Module,
        optimizers: Sequence[Optimizer],
        *,
        clocks: Callable[[Schedule], Clock],
        is_trial_step: Callable[[Optimizer], bool],
        example: Any,
        state: Mapping[str, Any] | None,
    ) -> None:
        """Choose the tensors, restore a state, and hook the optimizers."""
        self._model, self._example, self._is_trial_step = model, example, is_trial_step
        selection = select(model, optimizers, self.recipe, example)
        self._earlier = EarlierMasks(state, model)
        self.due_points = DuePoints(
            self.due_points.schedule,
            self.due_points.regrow,
            clocks=clocks,
            state=state,
            optimizers=len(optimizers),
        )
        enrolment = enroll(
            self.enrolment,
            selection,
            self.recipe,
            present=named_parameters(model),
            restore=partial(self._restore, steps=self.due_points.steps),
            is_fresh=self._is_fresh,
        )
        self._watch(enrolment)
        self._optimizers = list(optimizers)
        try:
            self._commit(enrolment)
            self._hook_optimizers()
        except BaseException:
            self.end(completed=False)
            raise

    def follow(self, optimizers: Sequence[Optimizer]) -> None:
        """Continue with replaced or added optimizers; each place keeps the count of steps."""
        optimizers = list(optimizers)
        if optimizers == self._optimizers:
            return
        steps = self.due_points.steps
        steps += [0] * (len(optimizers) - len(steps))
        enrolment = self._enroll(optimizers, steps)
        self._unhook_optimizers()
        self._optimizers = optimizers
        self.due_points.follow(len(optimizers))
        self._commit(enrolment)
        self._hook_optimizers()

    def before_step(self, optimizer: Optimizer) -> None:
        """Observe and update once a step; mask weights and gradients each time."""
        index = self.index(optimizer)
        if self._ownerships[index].has_grown(optimizer):
            self._select_again()
        if index not in self.due_points.in_step:
            is_due = self.due_points.is_due(index)
            if is_due:
                self._look_at_model()
            self._keepers[index].clear()
            self._observe(optimizer, is_due=is_due)
            self.due_points.in_step.add(index)
        for tensor in self.owned(index):
            tensor.forget_seen()  # LBFGS has seen the same inputs again
        self._keepers[index].before_step()

    def update(self, optimizer: Optimizer) -> bool:
        """Update the masks if an update is due; return whether a due point was passed."""
        index, points = self.index(optimizer), self.due_points
        if not points.is_due(index):
            return False
        pruning, regrowing = points.next_pruning(index), points.next_regrowth(index)
        regrow, was_due_before = self.recipe.regrow, points.was_pruned(index, pruning)
        due = Due(
            pruned=None if pruning is None else self.recipe.schedule(pruning),
            exchanged=regrow.share_at(regrowing) if regrow and regrowing is not None else None,
            was_due_before=was_due_before,
        )
        pools = [pool for pool in self.enrolment.pools if pool.optimizer == index]
        update_masks(self.recipe, pools, optimizer, due)
        points.note_served(index, pruning, regrowing)
        is_new = regrowing is not None or (pruning is not None and not was_due_before)
        changed = {group.name: group.changed for pool in pools for group in pool.groups}
        self._note_update(index, changed, is_new=is_new)
        return is_new

    def end(self, *, completed: bool) -> list[str]:
        """Take all hooks away and mask; return the tensors whose pruned weights were not 0."""
        if completed:
            self._look_at_model()
        self._unhook_optimizers()
        self._model = None
        revived = []
        for tensor in self.tensors:
            tensor.remove_hooks()
            tensor.follow_parameter()
            if completed:
                alive = (tensor.weights != 0) & ~tensor.mask.kept
                if sum_shards(alive.sum(), tensor.shard):
                    revived.append(tensor.name)
            tensor.mask.apply(tensor.weights)
        return revived

    def describe_tensors(self) -> dict[str, Any]:
        """Return masks, shapes and states of the tensors that the model has now.

        A layer may have left the model since the last look.
        """
        if self._model is None:
            return describe_tensors(self.tensors, self._earlier.state)
        reshard(self._model)
        present = named_parameters(self._model)
        tensors = [each for each in self.tensors if present.get(each.name) is each.parameter]
        return describe_tensors(tensors, self._earlier.find_waiting(self._model))

    def owned(self, index: int) -> Iterator[PrunedTensor]:
        """Yield the tensors that an optimizer owns."""
        return (tensor for tensor in self.tensors if tensor.optimizer == index)

    def index(self, optimizer: Optimizer) -> int:
        """Return the place of an optimizer in the list of optimizers.

        Raises:
            ValueError: If it is another one.
        """
        for index, known in enumerate(self._optimizers):
            if known is optimizer:
                return index
        raise ValueError("need one of the optimizers given to attach(), got another one")

    # -- enrolment ---------------------------------------------------------------------------------

    def _enroll(self, optimizers: Sequence[Optimizer], steps: Sequence[int]) -> Enrolment:
        """Look again which tensors are pruned."""
        assert self._model is not None
        enrolment = enroll(
            self.enrolment,
            select(self._model, optimizers, self.recipe, self._example),
            self.recipe,
            present=named_parameters(self._model),
            restore=partial(self._restore, steps=steps),
            is_fresh=self._is_fresh,
        )
        self._watch(enrolment)
        return enrolment

    def _look_at_model(self) -> None:
        """Select again if the model has other parameters than at the last look."""
        assert self._model is not None
        if self._earlier.has_other_parameters(self._model):
            self._select_again()

    def _select_again(self) -> None:
        """Take up tensors that an optimizer has gained; they are due at once."""
        assert self._model is not None
        self._earlier.check_shapes(self._model)
        self._commit(self._enroll(self._optimizers, self.due_points.steps))
        self._renew_keepers()
        parameters = named_parameters(self._model)
        waiting = [parameters[name] for name in self.enrolment.selection.unready]
        for index, optimizer in enumerate(self._optimizers):
            self._ownerships[index].look_again(optimizer, waiting)
            self.due_points.look_again(index)

    def _is_fresh(self, tensor: PrunedTensor) -> bool:
        """Whether a new tensor has no mask from before."""
        return not self._earlier.has(tensor)

    def _restore(self, tensor: PrunedTensor, *, steps: Sequence[int]) -> None:
        """Give a new tensor the step count of the owner, and the mask and state from before."""
        tensor.step = steps[tensor.optimizer]
        self._earlier.give_to(tensor)

    def _watch(self, enrolment: Enrolment) -> None:
        """Let the criterion hook the tensors that it does not watch yet; none if it raises."""
        watched: list[PrunedTensor] = []
        try:
            for tensor in enrolment.selection.tensors:
                is_over = self.due_points.is_over(tensor.optimizer)
                if tensor.is_scored and not tensor.hooks and not is_over:
                    watched.append(tensor)
                    tensor.hooks = self.recipe.criterion.watch(tensor)
        except BaseException:
            for tensor in watched:
                tensor.remove_hooks()
            raise

    def _commit(self, enrolment: Enrolment) -> None:
        """Continue with other tensors: mask new tensors, and free the tensors that are gone."""
        before, after = set(self.tensors), set(enrolment.selection.tensors)
        self.enrolment = enrolment
        for tensor in before - after:
            tensor.remove_hooks()
        for tensor in after - before:
            tensor.mask.apply(tensor.weights)
        assert self._model is not None
        self._earlier.note(self._model, enrolment.selection, before - after)

    # -- steps -------------------------------------------------------------------------------------

    def _observe(self, optimizer: Optimizer, *, is_due: bool) -> None:
        """Let the criterion observe, and update the masks if due; if either raises, all is undone.

        Replicas choose the same masks: DDP has already averaged their gradients, and the sums that
        hooks have gathered are added up here.
        """
        tensors = [tensor for tensor in self.owned(self.index(optimizer)) if tensor.is_scored]
        sum_replicas(value for tensor in tensors for value in tensor.seen.values())
        before = {tensor: tensor.state for tensor in tensors}
        try:
            for tensor in tensors:
                tensor.state = self.recipe.criterion.observe(tensor, tensor.state)
            if is_due:
                self.update(optimizer)
        except BaseException:
            for tensor, state in before.items():
                tensor.state = state
            raise

    def _note_update(self, index: int, changed: dict[str, float], *, is_new: bool) -> None:
        """Note the changes of an update, and drop states that no later update needs."""
        # Otherwise a resume has repeated an update, and gathering continues.
        updated = is_new or any(changed.values())
        if updated:
            self.updates += 1
            self.changed = changed
        for tensor in self.owned(index):
            if updated and self.recipe.criterion.resets_at_update:
                tensor.state = {}
            if tensor.hooks and self.due_points.is_over(index):
                tensor.remove_hooks()
                tensor.state = {}

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        index = self.index(optimizer)
        if index in self.due_points.in_step:
            self.due_points.complete_step(index)
        elif not self._is_trial_step(optimizer):
            raise RuntimeError(
                "need before_step(optimizer) between backward() and step(), got a step without it; "
                "in a LightningModule, step what self.optimizers() returns"
            )
        else:
            for tensor in self.owned(index):
                tensor.forget_seen()
        self._keepers[index].after_step()
        step = self.due_points.steps[index]
        for tensor in self.owned(index):
            tensor.step = step

    def _hook_optimizers(self) -> None:
        self._renew_keepers()
        self._ownerships = [Ownership(optimizer) for optimizer in self._optimizers]
        for optimizer in self._optimizers:
            # Compiled optimizers would trace the hook and recompile at each step.
            hook = torch.compiler.disable(self._after_step)  # type: ignore[no-untyped-call]
            self._hooks.append(optimizer.register_step_post_hook(hook))

    def _unhook_optimizers(self) -> None:
        for hook in self._hooks:
            hook.remove()
        for keeper in self._keepers:
            keeper.remove()
        self._hooks, self._keepers = [], []

    def _renew_keepers(self) -> None:
        """Find out again which optimizer trains which tensor; several can hold a parameter."""
        for keeper in self._keepers:
            keeper.remove()
        self._keepers = [
            ZeroKeeper(optimizer, self.tensors, index)
            for index, optimizer in enumerate(self._optimizers)
        ]
