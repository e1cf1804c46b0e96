"""One training under pruning: its tensors, its due points, and the hooks on its optimizers."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from lightning_prune.engine.dense_copies import DenseCopies
from lightning_prune.engine.due_points import DuePoints
from lightning_prune.engine.enrolment import Enrolment
from lightning_prune.engine.gradient_guard import GradientGuard
from lightning_prune.engine.limits import Latencies
from lightning_prune.engine.next_atoms import NextAtoms
from lightning_prune.engine.notices import warn_of_untrained
from lightning_prune.engine.optimizers import mask_tensors
from lightning_prune.engine.ownership import Owners
from lightning_prune.engine.roster import Roster
from lightning_prune.engine.step_hooks import (
    StepHooks,
    refuse_incomplete_gradients,
    refuse_unknown_step,
    will_be_skipped,
)
from lightning_prune.engine.updates import Updates
from lightning_prune.engine.wrappers import unwrap_model, unwrap_optimizer
from lightning_prune.engine.zero_watch import ZeroWatch
from lightning_prune.recipe.budgets import Unit
from lightning_prune.recipe.clocks import Clock
from lightning_prune.recipe.recipe import Recipe
from lightning_prune.recipe.schedules import Schedule
from lightning_prune.recipe.tensor import PrunedTensor, undo_states
from lightning_prune.tensors.shards import sum_replicas


class Training:
    """One training under pruning. Before `begin` it is empty; after `end` it stays readable.

    A method that raises leaves all as it was.

    Args:
        recipe: The answers.

    Attributes:
        roster: The tensors of the model under pruning.
        is_running: Whether hooks are on the optimizers: between `begin` and `end`.
        due_points: The completed steps, and the due points that were served.
        next_atoms: The atoms that go next, which a penalty shrinks.
        updates: The updates that were made.
        calls_before_step: Whether the optimizers call `before_step` themselves.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.roster = Roster(recipe, nn.Module())
        self.is_running = self.calls_before_step = False
        regrow = recipe.regrow.schedule if recipe.regrow else None
        regrow = recipe.phases.turns if recipe.phases else regrow
        may_go_back, goes_on = recipe.tolerance is not None, recipe.straight_through is not None
        self.due_points = DuePoints(
            recipe.schedule, regrow, may_go_back=may_go_back, goes_on=goes_on
        )
        self._zeros = ZeroWatch(recipe.on_revival)
        self.updates = Updates(recipe, self._zeros)
        self._owners = Owners()
        self._is_trial_step: Callable[[Optimizer], bool]
        self._hooks = StepHooks(self.begin_step, self._after_step)
        self._gradients = GradientGuard(recipe)
        self._copies = DenseCopies(recipe)
        self.next_atoms = NextAtoms(recipe)
        self._observes = recipe.chosen_criterion.gathers or recipe.penalty is not None
        self._looks_on = self._observes or self._copies.is_on  # at each step, not only at due ones

    @property
    def enrolment(self) -> Enrolment:
        """The tensors that are pruned now."""
        return self.roster.enrolment

    @property
    def tensors(self) -> tuple[PrunedTensor, ...]:
        """The tensors that are pruned, in the order of the model."""
        return self.roster.enrolment.selection.tensors

    def begin(
        self,
        model: nn.Module,
        optimizers: Sequence[Optimizer],
        *,
        clocks: Callable[[Schedule], Clock],
        is_trial_step: Callable[[Optimizer], bool],
        calls_before_step: bool,
        example: Any,
        latencies: Latencies | None,
        state: Mapping[str, Any] | None,
    ) -> None:
        """Choose the tensors, restore a state, and hook the optimizers."""
        self._is_trial_step = is_trial_step
        self.calls_before_step = calls_before_step
        model = unwrap_model(model)
        self.roster = Roster(
            self.recipe,
            model,
            example=example,
            state=state,
            is_over=lambda index: self.due_points.is_over(index),
            latencies=latencies,
        )
        self.due_points = DuePoints(
            self.due_points.schedule,
            self.due_points.regrow,
            clocks=clocks,
            state=state,
            optimizers=len(optimizers),
            may_go_back=self.due_points.may_go_back,
            goes_on=self.due_points.goes_on,
        )
        self.next_atoms = NextAtoms(self.recipe, clocks, state)
        plain = [unwrap_optimizer(optimizer) for optimizer in optimizers]
        enrolment = self.roster.enroll(plain, self.due_points.steps)
        self._copies.check(optimizers, enrolment.selection.tensors)
        self._owners = Owners(plain)
        self.is_running = True
        try:
            self.roster.commit(enrolment)
            self._hook_optimizers()
            warn_of_untrained(enrolment.selection, self.recipe)
        except BaseException:
            self.end(completed=False)
            raise

    def follow(self, optimizers: Sequence[Optimizer]) -> None:
        """Continue with replaced or added optimizers; each place keeps the count of steps."""
        plain = [unwrap_optimizer(optimizer) for optimizer in optimizers]
        if plain == self._owners.optimizers:
            return
        steps = self.due_points.steps
        steps += [0] * (len(plain) - len(steps))
        enrolment = self.roster.enroll(plain, steps)
        self._copies.check(optimizers, enrolment.selection.tensors)
        self._unhook_optimizers()
        self._owners = Owners(plain)
        self.due_points.follow(len(optimizers))
        self.roster.commit(enrolment)
        self._hook_optimizers()

    def is_eventful(self, optimizer: Optimizer) -> bool:
        """Whether the next step does more than to keep zeros."""
        index = self._owners.index(optimizer)
        return self._looks_on or self._owners.has_grown(index) or self.due_points.is_due(index)

    def before_step(self, optimizer: Optimizer) -> None:
        """Observe and update once a step; mask weights and gradients each time."""
        index = self._owners.index(optimizer)
        if self._owners.has_grown(index):
            self._select_again()
        is_first = index not in self.due_points.in_step
        if is_first:
            is_due = self.due_points.is_due(index)
            if is_due:
                self.inspect(updates=not self._copies.is_on)
            self._zeros.keepers[index].clear()
            if is_due or self._observes:
                with self._copies.show(index):
                    self._observe(optimizer, is_due=is_due and not self._copies.is_on)
            self.due_points.in_step.add(index)
        else:
            self._gradients.refuse_others(index, self.due_points.steps[index])
        self._forget_seen(index)  # LBFGS has seen the same inputs again
        self._zeros.keepers[index].before_step()
        self._copies.prepare(index)
        if is_first:
            self._gradients.note(index, self.owned(index))

    def skip_step(self, optimizer: Optimizer) -> None:
        """Forget a step that will not be made."""
        index = self._owners.index(optimizer)
        self.due_points.in_step.discard(index)
        self._gradients.forget(index)
        self._copies.withdraw(index)
        self._zeros.keepers[index].forget_gradients()
        self._forget_seen(index)

    def update(self, optimizer: Optimizer) -> bool:
        """Update the masks if an update is due; return whether a due point was passed."""
        if not self.due_points.is_due(self._owners.index(optimizer)):
            return False
        self.inspect(updates=True)
        return self._update(optimizer)

    def mask(self, optimizer: Optimizer) -> None:
        """Zero pruned weights, and their statistics in the optimizer."""
        mask_tensors(optimizer, list(self.owned(self._owners.index(optimizer))))

    def go_back(self, state: Mapping[str, Any]) -> None:
        """Take over masks, statistics and due points of an earlier state; steps go on."""
        before = self.enrolment.find_alive()
        self.roster.go_back(state)
        self.due_points.go_back(state)
        self._select_again()
        self.updates.count(self.enrolment.compare(before))

    def correct_cost(self, unit: Unit, measured: float) -> None:
        """Take over a measured cost, and serve the last due points once more."""
        self.roster.correct_cost(unit, measured)
        for index in range(len(self._owners.optimizers)):
            self.due_points.look_again(index, has_joined=True)

    def inspect(self, *, updates: bool = False) -> None:
        """Look for replaced layers, and for pruned weights that are not 0; an update may follow."""
        self._look_at_model()
        self._note_steps()
        self._zeros.inspect(self.tensors, defers=updates)

    def _update(self, optimizer: Optimizer, *, renews: bool = False) -> bool:
        """Update the masks; return whether a due point was passed for the first time."""
        index = self._owners.index(optimizer)
        return self.updates.make(optimizer, index, self.enrolment, self.due_points, renews=renews)

    def end(self, *, completed: bool) -> None:
        """Take all hooks away and mask; raise or warn if pruned weights were not 0."""
        self._copies.withdraw_all()
        revival = ""
        for tensor in self.tensors:
            tensor.follow_parameter()
        if completed:
            self._look_at_model()
            self._note_steps()
            revival = self._zeros.describe(self.tensors)
        self._unhook_optimizers()
        self.is_running = False
        for tensor in self.tensors:
            tensor.resume_mask()
        for tensor in self.tensors:
            tensor.remove_hooks()
            tensor.mask.apply(tensor.weights)
        self._zeros.report(revival)

    def describe_tensors(self) -> dict[str, Any]:
        """Return masks, shapes and states of the tensors that the model has now."""
        self._copies.refuse_reading()
        if self.is_running:
            self._look_at_model()
        return self.roster.describe_tensors()

    def owned(self, index: int) -> Iterator[PrunedTensor]:
        """Yield the tensors that an optimizer owns."""
        return (tensor for tensor in self.tensors if tensor.optimizer == index)

    def _look_at_model(self) -> None:
        """Select again if the model has other parameters than at the last look."""
        if self.roster.has_other_parameters:
            self._select_again()

    def _select_again(self) -> None:
        """Take up tensors that an optimizer has gained; they are due at once."""
        enrolment = self.roster.enroll(self._owners.optimizers, self.due_points.steps)
        self._copies.check(self._owners.optimizers, enrolment.selection.tensors)
        joined = self.roster.commit(enrolment)
        self._keep_zeros()
        self._owners.look_again(self.roster.find_waiting())
        for index in range(len(self._owners.optimizers)):
            self.due_points.look_again(index, has_joined=index in joined)

    def _observe(self, optimizer: Optimizer, *, is_due: bool) -> None:
        """Let the criterion observe, and update the masks if due; if either raises, all is undone.

        Replicas choose the same masks: DDP has already averaged their gradients, and the sums that
        hooks have gathered are added up here.
        """
        index = self._owners.index(optimizer)
        tensors = [tensor for tensor in self.owned(index) if tensor.is_scored]
        sum_replicas(value for tensor in tensors for value in tensor.seen.values())
        with undo_states(tensors):
            for tensor in tensors if self.recipe.chosen_criterion.gathers else ():
                tensor.state = self.recipe.chosen_criterion.observe(tensor, tensor.state)
            found = self.next_atoms.find(index, self.enrolment, self.due_points)
            if is_due:
                self._update(optimizer)
            self.next_atoms.take(found, index, self.enrolment.selection.groups)

    def _choose_again(self, optimizer: Optimizer) -> None:
        """Choose the masks among the moved weights, by the steps completed before this step."""
        index, points = self._owners.index(optimizer), self.due_points
        renews = self._copies.renews(points.steps[index]) and points.share(index) > 0
        if renews or points.is_due(index):
            self._update(optimizer, renews=renews)

    def begin_step(self, optimizer: Optimizer, args: Any = (), kwargs: Any = None) -> None:
        """Note that ``optimizer.step`` begins."""
        if self.calls_before_step:
            refuse_incomplete_gradients(self.recipe, args, kwargs)
            asks = self.is_eventful(optimizer)
            is_left_out = self._is_trial_step(optimizer) or (asks and will_be_skipped(optimizer))
            (self.skip_step if is_left_out else self.before_step)(optimizer)
        index = self._owners.index(optimizer)
        self._gradients.begin_step(index)
        self._zeros.keepers[index].note_writes()
        self._copies.begin_step(index)

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        index = self._owners.index(optimizer)
        if self._copies.is_on:
            with self._copies.end_step(index):
                self._end_step(optimizer, index)
        else:
            self._end_step(optimizer, index)

    def _end_step(self, optimizer: Optimizer, index: int) -> None:
        self._gradients.end_step(index)
        if index in self.due_points.in_step:
            if self._copies.is_on:
                self._choose_again(optimizer)
            step = self.due_points.complete_step(index, getattr(optimizer, "found_inf", None))
            for tensor in self.owned(index) if self._looks_on else ():  # `inspect` does it, too
                tensor.step = step
            if self.recipe.penalty is not None:
                self.next_atoms.shrink(optimizer, index, self.enrolment.selection.groups)
        else:
            refuse_unknown_step(optimizer, self._is_trial_step)
            self._forget_seen(index)
        self._zeros.keepers[index].after_step()

    def _note_steps(self) -> None:
        """Tell the tensors how many steps were completed, without those that were skipped."""
        steps = self.due_points.steps
        for tensor in self.tensors:
            tensor.step = steps[tensor.optimizer]

    def _forget_seen(self, index: int) -> None:
        """Let go what hooks of the criterion have seen since the last step of an optimizer."""
        for tensor in [t for t in self.tensors if t.seen and t.optimizer == index]:
            tensor.forget_seen()

    def _keep_zeros(self) -> None:
        """Find out again which optimizer trains which tensor."""
        self._copies.follow(self.tensors)
        self._zeros.renew(self._owners.optimizers, self.tensors)

    def _hook_optimizers(self) -> None:
        self._keep_zeros()
        self._hooks.add(self._owners.optimizers)

    def _unhook_optimizers(self) -> None:
        self._hooks.remove()
        self._zeros.remove()
        self._copies.withdraw_all()
        self._gradients = GradientGuard(self.recipe)
