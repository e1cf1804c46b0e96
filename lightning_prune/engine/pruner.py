"""The engine as users call it: a recipe, and the training that it prunes."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

from torch import nn
from torch.optim import Optimizer

from lightning_prune.arguments.checks import check_arguments
from lightning_prune.engine.checkpoint import VERSION, copy_state
from lightning_prune.engine.limits import Latencies
from lightning_prune.engine.notices import warn_of_early_end
from lightning_prune.engine.overview import describe
from lightning_prune.engine.readings import Readings
from lightning_prune.engine.training import Training
from lightning_prune.engine.wrappers import unwrap_optimizer
from lightning_prune.models.progress import show_progress
from lightning_prune.recipe.allocations import Allocation
from lightning_prune.recipe.budgets import Budget, Unit
from lightning_prune.recipe.clocks import Clock, make_clock
from lightning_prune.recipe.criteria import Criterion
from lightning_prune.recipe.patterns import Pattern
from lightning_prune.recipe.penalty import GrowingPenalty
from lightning_prune.recipe.phases import Phases
from lightning_prune.recipe.recipe import Recipe
from lightning_prune.recipe.regrowth import Regrow
from lightning_prune.recipe.schedules import Schedule
from lightning_prune.recipe.straight_through import StraightThrough
from lightning_prune.recipe.targets import SparsityTargets


class Pruner(Readings):
    """Prunes a model gradually in any PyTorch loop.

    Between ``backward()`` and ``optimizer.step()`` call `before_step`; the rest happens in a hook
    of the optimizer. Masks are applied to the parameters in place, so the model stays plain.

    Args:
        sparsity: Final fraction of zeros of each pruned tensor, in [0, 1], 0.9 by default; or one
            for each glob of parameter or module names. None leaves a tensor dense; the last glob
            that matches decides. Beside a budget it is the most that a tensor may lose.
        budget: How much as a cost: `MacsBudget`, `ParameterBudget`, `BytesBudget`, `LatencyBudget`,
            or several of them, which all hold; None for a sparsity.
        most: The largest sparsity that any tensor may reach; None for no limit.
        schedule: When; `PolynomialSchedule` by default.
        allocation: Where; by default `UniformAllocation` for N:M and channels, else
            `ERKAllocation`.
        criterion: Which; `MagnitudeCriterion` by default.
        pattern: What shape; `UnstructuredPattern` by default.
        keep_zeros: Whether weights that are zero when training starts stay zero.
        regrow: How dropped weights grow back elsewhere (RigL, SET); None for never.
        straight_through: How pruned weights go on learning behind the mask (ST-3, Feather); None if
            they stay pruned.
        phases: When training is dense and sparse in turns (AC/DC); None for always sparse.
        penalty: How the weights that go next shrink before they go; None for no penalty.
        on_revival: Whether pruned weights that other code has changed are an ``"error"``, or
            ``"warn"`` only: then they are masked again. They are found at due points, by
            `check_zeros` and by `detach`.

    Raises:
        ValueError: If an argument is out of range, or two of them clash.
        TypeError: If an argument is of another kind.

    Examples:
        >>> import torch
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
        sparsity: SparsityTargets | None = None,
        budget: Budget | Sequence[Budget] | None = None,
        most: float | None = None,
        schedule: Schedule | None = None,
        allocation: Allocation | None = None,
        criterion: Criterion | None = None,
        pattern: Pattern | None = None,
        keep_zeros: bool = False,
        regrow: Regrow | None = None,
        straight_through: StraightThrough | None = None,
        phases: Phases | None = None,
        penalty: GrowingPenalty | None = None,
        on_revival: Literal["error", "warn"] = "error",
    ) -> None:
        self._begin(
            Recipe.of(
                sparsity=sparsity,
                budget=budget,
                most=most,
                schedule=schedule,
                allocation=allocation,
                criterion=criterion,
                pattern=pattern,
                keep_zeros=keep_zeros,
                regrow=regrow,
                straight_through=straight_through,
                phases=phases,
                penalty=penalty,
                on_revival=on_revival,
            )
        )

    @classmethod
    @check_arguments
    def from_recipe(cls, recipe: Recipe) -> "Pruner":
        """Return the engine of a recipe; it leaves going back to its caller."""
        pruner = cls.__new__(cls)
        pruner._begin(recipe)
        return pruner

    def _repr_html_(self) -> str:
        return describe(self).to_html()

    def _begin(self, recipe: Recipe) -> None:
        self._training = Training(recipe)
        self._pending: dict[str, Any] | None = None  # the state that the next attach() restores

    @check_arguments
    def attach(
        self,
        model: nn.Module,
        optimizers: Optimizer | Sequence[Optimizer],
        *,
        steps: int | None = None,
        steps_per_epoch: int | None = None,
        clocks: Callable[[Schedule], Clock] | None = None,
        is_trial_step: Callable[[Optimizer], bool] = lambda optimizer: False,
        hook: bool = False,
        example: Any = None,
        latencies: Latencies | None = None,
        progress: bool = True,
    ) -> None:
        """Choose the tensors, restore the state that `load_state_dict` was given, and begin.

        If it raises, the object is as before: a restored state still waits.

        Args:
            model: The model that will be trained. Of a wrapper, as of DDP, the model inside.
            optimizers: The optimizer or optimizers that train it. Of a wrapper, as of Accelerate,
                Fabric or timm, the optimizer inside; all methods take the wrapper, too.
            steps: Planned optimizer steps; needed for a schedule in fractions. The last of them
                serves every due point that is left.
            steps_per_epoch: Optimizer steps in an epoch; needed for a schedule in epochs.
            clocks: Instead of these two: makes, for a schedule, the function from the owner's
                completed steps to the moment in the schedule's unit.
            is_trial_step: Return True for a step outside training, such as a learning-rate
                finder's. It is masked, not counted.
            hook: Whether the optimizers call `before_step` themselves when they step, so that the
                loop needs no line for it. Then ``step`` takes no closure, and gradients are clipped
                before they are observed and masked.
            example: For `ChannelPattern`, what the model's ``forward`` takes: a tensor, a tuple of
                arguments, or a dict of named ones; by default its ``example_input_array``.
            latencies: For `LatencyBudget`, a `LatencyTable`, or a function that measures it for the
                groups that are pruned (a `Selection`), as `measure_latency_table` does.
            progress: Whether to show a bar in a terminal, as the search for channels takes long.

        Raises:
            ValueError: If a glob matches nothing, nothing can be pruned, a tensor does not fit the
                pattern, the plan does not fit the schedule, restored masks do not fit the model, or
                the model cannot be traced for its channels.
        """
        if self._training.is_running:
            raise RuntimeError("need a detached Pruner, got one that is attached; call detach()")
        training = Training(self.recipe)
        with show_progress(progress):
            training.begin(
                model,
                [optimizers] if isinstance(optimizers, Optimizer) else list(optimizers),
                clocks=clocks or partial(make_clock, steps=steps, steps_per_epoch=steps_per_epoch),
                is_trial_step=is_trial_step,
                calls_before_step=hook,
                example=example,
                latencies=latencies,
                state=self._pending,
            )
        self._training, self._pending = training, None

    def follow(self, optimizers: Sequence[Optimizer]) -> None:
        """Continue with replaced or added optimizers; each place keeps the count of steps.

        Args:
            optimizers: All optimizers that train the model from now on.
        """
        self._training.follow(optimizers)

    def before_step(self, optimizer: Optimizer) -> None:
        """Observe the gradients, update the masks if that is due, and mask weights and gradients.

        Call it when the gradients are complete (accumulated, unscaled, reduced over replicas) and
        before they are clipped. Further calls within the step, as by the closure of LBFGS, only
        mask. With a gradient scaler, call it after ``unscale_`` and only if the scaler will not
        skip the step: a skipped step must be neither observed nor counted, so call `skip_step`.

        Args:
            optimizer: The optimizer that will step next.

        Raises:
            RuntimeError: If it is called again before the step with other gradients, and the
                criterion reads gradients; if a pruned weight is not 0 when an update is due; or
                after ``attach(..., hook=True)``, where the optimizer calls it.
        """
        if self._training.calls_before_step:
            raise RuntimeError(
                "need no before_step(optimizer) after attach(..., hook=True), got a call; leave it "
                "out, or attach with hook=False to call it before gradients are clipped"
            )
        self._training.before_step(unwrap_optimizer(optimizer))

    def begin_step(self, optimizer: Optimizer) -> None:
        """Note that a step has begun before `attach`: a closure of ``step`` attaches.

        Args:
            optimizer: The optimizer that is stepping.
        """
        self._training.begin_step(unwrap_optimizer(optimizer))

    def skip_step(self, optimizer: Optimizer) -> None:
        """Forget the inputs seen for a step that will not be made, or not as a step of training.

        If `before_step` was called, the next call belongs to another step. Compute the gradients
        anew for that step: `StraightThrough` has scaled the present ones.

        Args:
            optimizer: The optimizer that will not step.
        """
        self._training.skip_step(unwrap_optimizer(optimizer))

    def check_zeros(self) -> None:
        """Find pruned weights that other code has changed, as each due point of the schedule does.

        Raises:
            RuntimeError: If a pruned weight is not 0 and ``on_revival="error"``.
        """
        self._training.inspect()

    def update(self, optimizer: Optimizer) -> bool:
        """Update the masks if an update is due, and return whether a due point was passed.

        Args:
            optimizer: The owner of the tensors.
        """
        return self._training.update(unwrap_optimizer(optimizer))

    def mask(self, optimizer: Optimizer) -> None:
        """Zero the pruned weights of an optimizer, and their statistics."""
        self._training.mask(unwrap_optimizer(optimizer))

    def go_back(self, state: Mapping[str, Any]) -> None:
        """Take over masks and due points of an earlier `state_dict`; not the weights."""
        self._training.go_back(state)

    def correct_cost(self, unit: Unit, measured: float) -> None:
        """Take over a cost that was measured in the present model, with channels removed.

        The predictions become exact there. If the cost is then above the budget, the next step
        prunes on.

        Args:
            unit: The unit of the cost: ``"latency"``, or ``"bytes"`` of a compressed file.
            measured: The measured cost. A latency is in proportion to that of the dense model in
                the table: ``dense_ms`` over the measured speedup.
        """
        self._training.correct_cost(unit, measured)

    def mask_copy(self, model: nn.Module) -> None:
        """Zero the pruned weights in a copy of the model, such as an average of its weights.

        Args:
            model: A module with the same parameter names, or an `AveragedModel` of it.

        Raises:
            ValueError: If it lacks a parameter that is being pruned.
        """
        self._training.roster.mask_copy(model)

    def detach(self, *, completed: bool = True) -> None:
        """Take the hooks away and leave the zeros in the weights for good, as +0.0.

        Masks stay readable, and in `state_dict`, until the next `attach`.

        Args:
            completed: Whether training came to its end. If so, pruned weights are checked, and a
                schedule that did not come to its end is warned of.

        Raises:
            RuntimeError: If a pruned weight is not 0, and ``on_revival="error"``.
        """
        if not self._training.is_running:
            return
        self._training.end(completed=completed)
        if completed:
            training = self._training
            warn_of_early_end(training.enrolment, training.due_points, self.recipe.phases)

    def state_dict(self) -> dict[str, Any]:
        """Return masks (one bit a weight), step counts, gathered statistics and the recipe.

        Masks are whole, so the state fits any number of processes; with sharded parameters all
        processes must call this together.
        """
        return {
            "version": VERSION,
            "recipe": self.recipe.to_yaml(),
            "criterion": type(self.recipe.chosen_criterion).__name__,
            **self._training.due_points.state_dict(),
            **self._training.describe_tensors(),
            **self._training.next_atoms.state_dict(self.groups),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take a state that the next `attach` restores; the recipe remains that of this object.

        Raises:
            ValueError: If it is not the state of a `Pruner`, of a later version, or damaged.
            RuntimeError: If this object is attached.
        """
        pending = copy_state(state, type(self.recipe.chosen_criterion).__name__)
        if self._training.is_running:
            raise RuntimeError("need load_state_dict() before attach(), got an attached Pruner")
        self._pending = pending

    def forget_state(self) -> None:
        """Drop the state that the next `attach` would restore."""
        self._pending = None

    def forget_training(self) -> None:
        """Drop masks and counts of the last training, if a later moment of the next attaches.

        Raises:
            RuntimeError: If this object is attached.
        """
        if self._training.is_running:
            raise RuntimeError("need forget_training() after detach(), got an attached Pruner")
        self._training = Training(self.recipe)
