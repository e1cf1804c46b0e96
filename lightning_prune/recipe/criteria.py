"""Which: a score for every weight; weights with higher scores are kept."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_prune.arguments.checks import check_fields
from lightning_prune.recipe.old_names import refuse_old_names
from lightning_prune.recipe.tensor import PrunedTensor
from lightning_prune.tensors.parts import take_magnitudes
from lightning_prune.tensors.precision import widen_to_single
from lightning_prune.tensors.uniform import draw_uniform

State = dict[str, Tensor]


class Criterion(ABC):
    """The answer to *which?*.

    A subclass is a frozen dataclass with a default for every field. The tensors that a criterion
    gathers over the steps live in ``state``, a dict for each pruned tensor. The engine holds, saves
    and restores the state. To write a criterion, define `score`. Define `observe` only if it needs
    the steps between updates, and `watch` only if it needs more than weights and gradients.

    Attributes:
        has_signed_scores: Whether scores can be negative.
        resets_at_update: Whether each update of the masks empties ``state``.
        reads_weights_only: Whether scores depend only on weights, names and steps. Then pruning
            without training needs no batches.
        reads_inputs_only: Whether scores depend only on weights and on what `watch` sees. Then
            pruning without training runs batches forward only, without gradients.
        reads_gradients: Whether the criterion reads ``tensor.gradient``. Then a frozen weight,
            which has no gradient, is refused before training starts.
        works_on_shards: Whether the criterion can score the local part of a sharded parameter (a
            DTensor, as is the ``grad``): the result is the local part of the whole score.
        state_by_weight: The keys of ``state`` whose tensors hold a value for each weight, shaped as
            ``tensor.weights``. Of these a process with shards gathers the local part; the engine
            saves them whole. The other tensors must be the same on all processes.
    """

    has_signed_scores: ClassVar[bool] = False
    resets_at_update: ClassVar[bool] = False
    reads_weights_only: ClassVar[bool] = False
    reads_inputs_only: ClassVar[bool] = False
    reads_gradients: ClassVar[bool] = False
    works_on_shards: ClassVar[bool] = False
    state_by_weight: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        """Raise TypeError if a field has the wrong type; a subclass calls this method first."""
        check_fields(self)

    @property
    def gathers(self) -> bool:
        """Whether the criterion gathers tensors over the steps: whether it defines `observe`."""
        return type(self).observe is not Criterion.observe

    def check_tensor(self, tensor: PrunedTensor, model: nn.Module) -> None:  # noqa: B027
        """Raise ValueError if the criterion cannot score this tensor of the model."""

    def watch(self, tensor: PrunedTensor) -> Sequence[RemovableHandle]:
        """Return hooks that add to ``tensor.seen``; the engine removes the hooks.

        The hooks exist until the last update of the masks. Put tensors of zeros into ``seen`` and
        let the hooks add to these tensors in place. Before each step the engine sums the tensors
        over the replicas, calls `observe`, and sets the tensors to zero.
        """
        return ()

    def observe(self, tensor: PrunedTensor, state: State) -> State:
        """Return the new state; called before each optimizer step, when gradients are complete.

        Args:
            tensor: The tensor, with ``tensor.parameter`` and the ``grad``.
            state: The state that the last call returned; empty at first.
        """
        return state

    @abstractmethod
    def score(self, tensor: PrunedTensor, state: State) -> Tensor:
        """Return a finite score for each weight, shaped as ``tensor.weights``.

        Weights with higher scores are kept. The engine calls this method once an update for each
        tensor, and holds the scores until the update ends.
        """

    def source(self, tensor: PrunedTensor, state: State) -> Tensor | None:
        """Return an existing tensor from which `transform` computes the scores; None if absent.

        Given a source, ranking does not hold the scores. It reads the source in pieces, in place
        and more than once, and applies `transform` to each piece. The result must equal `score`.
        """
        return None

    def transform(self, values: Tensor) -> Tensor:
        """Return the scores of values of the `source`, weight by weight."""
        return values

    def __init_subclass__(cls) -> None:
        """Refuse the names of 0.1.0, which the engine would silently ignore."""
        super().__init_subclass__()
        refuse_old_names(cls, {"signed": "has_signed_scores", "forgets": "resets_at_update"})


class SourceCriterion(Criterion):
    """A criterion that computes each score from a value of an existing tensor."""

    @abstractmethod
    def source(self, tensor: PrunedTensor, state: State) -> Tensor:
        """Return the tensor from which `transform` computes the scores."""

    def score(self, tensor: PrunedTensor, state: State) -> Tensor:
        """Return `transform` of the `source`."""
        return self.transform(self.source(tensor, state))


@dataclass(frozen=True, kw_only=True)
class MagnitudeCriterion(SourceCriterion):
    r"""Keep the largest weights: :math:`|w|`.

    Han et al., "Learning both Weights and Connections" (2015), https://arxiv.org/abs/1506.02626.
    """

    reads_weights_only: ClassVar[bool] = True
    works_on_shards: ClassVar[bool] = True

    def source(self, tensor: PrunedTensor, state: State) -> Tensor:
        """Return :math:`w`."""
        return tensor.weights

    transform = staticmethod(take_magnitudes)


@dataclass(frozen=True, kw_only=True)
class RandomCriterion(Criterion):
    """Keep weights at random: the baseline that a criterion must beat.

    Scores are uniform in [0, 1) and depend only on seed, step, name and index. So they are the same
    on every rank and after a resume, and leave the global generators alone. Each score is a
    SplitMix64 hash of the index: Steele et al., "Fast Splittable Pseudorandom Number Generators"
    (2014), https://doi.org/10.1145/2714064.2660195.

    Args:
        seed: Any whole number.
    """

    reads_weights_only: ClassVar[bool] = True
    works_on_shards: ClassVar[bool] = True
    seed: int = 0

    def score(self, tensor: PrunedTensor, state: State) -> Tensor:
        """Return uniform numbers that depend only on seed, step, name and index."""
        return draw_uniform(tensor.indices(), f"{self.seed} {tensor.step} {tensor.name}")


@dataclass(frozen=True, kw_only=True)
class GradientCriterion(SourceCriterion):
    r"""Keep the weights where the loss is steepest: :math:`|g|` of the present step.

    A pruned weight has a gradient too. So this criterion can also choose the weights that grow:
    Evci et al., "Rigging the Lottery" (RigL, 2020), https://arxiv.org/abs/1911.11134.

    Raises:
        ValueError: If a tensor has no gradient at an update.
    """

    reads_gradients: ClassVar[bool] = True
    works_on_shards: ClassVar[bool] = True

    def source(self, tensor: PrunedTensor, state: State) -> Tensor:
        """Return :math:`g`."""
        return tensor.gradient

    transform = staticmethod(take_magnitudes)


@dataclass(frozen=True, kw_only=True)
class TaylorCriterion(Criterion):
    r"""Keep the weights whose removal changes the loss most: to first order, by |w g|.

    .. math:: s = \frac{1}{T} \sum_{t=1}^{T} |w_t \, g_t|

    The sum runs over the :math:`T` steps since the last update, including the present step:
    Molchanov et al., "Importance Estimation for Neural Network Pruning" (2019),
    https://arxiv.org/abs/1906.10771. With ``OneShotSchedule(end=0)`` the sum has only the first
    step. This is SNIP: Lee et al., "Single-shot Network Pruning based on Connection Sensitivity"
    (2019), https://arxiv.org/abs/1810.02340.

    Raises:
        ValueError: If a tensor has no gradient at a step, or there was no step since the last
            update.
    """

    reads_gradients: ClassVar[bool] = True
    resets_at_update: ClassVar[bool] = True
    works_on_shards: ClassVar[bool] = True
    state_by_weight: ClassVar[frozenset[str]] = frozenset({"sum"})

    def observe(self, tensor: PrunedTensor, state: State) -> State:
        """Add :math:`|w g|`."""
        return _add_step(
            state, (widen_to_single(tensor.weights) * widen_to_single(tensor.gradient)).abs()
        )

    def score(self, tensor: PrunedTensor, state: State) -> Tensor:
        """Return the mean of :math:`|w g|`."""
        return _average(tensor, state)


@dataclass(frozen=True, kw_only=True)
class FisherCriterion(Criterion):
    r"""Keep the weights whose removal changes the loss most near a minimum.

    .. math:: s = \frac{w^2}{2} \cdot \frac{1}{T} \sum_{t=1}^{T} g_t^2

    The sum runs over the :math:`T` steps since the last update, including the present step. Near a
    minimum gradients are about 0. So this is the saliency of LeCun et al., "Optimal Brain Damage"
    (1989), https://papers.nips.cc/paper/1989/hash/6c9882bbac1c7093bd25041881277658-Abstract.html.
    The mean squared gradient of a batch stands for the second derivative, as in Theis et al.,
    "Faster gaze prediction with dense networks and Fisher pruning" (2018),
    https://arxiv.org/abs/1801.05787.

    Raises:
        ValueError: If a tensor has no gradient at a step, or there was no step since the last
            update.
    """

    reads_gradients: ClassVar[bool] = True
    resets_at_update: ClassVar[bool] = True
    works_on_shards: ClassVar[bool] = True
    state_by_weight: ClassVar[frozenset[str]] = frozenset({"sum"})

    def observe(self, tensor: PrunedTensor, state: State) -> State:
        """Add :math:`g^2`."""
        return _add_step(state, widen_to_single(tensor.gradient).square())

    def score(self, tensor: PrunedTensor, state: State) -> Tensor:
        """Return half the squared weight times the mean of :math:`g^2`."""
        return widen_to_single(tensor.weights).square() / 2 * _average(tensor, state)


@dataclass(frozen=True, kw_only=True)
class MovementCriterion(SourceCriterion):
    r"""Keep the weights that fine-tuning moves away from zero, even if they are small.

    .. math:: s = -\sum_t w_t \, g_t

    The sum runs over all steps so far. It is negative where the loss pulls the weight towards zero.
    This is the hard form (a ranking, not a threshold) of Sanh et al., "Movement Pruning" (2020),
    https://arxiv.org/abs/2005.07683. In the paper the score of a pruned weight goes on, so the
    weight may revive. Here a pruned weight is 0 and has score 0. So no weight revives without
    `StraightThrough` or `Phases`. Scores can be negative, so `Recipe` refuses `LAMPAllocation`.

    Raises:
        ValueError: If a tensor has no gradient at a step, or there was no step yet.
    """

    reads_gradients: ClassVar[bool] = True
    has_signed_scores: ClassVar[bool] = True
    works_on_shards: ClassVar[bool] = True
    state_by_weight: ClassVar[frozenset[str]] = frozenset({"movement"})

    def observe(self, tensor: PrunedTensor, state: State) -> State:
        """Subtract :math:`w g`."""
        weights, gradient = widen_to_single(tensor.weights), widen_to_single(tensor.gradient)
        before = state["movement"] if state else torch.zeros_like(weights)
        movement = torch.addcmul(before, weights, gradient, value=-1.0)
        tensor.mask.apply(movement)
        return {"movement": movement}

    def source(self, tensor: PrunedTensor, state: State) -> Tensor:
        """Return minus the sum of :math:`w g`."""
        _check_observed(tensor, state)
        return state["movement"]


def _add_step(state: State, values: Tensor) -> State:
    """Add a step to a sum, and count the step."""
    if not state:
        return {"sum": values, "steps": torch.ones((), device=values.device)}
    return {"sum": state["sum"] + values, "steps": state["steps"] + 1}


def _average(tensor: PrunedTensor, state: State) -> Tensor:
    _check_observed(tensor, state)
    return state["sum"] / state["steps"]


def _check_observed(tensor: PrunedTensor, state: State) -> None:
    if not state:
        raise ValueError(
            f"need a step to be observed before an update of the masks, got none for "
            f"'{tensor.name}' at step {tensor.step}"
        )
