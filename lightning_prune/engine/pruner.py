"""The engine: composes the five answers, owns the masks, and keeps pruned weights at zero."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lightning_prune.engine.checkpoint import refuse_foreign_masks
from lightning_prune.engine.choice import choose
from lightning_prune.engine.due_points import Timetable
from lightning_prune.engine.enrolment import continued
from lightning_prune.engine.groups import Group
from lightning_prune.engine.optimizers import clear_pruned, forget_directions, ownership
from lightning_prune.engine.pools import Pool, pools
from lightning_prune.engine.selection import Selection
from lightning_prune.engine.zero_keeper import ZeroKeeper
from lightning_prune.models.names import named_parameters
from lightning_prune.recipe.allocations import Allocation
from lightning_prune.recipe.criteria import Criterion, MagnitudeCriterion
from lightning_prune.recipe.patterns import Pattern, UnstructuredPattern
from lightning_prune.recipe.recipe import default_allocation, refuse_clashes
from lightning_prune.recipe.regrowth import Regrow
from lightning_prune.recipe.schedules import Clock, PolynomialSchedule, Schedule, planned_clock
from lightning_prune.recipe.targets import SparsityTargets, checked_targets
from lightning_prune.recipe.tensor import PrunedTensor
from lightning_prune.tensors.bits import packed, unpacked
from lightning_prune.tensors.shards import add_up_replicas, gathered, laid_out_like, local, total


class Pruner:
    """Prunes a model gradually in any PyTorch loop.

    Between ``backward()`` and ``optimizer.step()`` call `before_step`; the rest happens in a hook
    of the optimizer. Masks are applied to the parameters in place, so the model stays plain.

    Args:
        sparsity: Final fraction of zeros of each pruned tensor, in [0, 1]; or one for each glob of
            parameter or module names, None leaving it dense, where the last that matches decides.
        schedule: When; `PolynomialSchedule` by default.
        allocation: Where; by default `UniformAllocation` for N:M and channels, else
            `ERKAllocation`.
        criterion: Which; `MagnitudeCriterion` by default.
        pattern: What shape; `UnstructuredPattern` by default.
        keep_zeros: Whether weights that are zero when training starts stay so.
        regrow: Whether and how what is dropped grows back elsewhere (RigL, SET); None for never.

    Raises:
        ValueError: If an argument is out of range, or two of them clash.

    Examples:
        >>> model = nn.Linear(10, 10)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> pruner = Pruner(sparsity=0.9)
        >>> pruner.attach(model, optimizer, steps=20)
        >>> for _ in range(20):
        ...     model(torch.randn(4, 10)).square().sum().backward()
        ...     pruner.before_step(optimizer)
        ...     optimizer.step()
        >>> pruner.detach()
        >>> int((model.weight == 0).sum())
        90
    """

    def __init__(
        self,
        *,
        sparsity: SparsityTargets = 0.9,
        schedule: Schedule | None = None,
        allocation: Allocation | None = None,
        criterion: Criterion | None = None,
        pattern: Pattern | None = None,
        keep_zeros: bool = False,
        regrow: Regrow | None = None,
    ) -> None:
        self.pattern = pattern or UnstructuredPattern()
        self.targets = checked_targets(sparsity)
        self.schedule = schedule or PolynomialSchedule()
        self.allocation = allocation or default_allocation(self.pattern)
        self.criterion = criterion or MagnitudeCriterion()
        self.keep_zeros = keep_zeros
        self.regrow = regrow
        refuse_clashes(self.allocation, self.criterion, self.pattern, regrow)
        for target in self.targets.values():
            if target is not None:
                self.pattern.check_sparsity(target)
        self.updates = 0
        """Number of updates that were due since `attach`."""
        self.changed: dict[str, float] = {}
        """Share of each group that the last update changed, by name."""
        self._pools: list[Pool] = []
        self._plan: Mapping[str, float | None] = {}
        self._selection = Selection()
        self._example: Any = None
        self._model: nn.Module | None = None
        self._optimizers: list[Optimizer] = []
        self._timetable = Timetable(self.schedule, regrow.schedule if regrow else None)
        self._ownership: dict[int, tuple[int, int, int]] = {}
        self._hooks: list[RemovableHandle] = []
        self._keepers: list[ZeroKeeper] = []
        self._pending: dict[str, Any] | None = None  # what the next attach() restores
        self._loaded: dict[str, Any] | None = None  # what it has restored

    @property
    def tensors(self) -> tuple[PrunedTensor, ...]:
        """What is being pruned, in the order of the model."""
        return self._selection.tensors

    @property
    def groups(self) -> tuple[Group, ...]:
        """What of it is ranked together: each tensor alone, or channels with all their tensors."""
        return self._selection.groups

    @property
    def dense(self) -> Mapping[str, str]:
        """Why each other parameter stays dense, or the channels that it makes, by name."""
        return self._selection.dense

    @property
    def is_waiting(self) -> bool:
        """Whether dense ones may join later: unfrozen, initialised or given to an optimizer."""
        return self._selection.waiting

    @property
    def masks(self) -> dict[str, Tensor]:
        """The masks by qualified parameter name; True keeps. They are sharded as the parameters."""
        return {t.name: laid_out_like(t.parameter, t.mask) for t in self.tensors}

    @property
    def sparsity(self) -> float:
        """Fraction of what is pruned that is zero, counted from the masks: weights or channels."""
        size = sum(group.size for group in self.groups)
        return 1 - sum(group.kept for group in self.groups) / size if size else 0.0

    @property
    def parameter_sparsity(self) -> float:
        """Fraction of the entries of all the model's parameters that is pruned."""
        pruned = sum(tensor.total - tensor.kept for tensor in self.tensors)
        return pruned / self._selection.entries if pruned else 0.0

    @property
    def sparsity_target(self) -> float:
        """What `sparsity` is due to be since the last due point, before `ChannelPattern` rounds."""
        owners = {group.optimizer for group in self.groups}
        return self._mean_target({index: self._share(index) for index in owners})

    @property
    def final_sparsity(self) -> float:
        """What `sparsity` is due to be at the end of the schedule, before it is rounded."""
        return self._mean_target({group.optimizer: 1.0 for group in self.groups})

    def target(self, group: Group) -> float:
        """Return the sparsity that has been due for a group's pool since the last due point."""
        return group.sparsity * self._share(group.optimizer)

    @property
    def steps(self) -> list[int]:
        """The completed steps of each optimizer, those before a resume included."""
        return list(self._timetable.steps)

    @property
    def plan(self) -> Mapping[str, float | None]:
        """The final sparsity of each group; None where only the training will tell."""
        return self._plan

    def attach(
        self,
        model: nn.Module,
        optimizers: Optimizer | Sequence[Optimizer],
        *,
        steps: int | None = None,
        steps_per_epoch: int | None = None,
        clocks: Callable[[Schedule], Clock] | None = None,
        uncounted: Callable[[Optimizer], bool] = lambda optimizer: False,
        example: Any = None,
    ) -> None:
        """Choose the tensors, restore what `load_state_dict` was given, and begin.

        Args:
            model: The model that will be trained.
            optimizers: The optimizer or optimizers that train it.
            steps: Planned optimizer steps; needed for a schedule in fractions. The last of them
                serves whatever is still due.
            steps_per_epoch: Optimizer steps in an epoch; needed for a schedule in epochs.
            clocks: Instead of these two, what makes for a schedule a function from the owner's
                completed steps to the moment in the schedule's unit.
            uncounted: Whether the step that an optimizer has just made without `before_step` is
                none of the training's, such as a trial that will be undone; it is only masked.
            example: For `ChannelPattern`, what the model's ``forward`` takes: a tensor, a tuple of
                arguments, or a dict of named ones; by default its ``example_input_array``.

        Raises:
            ValueError: If a glob matches nothing, nothing can be pruned, a tensor does not fit the
                pattern, the plan does not fit the schedule, restored masks do not fit the model, or
                the model cannot be traced for its channels.
        """
        if self._model is not None:
            raise RuntimeError("need a detached Pruner, got one that is attached; call detach()")
        self._loaded, self._pending = self._pending, None
        optimizers = [optimizers] if isinstance(optimizers, Optimizer) else list(optimizers)
        clocks = clocks or partial(planned_clock, steps=steps, steps_per_epoch=steps_per_epoch)
        self._example = example
        selection = self._choose(model, optimizers)
        if self._loaded is not None:
            refuse_foreign_masks(self._loaded, model)
        self._timetable.begin(clocks, self._loaded or {}, len(optimizers))
        self._optimizers, self._uncounted, self._ownership = optimizers, uncounted, {}
        self._selection = Selection()
        self.updates, self.changed = 0, {}
        self._adopt(selection)
        self._model = model
        self._hook_optimizers()

    def follow(self, optimizers: Sequence[Optimizer]) -> None:
        """Go on with optimizers that were replaced or added; each place keeps its count.

        Args:
            optimizers: All that train the model from now on.
        """
        assert self._model is not None
        optimizers = list(optimizers)
        if optimizers == self._optimizers:
            return
        selection = self._choose(self._model, optimizers)
        self._unhook_optimizers()
        self._optimizers = optimizers
        self._timetable.follow(len(optimizers))
        self._adopt(selection)
        self._hook_optimizers()

    def before_step(self, optimizer: Optimizer) -> None:
        """Observe the gradients, update the masks if that is due, and mask weights and gradients.

        Call it when the gradients are complete (unscaled, reduced over replicas) and before they
        are clipped. Further calls before the step itself, as by the closure of LBFGS, only mask.
        With a gradient scaler, call it after ``unscale_`` and only if the scaler will not skip the
        step: what it skips must be neither observed nor counted, so call `skip_step` instead.

        Args:
            optimizer: The optimizer that will step next.
        """
        index = self._index(optimizer)
        if ownership(optimizer) != self._ownership[index]:
            self._select_again(index)
        if index not in self._timetable.in_step:
            self._timetable.in_step.add(index)
            self._keepers[index].clear()
            add_up_replicas(value for t in self._owned(index) for value in t.seen.values())
            for tensor in self._owned(index):
                if not tensor.follows:
                    tensor.state = self.criterion.observe(tensor, tensor.state)
            self.update(optimizer)
        for tensor in self._owned(index):
            tensor.forget_seen()  # LBFGS has seen the same inputs again
        self._keepers[index].before_step()

    def skip_step(self, optimizer: Optimizer) -> None:
        """Forget what has been seen for a step that will not be made, or not as one of training.

        Args:
            optimizer: The optimizer that will not step.
        """
        for tensor in self._owned(self._index(optimizer)):
            tensor.forget_seen()

    def update(self, optimizer: Optimizer) -> bool:
        """Bring the masks to what is due now, if that has not been done; `before_step` calls it.

        Args:
            optimizer: The owner of the tensors.

        Returns:
            Whether a due point was passed since the last update.
        """
        index = self._index(optimizer)
        if self._timetable.is_over(index):
            return False
        pruning, regrowing = self._timetable.to_prune(index), self._timetable.to_regrow(index)
        if pruning is None and regrowing is None:
            return False
        for group in self._groups(index):
            group.forget_changes()
        is_new = regrowing is not None
        if pruning is not None:
            again = self._timetable.note_pruned(index, pruning)
            is_new |= not again
            self._prune(index, self.schedule(pruning), again=again)
        if self.regrow is not None and regrowing is not None:
            self._timetable.note_regrown(index, regrowing)
            for group in self._groups(index):
                share = self.regrow.share_at(regrowing)
                group.exchange(share, self.criterion.score, self.regrow.criterion.score)
        self._clean_up(index, is_new=is_new)
        if self._timetable.is_over(index):
            for tensor in self._owned(index):
                if tensor.hooks:  # no later update will need what they have gathered
                    tensor.unwatch()
                    tensor.state = {}
        return is_new

    def mask(self, optimizer: Optimizer) -> None:
        """Zero pruned weights and the optimizer's statistics of them, if both were written into.

        Args:
            optimizer: The owner of the tensors.
        """
        for tensor in self._owned(self._index(optimizer)):
            tensor.masking.apply(tensor.weights)
            clear_pruned(optimizer, tensor.parameter, tensor.masking)
        forget_directions(optimizer)

    def mask_copy(self, model: nn.Module) -> None:
        """Zero the pruned weights in a copy of the model, such as an average of its weights.

        Args:
            model: A module with the same parameter names.

        Raises:
            ValueError: If it lacks a parameter that is being pruned.
        """
        parameters = named_parameters(model)
        lacking = ", ".join(f"'{t.name}'" for t in self.tensors if t.name not in parameters)
        if lacking:
            raise ValueError(f"need a copy with the same parameters, got one without {lacking}")
        for tensor in self.tensors:
            tensor.masking.apply(local(parameters[tensor.name]))

    def detach(self, *, completed: bool = True) -> None:
        """Take the hooks away and leave the zeros in the weights for good, as +0.0.

        Masks stay readable, and in `state_dict`, until the next `attach`.

        Args:
            completed: Whether training came to its end. If so, a schedule that did not come to its
                own is warned of, and pruned weights that are not zero are an error.

        Raises:
            RuntimeError: If something else has written into pruned weights.
        """
        if self._model is None:
            return
        self._unhook_optimizers()
        for tensor in self.tensors:
            tensor.unwatch()
        self._model = None
        revived = [
            tensor.name
            for tensor in self.tensors
            if completed and total(((tensor.weights != 0) & ~tensor.mask).sum(), tensor.shard)
        ]
        for tensor in self.tensors:
            tensor.masking.apply(tensor.weights)
        if revived:
            raise RuntimeError(
                f"need pruned weights to be 0 at the end, got others in {', '.join(revived)}: "
                "something wrote into them after the last optimizer step, or through their data; "
                "they are 0 again"
            )
        if completed and self._selection.waiting and not self.tensors:
            reasons = ", ".join(f"'{name}' ({reason})" for name, reason in self.dense.items())
            warnings.warn(f"nothing was pruned: {reasons}", stacklevel=2)
        if completed and self.final_sparsity > 0 and not self._ended():
            warnings.warn(
                f"training stopped before the schedule's end={self.schedule.end} "
                f"({self.schedule.unit}): reached sparsity {self.sparsity:.4f} of "
                f"{self.final_sparsity:.4f}",
                stacklevel=2,
            )

    def state_dict(self) -> dict[str, Any]:
        """Return masks (one bit an entry), step counts and what the criterion has gathered.

        Masks are whole, so the state fits any number of processes; with sharded parameters all
        processes must call this together.
        """
        waiting = self._loaded or {"masks": {}, "shapes": {}, "observed": {}}
        masks = {t.name: packed(gathered(t.mask, t.shard)) for t in self.tensors}
        shapes = {tensor.name: list(tensor.parameter.shape) for tensor in self.tensors}
        observed = {tensor.name: dict(tensor.state) for tensor in self.tensors}
        return {
            **self._timetable.state_dict(),
            "masks": waiting["masks"] | masks,
            "shapes": waiting["shapes"] | shapes,
            "criterion": type(self.criterion).__name__,
            "observed": waiting["observed"] | observed,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take a state that the next `attach` restores; the recipe remains that of this object."""
        missing = {"steps", "due", "regrown", "masks", "shapes", "criterion", "observed"} - set(
            state
        )
        if missing:
            raise ValueError(f"need the state of a Pruner, got one without {sorted(missing)}")
        if self._model is not None:
            raise RuntimeError("need load_state_dict() before attach(), got an attached Pruner")
        self._pending = dict(state)
        if state["criterion"] != type(self.criterion).__name__:
            self._pending["observed"] = {}  # means nothing to another criterion

    # -- selection -------------------------------------------------------------------------------

    def _choose(self, model: nn.Module, optimizers: Sequence[Optimizer]) -> Selection:
        regrow = self.regrow
        grown = [regrow.criterion, regrow.first or self.criterion] if regrow else []
        return choose(
            model,
            optimizers,
            targets=self.targets,
            pattern=self.pattern,
            criterion=self.criterion,
            others=[self.allocation, *grown],
            example=self._example,
        )

    def _adopt(self, selection: Selection) -> None:
        """Take up the tensors that are new, masked as restored or as `keep_zeros` finds them."""
        before = set(self.tensors)
        self._selection = continued(self._selection, selection, self._restore)
        for tensor in before - set(self.tensors):
            tensor.unwatch()
        if self.keep_zeros:
            for group in self.groups:
                if any(self._is_fresh(member) for member in group.members if member not in before):
                    _keep_zeros(group)
        self._pools = pools(self.groups, self.allocation)
        self._plan = {name: final for pool in self._pools for name, final in pool.plan().items()}
        for tensor in self.tensors:
            if tensor not in before:
                tensor.masking.apply(tensor.weights)
            watched = tensor.hooks or tensor.follows
            if not watched and not self._timetable.is_over(tensor.optimizer):
                tensor.hooks = self.criterion.watch(tensor)

    def _is_fresh(self, tensor: PrunedTensor) -> bool:
        """Whether there is no restored mask for a tensor."""
        return self._loaded is None or tensor.name not in self._loaded["masks"]

    def _restore(self, tensor: PrunedTensor) -> None:
        tensor.step = self._timetable.steps[tensor.optimizer]
        if self._loaded is None or self._is_fresh(tensor):
            return
        device = tensor.masking.device
        whole = unpacked(self._loaded["masks"][tensor.name], tensor.parameter.shape)
        tensor.prune_to((tensor.shard.cut(whole) if tensor.shard else whole).to(device))
        observed = self._loaded["observed"].get(tensor.name, {})
        tensor.state = {key: value.to(device, copy=True) for key, value in observed.items()}

    def _select_again(self, index: int) -> None:
        """Take up what this optimizer has gained; it is due at once what the schedule says."""
        assert self._model is not None
        if self._loaded is not None:  # a lazy layer has a shape only now
            refuse_foreign_masks(self._loaded, self._model)
        self._adopt(self._choose(self._model, self._optimizers))
        self._renew_keepers()
        self._ownership[index] = ownership(self._optimizers[index])
        self._timetable.look_again(index)

    # -- update ----------------------------------------------------------------------------------

    def _prune(self, index: int, share: float, *, again: bool) -> None:
        """Bring an optimizer's pools to a share of their final sparsity."""
        first = self.regrow.first if self.regrow else None
        for pool in self._pools:
            if pool.optimizer == index:
                criterion = first if first and pool.is_dense else self.criterion
                pool.prune(pool.sparsity * share, criterion.score, again=again)

    def _clean_up(self, index: int, *, is_new: bool) -> None:
        """Empty what newly pruned weights have left behind, and note what has changed."""
        changed = {group.name: group.changed for group in self._groups(index)}
        updated = is_new or any(changed.values())  # else this is a resume, and gathering goes on
        if updated:
            self.updates += 1
            self.changed = changed
        optimizer = self._optimizers[index]
        for tensor in self._owned(index):
            if updated and self.criterion.forgets:
                tensor.state = {}
            if tensor.changes:
                tensor.masking.apply(tensor.weights)
                clear_pruned(optimizer, tensor.parameter, tensor.masking)
        if any(changed.values()):
            forget_directions(optimizer)

    # -- step ------------------------------------------------------------------------------------

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        index = self._index(optimizer)
        if index in self._timetable.in_step:
            self._timetable.in_step.remove(index)
            self._timetable.steps[index] += 1
        elif not self._uncounted(optimizer):
            raise RuntimeError(
                "need before_step(optimizer) between backward() and step(), got a step without it; "
                "in a LightningModule, step what self.optimizers() returns"
            )
        else:
            self.skip_step(optimizer)
        self._keepers[index].after_step()
        for tensor in self._owned(index):
            tensor.step = self._timetable.steps[index]

    def _hook_optimizers(self) -> None:
        self._renew_keepers()
        for index, optimizer in enumerate(self._optimizers):
            self._ownership[index] = ownership(optimizer)
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
        """Look again which optimizer trains what; another than the owner may hold a parameter."""
        for keeper in self._keepers:
            keeper.remove()
        self._keepers = [
            ZeroKeeper(optimizer, self.tensors, index)
            for index, optimizer in enumerate(self._optimizers)
        ]

    def _owned(self, index: int) -> Iterator[PrunedTensor]:
        return (tensor for tensor in self.tensors if tensor.optimizer == index)

    def _groups(self, index: int) -> Iterator[Group]:
        return (group for group in self.groups if group.optimizer == index)

    def _index(self, optimizer: Optimizer) -> int:
        for index, known in enumerate(self._optimizers):
            if known is optimizer:
                return index
        raise ValueError("need one of the optimizers given to attach(), got another one")

    def _ended(self) -> bool:
        owners = {tensor.optimizer for tensor in self.tensors}
        return all(self._timetable.last_pruned(index) == self.schedule.end for index in owners)

    def _share(self, index: int) -> float:
        """Return which fraction of the final sparsity has been due since the last due point."""
        point = self._timetable.last_pruned(index)
        return 0.0 if point is None else self.schedule(point)

    def _mean_target(self, shares: Mapping[int, float]) -> float:
        """Return the sparsity of all at a share of the final one for each optimizer."""
        size = sum(group.size for group in self.groups)
        due = sum(group.sparsity * shares[group.optimizer] * group.size for group in self.groups)
        return due / size if size else 0.0


def _keep_zeros(group: Group) -> None:
    """Prune what is zero already.

    Raises:
        ValueError: If all of it is.
    """
    group.keep(group.nonzero())
    if group.kept == 0:
        raise ValueError(
            f"need a weight that is not 0 with keep_zeros=True, got none in '{group.name}'"
        )
