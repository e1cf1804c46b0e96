"""Roster: the tensors of a model under pruning, and how they join and leave."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_prune.engine.candidates import Selection
from lightning_prune.engine.checkpoint import EMPTY_STATE, describe_tensors, return_tensor
from lightning_prune.engine.earlier_masks import EarlierMasks
from lightning_prune.engine.enrolment import Enrolment, enroll
from lightning_prune.engine.limits import Latencies, Limits, show_cost
from lightning_prune.engine.notices import warn_of_lost_masks
from lightning_prune.engine.selection import select
from lightning_prune.engine.wrappers import unwrap_model
from lightning_prune.models.names import named_parameters
from lightning_prune.recipe.budgets import Unit
from lightning_prune.recipe.recipe import Recipe
from lightning_prune.recipe.tensor import PrunedTensor
from lightning_prune.tensors.shards import lay_out_like, local_part


class Roster:
    """The tensors of a model under pruning.

    Args:
        recipe: The answers.
        model: The model.
        example: For channels, what ``forward`` takes; None for ``example_input_array``.
        state: The restored state; None for none.
        is_over: Whether no later update is due, by the index of an optimizer.
        latencies: Measured latencies, or a function that measures them; those of the state win.

    Attributes:
        enrolment: The tensors that are pruned now; empty before the first `commit`.
    """

    def __init__(
        self,
        recipe: Recipe,
        model: nn.Module,
        *,
        example: Any = None,
        state: Mapping[str, Any] | None = None,
        is_over: Callable[[int], bool] = lambda index: True,
        latencies: Latencies | None = None,
    ) -> None:
        self.enrolment = Enrolment()
        self._recipe, self._model, self._example, self._is_over = recipe, model, example, is_over
        self._earlier = EarlierMasks(state, model)
        self._latencies, self._saved_costs = latencies, (state or {}).get("costs", {})

    @property
    def has_other_parameters(self) -> bool:
        """Whether the model has other parameters than at the last `commit`."""
        return self._earlier.has_other_parameters(self._model)

    def find_waiting(self) -> list[nn.Parameter]:
        """Return the dense parameters that can be pruned once they are trained."""
        parameters = named_parameters(self._model)
        return [parameters[name] for name in self.enrolment.selection.unready]

    def enroll(self, optimizers: Sequence[Optimizer], steps: Sequence[int]) -> Enrolment:
        """Look again which tensors are pruned; nothing changes before `commit`.

        Args:
            optimizers: The optimizers that train the model.
            steps: The completed steps of each optimizer.
        """

        def restore(tensor: PrunedTensor) -> None:
            tensor.step = steps[tensor.optimizer]
            if self._recipe.straight_through is not None and tensor.is_trained:
                tensor.hold_rest()
            self._earlier.give_to(tensor)

        self._earlier.check_shapes(self._model)
        enrolment = enroll(
            self.enrolment,
            select(self._model, optimizers, self._recipe, self._example),
            self._recipe,
            present=named_parameters(self._model),
            restore=restore,
            is_fresh=lambda tensor: not self._earlier.has(tensor),
            make_limits=self._make_limits,
        )
        self._watch(enrolment)
        return enrolment

    def commit(self, enrolment: Enrolment) -> set[int]:
        """Continue with other tensors: mask new tensors, and free the tensors that are gone.

        Returns:
            The indices of the optimizers of new tensors.
        """
        before = set(self.enrolment.selection.tensors)
        after = set(enrolment.selection.tensors)
        if not self._recipe.keep_zeros:
            new = [tensor for tensor in enrolment.selection.tensors if tensor not in before]
            warn_of_lost_masks([tensor for tensor in new if not self._earlier.has(tensor)])
        self.enrolment = enrolment
        for tensor in before - after:
            tensor.remove_hooks()
        for tensor in after - before:
            if tensor.kept < tensor.total:  # a write into shared memory would copy the weights
                tensor.mask.apply(tensor.weights)
        self._earlier.note(self._model, enrolment.selection, before - after)
        return {tensor.optimizer for tensor in after - before}

    def go_back(self, state: Mapping[str, Any]) -> None:
        """Give the tensors the masks and statistics of an earlier state; others become dense."""
        for tensor in self.enrolment.selection.tensors:
            return_tensor(tensor, state)

    def correct_cost(self, unit: Unit, measured: float) -> None:
        """Take over a cost that was measured in the present model.

        If no pruning can reach the budget by this measurement, a warning says so, and the cost that
        was predicted stays: the other way would lose all channels for nothing.
        """
        limits = self.enrolment.limits.correct(unit, self.enrolment.kept, measured)
        try:
            limits.check(self.enrolment.selection.groups)
        except ValueError as error:
            warnings.warn(
                f"a measurement of {show_cost(measured)} is not followed: {error}", stacklevel=4
            )
            return
        self.enrolment = self.enrolment.limit(limits)

    def collect_masks(self) -> dict[str, Tensor]:
        """Return the masks by name, with the devices and the shards of the parameters."""
        masks = {}
        for tensor in self.enrolment.selection.tensors:
            tensor.follow_parameter()
            kept = tensor.mask.kept.to(tensor.parameter.device)
            masks[tensor.name] = lay_out_like(tensor.parameter, kept)
        return masks

    def describe_tensors(self) -> dict[str, Any]:
        """Return masks, shapes and states of the tensors, and the restored masks that wait."""
        tensors = self.enrolment.selection.tensors
        described = describe_tensors(tensors, self._earlier.state or EMPTY_STATE)
        return described | {"costs": self.enrolment.limits.state_dict()}

    def mask_copy(self, model: nn.Module) -> None:
        """Zero the pruned weights in a copy of the model.

        Raises:
            ValueError: If it lacks a parameter that is being pruned.
        """
        parameters, tensors = (
            named_parameters(unwrap_model(model)),
            self.enrolment.selection.tensors,
        )
        lacking = ", ".join(f"'{each.name}'" for each in tensors if each.name not in parameters)
        if lacking:
            raise ValueError(f"need a copy with the same parameters, got one without {lacking}")
        for tensor in tensors:
            tensor.mask.apply(local_part(parameters[tensor.name]))

    def _make_limits(self, selection: Selection) -> Limits:
        if not (self._recipe.budgets or self._recipe.chosen_allocation.per):
            return Limits()
        from lightning_prune.engine.pricing import make_limits  # it imports what traces models

        saved = self.enrolment.limits.state_dict() or self._saved_costs
        return make_limits(
            self._recipe, self._model, selection, self._example, self._latencies, saved
        )

    def _watch(self, enrolment: Enrolment) -> None:
        """Let the criterion hook the tensors that it does not watch yet; none if it raises."""
        watched: list[PrunedTensor] = []
        try:
            for tensor in enrolment.selection.tensors:
                is_over = self._is_over(tensor.optimizer)
                if tensor.is_scored and not tensor.hooks and not is_over:
                    watched.append(tensor)
                    tensor.hooks = self._recipe.chosen_criterion.watch(tensor)
        except BaseException:
            for tensor in watched:
                tensor.remove_hooks()
            raise
