"""Which: a score for every weight; the higher ones are kept."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_prune.recipe.layer_inputs import InputHook, check_inputs, empty_sums
from lightning_prune.recipe.old_names import refuse_old_names
from lightning_prune.recipe.tensor import PrunedTensor
from lightning_prune.tensors.precision import widen_to_single
from lightning_prune.tensors.uniform import draw_uniform

State = dict[str, Tensor]


class Criterion(ABC):
    """The answer to *which?*.

    A subclass is a frozen dataclass with a default for every field. The tensors that it gathers
    over the steps live in ``state``, one dict for each pruned tensor, which the engine keeps, saves
    and restores. To write a criterion, define `score`. Define `observe` only if it needs the steps
    in between, and `watch` only if it needs more than weights and gradients.

    Attributes:
        has_signed_scores: Whether scores can be negative.
        resets_at_update: Whether ``state`` is emptied at each update of the masks.
        reads_weights_only: Whether scores depend on nothing but weights, names and steps, so that
            pruning without training shows no batches.
        works_on_shards: Whether, for a sharded parameter (a DTensor, as its ``grad`` is), the score
            of the local part is that part of the whole score. It must not gather anything then.
    """

    has_signed_scores: ClassVar[bool] = False
    resets_at_update: ClassVar[bool] = False
    reads_weights_only: ClassVar[bool] = False
    works_on_shards: ClassVar[bool] = False

    @property
    def gathers(self) -> bool:
        """Whether it gathers anything over the steps: whether it defines `observe`."""
        return type(self).observe is not Criterion.observe

    def check_tensor(self, tensor: PrunedTensor, model: nn.Module) -> None:  # noqa: B027
        """Raise ValueError if it cannot score this tensor of the model."""

    def watch(self, tensor: PrunedTensor) -> Sequence[RemovableHandle]:
        """Return hooks that gather in ``tensor.seen``; the engine takes them away.

        They exist while updates of the masks are to come. Put tensors of zeros into ``seen`` and
        let the hooks add to them, in place. Before each step the engine adds them up over the
        replicas, calls `observe`, and sets them to zero.
        """
        return ()

    def observe(self, tensor: PrunedTensor, state: State) -> State:
        """Return the new state; called before each optimizer step, when gradients are complete.

        Args:
            tensor: The tensor, with ``tensor.parameter`` and its ``grad``.
            state: The state that the last call returned; empty at first.
        """
        return state

    @abstractmethod
    def score(self, tensor: PrunedTensor, state: State) -> Tensor:
        """Return one finite score a weight, shaped as ``tensor.weights``; higher is kept.

        The engine calls this once an update for each tensor, and holds the scores meanwhile.
        """

    def source(self, tensor: PrunedTensor, state: State) -> Tensor | None:
        """Return the tensor whose plain function the score is; None if there is none.

        If there is one, ranking reads `transform` of it in place, in pieces and as often as it
        likes, instead of holding the scores. Both must agree with `score`.
        """
        return None

    def transform(self, values: Tensor) -> Tensor:
        """Return the scores of values of the `source`, weight by weight."""
        return values

    def __init_subclass__(cls) -> None:
        """Refuse the names of 0.1.0, which would be ignored without a word."""
        super().__init_subclass__()
        refuse_old_names(cls, {"signed": "has_signed_scores", "forgets": "resets_at_update"})


class SourceCriterion(Criterion):
    """A criterion whose score is a plain function of a tensor that exists, weight by weight."""

    @abstractmethod
    def source(self, tensor: PrunedTensor, state: State) -> Tensor:
        """Return the tensor that the score is a function of."""

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

    def transform(self, values: Tensor) -> Tensor:
        """Return :math:`|w|`."""
        return values.abs()


@dataclass(frozen=True, kw_only=True)
class RandomCriterion(Criterion):
    """Keep weights at random: the baseline that a criterion must beat.

    Scores are uniform in [0, 1) and a function of seed, step, name and index alone: the same on
    every rank and after a resume, without touching a global generator. They are SplitMix64 hashes
    of the index: Steele et al., "Fast Splittable Pseudorandom Number Generators" (2014),
    https://doi.org/10.1145/2714064.2660195.

    Args:
        seed: Any whole number.
    """

    reads_weights_only: ClassVar[bool] = True
    works_on_shards: ClassVar[bool] = True
    seed: int = 0

    def score(self, tensor: PrunedTensor, state: State) -> Tensor:
        """Return uniform numbers that depend on seed, step, name and index only."""
        return draw_uniform(tensor.indices(), f"{self.seed} {tensor.step} {tensor.name}")


@dataclass(frozen=True, kw_only=True)
class GradientCriterion(SourceCriterion):
    r"""Keep where the loss is steepest: :math:`|g|` of the present step.

    A pruned weight has a gradient too, so this is also what grows: Evci et al., "Rigging the
    Lottery" (RigL, 2020), https://arxiv.org/abs/1911.11134.

    Raises:
        ValueError: If a tensor has no gradient when it is scored.
    """

    works_on_shards: ClassVar[bool] = True

    def source(self, tensor: PrunedTensor, state: State) -> Tensor:
        """Return :math:`g`."""
        return tensor.gradient

    def transform(self, values: Tensor) -> Tensor:
        """Return :math:`|g|`."""
        return values.abs()


@dataclass(frozen=True, kw_only=True)
class TaylorCriterion(Criterion):
    r"""Keep what the loss would miss most: to first order, removing a weight changes it by |w g|.

    .. math:: s = \frac{1}{T} \sum_{t=1}^{T} |w_t \, g_t|

    over the :math:`T` steps since the last update, the present one included. Molchanov et al.,
    "Importance Estimation for Neural Network Pruning" (2019), https://arxiv.org/abs/1906.10771.
    With ``OneShotSchedule(end=0)`` it is the first step's alone: SNIP, Lee et al., "Single-shot
    Network Pruning based on Connection Sensitivity" (2019), https://arxiv.org/abs/1810.02340.

    Raises:
        ValueError: If a tensor has no gradient at a step, or no step was made since the last
            update.
    """

    resets_at_update: ClassVar[bool] = True

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
    r"""Keep what the loss would miss most near a minimum, where gradients are about 0.

    .. math:: s = \frac{w^2}{2} \cdot \frac{1}{T} \sum_{t=1}^{T} g_t^2

    over the :math:`T` steps since the last update, the present one included: the saliency of LeCun
    et al., "Optimal Brain Damage" (1989),
    https://papers.nips.cc/paper/1989/hash/6c9882bbac1c7093bd25041881277658-Abstract.html, whose
    second derivative is here the mean squared gradient of a batch, as in Theis et al., "Faster gaze
    prediction with dense networks and Fisher pruning" (2018), https://arxiv.org/abs/1801.05787.

    Raises:
        ValueError: If a tensor has no gradient at a step, or no step was made since the last
            update.
    """

    resets_at_update: ClassVar[bool] = True

    def observe(self, tensor: PrunedTensor, state: State) -> State:
        """Add :math:`g^2`."""
        return _add_step(state, widen_to_single(tensor.gradient).square())

    def score(self, tensor: PrunedTensor, state: State) -> Tensor:
        """Return half the squared weight times the mean of :math:`g^2`."""
        return widen_to_single(tensor.weights).square() / 2 * _average(tensor, state)


@dataclass(frozen=True, kw_only=True)
class MovementCriterion(SourceCriterion):
    r"""Keep what moves away from zero, as fine-tuning shows: a small weight that grows is kept.

    .. math:: s = -\sum_t w_t \, g_t

    over all steps so far; negative where the loss pulls the weight towards zero. Sanh et al.,
    "Movement Pruning" (2020), https://arxiv.org/abs/2005.07683, in its hard form (of a ranking,
    not of a threshold). There a pruned weight may revive, as its score goes on; here it is 0, adds
    nothing, and counts 0, so nothing revives. Scores can be negative: `LAMPAllocation` is refused.

    Raises:
        ValueError: If a tensor has no gradient at a step, or no step was made yet.
    """

    has_signed_scores: ClassVar[bool] = True

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


@dataclass(frozen=True, kw_only=True)
class WandaCriterion(Criterion):
    r"""Keep what is large in the output: a weight counts as much as its input is large.

    .. math:: s_{ij} = |w_{ij}| \, \lVert x_j \rVert_2

    over the inputs :math:`x_j` of all training batches since the last update, of all replicas, the
    present step's included. Sun et al., "A Simple and Effective Pruning Approach for LLMs" (2023),
    https://arxiv.org/abs/2306.11695. They compare within each output row: use it with
    ``UnstructuredPattern(per_row=True)`` and `UniformAllocation`, or with `NMPattern`. Other
    patterns rank the rows of a tensor together, and other allocations also the tensors.

    Of a convolution, :math:`x_j` is what one position of the kernel meets, padding included. Hooks
    see the inputs while updates are to come; they count in training mode only, and with gradients.

    Raises:
        ValueError: If a tensor is not the weight of a Linear, a convolution (not transposed) or
            Hugging Face's Conv1D, which alone has it, calls it and is not compiled; or if it saw no
            inputs since the last update.
    """

    resets_at_update: ClassVar[bool] = True

    def check_tensor(self, tensor: PrunedTensor, model: nn.Module) -> None:
        """Refuse a tensor whose inputs cannot be seen."""
        check_inputs(tensor, model)

    def watch(self, tensor: PrunedTensor) -> Sequence[RemovableHandle]:
        """Return the hook that adds up squares of inputs."""
        squares = empty_sums(tensor)
        tensor.seen = {"squares": squares, "calls": squares.new_zeros(())}
        return (tensor.owner.register_forward_pre_hook(InputHook(tensor), with_kwargs=True),)

    def observe(self, tensor: PrunedTensor, state: State) -> State:
        """Add what was seen."""
        return {
            key: state[key] + seen if state else seen.clone() for key, seen in tensor.seen.items()
        }

    def score(self, tensor: PrunedTensor, state: State) -> Tensor:
        r"""Return :math:`|w_{ij}| \, \lVert x_j \rVert_2`."""
        if not state or not state["calls"]:
            raise ValueError(
                f"need inputs before an update of the masks, got none for '{tensor.name}' by step "
                f"{tensor.step} since the last one: its {type(tensor.owner).__name__} was not "
                "called in training mode, or joined only now; to leave it dense, write "
                f"sparsity={{'{tensor.name}': null}}"
            )
        weights, norms = tensor.output_first(tensor.weights.abs()), state["squares"].sqrt()
        outputs_of_a_group = len(weights) // len(norms)
        return tensor.output_first(weights * norms.repeat_interleave(outputs_of_a_group, dim=0))


def _add_step(state: State, values: Tensor) -> State:
    """Return a sum and its number of steps with one more step in them."""
    if not state:
        return {"sum": values, "steps": torch.ones(())}
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
