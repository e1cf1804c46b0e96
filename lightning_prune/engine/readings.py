"""Readings: what a training under pruning shows, at any time."""

from abc import ABC
from collections.abc import Mapping

from torch import Tensor
from torch.optim import Optimizer

from lightning_prune.engine.candidates import Selection
from lightning_prune.engine.groups import Group
from lightning_prune.engine.limits import Spending
from lightning_prune.engine.training import Training
from lightning_prune.engine.wrappers import unwrap_optimizer
from lightning_prune.recipe.recipe import Recipe
from lightning_prune.recipe.tensor import PrunedTensor


class Readings(ABC):
    """What a training under pruning shows, before, while and after it runs."""

    _training: Training

    @property
    def recipe(self) -> Recipe:
        """All answers."""
        return self._training.recipe

    @property
    def updates(self) -> int:
        """Number of updates that were due since `attach`."""
        return self._training.updates.number

    @property
    def choices(self) -> int:
        """Number of times that masks were chosen since `attach`, at due points or between them."""
        return self._training.updates.choices

    @property
    def changed(self) -> Mapping[str, float]:
        """Share of each group that the last update changed, by name."""
        return self._training.updates.changed

    @property
    def tensors(self) -> tuple[PrunedTensor, ...]:
        """The tensors that are pruned, in the order of the model."""
        for tensor in self._training.tensors:
            tensor.follow_parameter()
        return self._training.tensors

    @property
    def selection(self) -> Selection:
        """All parameters of the model, with the groups and what the model multiplies."""
        return self._training.enrolment.selection

    @property
    def groups(self) -> tuple[Group, ...]:
        """The groups that are ranked: each tensor alone, or channels with all their tensors."""
        return self._training.enrolment.selection.groups

    @property
    def dense(self) -> Mapping[str, str]:
        """The reason why each other parameter, or the channels that it makes, stays dense."""
        return self._training.enrolment.selection.dense

    @property
    def sizes(self) -> Mapping[str, int]:
        """Number of weights of each parameter of the model that has a shape, by name."""
        return self._training.enrolment.selection.sizes

    @property
    def may_grow(self) -> bool:
        """Whether dense parameters may join later: unfrozen, initialized or given an optimizer."""
        return self._training.enrolment.selection.may_grow

    @property
    def masks(self) -> dict[str, Tensor]:
        """The masks by parameter name; True keeps. Device and shards are those of parameters."""
        return self._training.roster.collect_masks()

    @property
    def sparsity(self) -> float:
        """Fraction of the weights, or channels, under pruning that is zero: counted from masks."""
        return self._training.enrolment.sparsity

    @property
    def parameter_sparsity(self) -> float:
        """Fraction of the weights of all parameters of the model that is pruned."""
        return self._training.enrolment.parameter_sparsity

    @property
    def sparsity_target(self) -> float:
        """The value that `sparsity` is due to have since the last due point, before rounding."""
        return self._training.enrolment.mean_target(self._training.due_points.share)

    @property
    def final_sparsity(self) -> float:
        """The value that `sparsity` is due to have at the schedule's end, before rounding.

        Under a budget with an allocation that needs scores, it is a forecast on the way.
        """
        return self._training.enrolment.final_sparsity

    @property
    def spending(self) -> Spending:
        """The costs that budgets limit, beside the costs that are due; empty without a budget."""
        points, enrolment = self._training.due_points, self._training.enrolment
        if not enrolment.limits:
            return Spending()
        owners = {pool.optimizer for pool in enrolment.pools}
        share = min((points.share(index) for index in owners), default=0.0)
        return enrolment.limits.measure(enrolment.kept, share)

    @property
    def targets(self) -> dict[str, float]:
        """The sparsity that is due for the pool of each group since the last due point, by name."""
        return self._training.enrolment.targets(self._training.due_points.share)

    @property
    def steps(self) -> list[int]:
        """The completed steps of each optimizer, those before a resume included."""
        return self._training.due_points.steps

    @property
    def plan(self) -> Mapping[str, float | None]:
        """The final sparsity of each group; None where only the training will tell."""
        return self._training.enrolment.plan

    def is_eventful(self, optimizer: Optimizer) -> bool:
        """Whether the next step does more than to keep zeros: it observes, or updates the masks.

        If not, a loop need not ask a gradient scaler whether it skips the step, which would hold up
        the host. It calls ``before_step``, and ``skip_step`` before the next step.

        Args:
            optimizer: The optimizer that will step next.
        """
        return self._training.is_eventful(unwrap_optimizer(optimizer))
