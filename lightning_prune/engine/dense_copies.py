"""Straight-through: the values of pruned weights, in place while the optimizer steps."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_prune.engine.wrappers import list_layers
from lightning_prune.recipe.recipe import Recipe
from lightning_prune.recipe.tensor import PrunedTensor
from lightning_prune.tensors.parts import slice_pieces
from lightning_prune.tensors.shards import local_part

_CALLS_AGAIN = ("LBFGS", "SAM")
"""Ends of the names of optimizers that compute the loss again after they have moved weights."""

_WRITES_LATER = "Lookahead"
"""The name of a wrapper that moves weights after the step of the optimizer inside."""


class DenseCopies:
    """Puts the values of pruned weights in place for the time of a step.

    Outside of ``optimizer.step()`` the pruned weights are 0. The values are in ``tensor.rest``, and
    come into the parameters when the gradients are complete: when the step begins, or, if the
    closure of the step computes the gradients, in `before_step`. When the step ends, they leave by
    the masks of that moment. A step that is not made, or that fails, changes no value.

    Without `StraightThrough` in the recipe nothing has a ``rest``, and nothing happens.

    Args:
        recipe: The answers.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._answer = recipe.straight_through
        self._is_observed = recipe.chosen_criterion.gathers
        self._reads_gradients = recipe.chosen_criterion.reads_gradients
        self._tensors: dict[int, list[PrunedTensor]] = {}
        self._ready: set[int] = set()  # the gradients are complete
        self._stepping: set[int] = set()  # between the begin and the end of optimizer.step()
        self._inside: set[int] = set()  # the values are in the parameters

    @property
    def is_on(self) -> bool:
        """Whether the recipe asks for straight-through."""
        return self._answer is not None

    def check(self, optimizers: Sequence[Optimizer], tensors: Sequence[PrunedTensor]) -> None:
        """Refuse optimizers, or wrappers of them, that cannot step over values of pruned weights.

        Raises:
            ValueError: If an optimizer computes gradients again while the values are in place, or
                if two optimizers train the same tensor.
        """
        if self._answer is not None:
            for index, optimizer in enumerate(optimizers):
                for layer in list_layers(optimizer):
                    _refuse_optimizer(layer, index, tensors)

    def follow(self, tensors: Sequence[PrunedTensor]) -> None:
        """Take up the tensors that are pruned from now on."""
        self._tensors = {}
        for tensor in tensors:
            if self._answer is not None and tensor.is_trained:
                tensor.hold_rest()
                self._tensors.setdefault(tensor.optimizer, []).append(tensor)

    def renews(self, step: int) -> bool:
        """Whether the masks are chosen anew at the end of a step, 0-based, without a due point."""
        return self._answer is not None and (step + 1) % self._answer.every == 0

    def prepare(self, index: int) -> None:
        """Note that the gradients of a step are complete; scale those of pruned weights.

        Raises:
            ValueError: If a gradient that must be scaled is sparse.
            RuntimeError: If the values are in place already: the gradients are not those of the
                masked network.
        """
        if self._answer is None:
            return
        if index in self._inside:
            self.withdraw(index)
            raise RuntimeError(
                "need a single before_step(optimizer) for each step() with straight_through, got "
                "another call while the optimizer steps: the gradients are those of the dense "
                "weights; take an optimizer that calls its closure once, and call "
                "skip_step(optimizer) after a step that has failed"
            )
        for tensor in self._tensors.get(index, ()):
            tensor.follow_parameter()
            if index not in self._ready:
                _scale_gradient(tensor, self._answer.gradient_scale)
        self._ready.add(index)
        if index in self._stepping:
            self._enter(index)

    def begin_step(self, index: int) -> None:
        """Note that ``optimizer.step`` begins."""
        if self.is_on:
            self._stepping.add(index)
            if index in self._ready:
                self._enter(index)

    def withdraw(self, index: int) -> None:
        """Mask the weights again, and change no value: the step is not made, or has failed."""
        self._ready.discard(index)
        self._stepping.discard(index)
        if index in self._inside:
            self._mask(index)

    def withdraw_all(self) -> None:
        """Mask the weights of all optimizers again."""
        for index in self._tensors:
            self.withdraw(index)

    def refuse_reading(self) -> None:
        """Raise RuntimeError if the values are in place, and so would be in a checkpoint."""
        if self._inside:
            raise RuntimeError(
                "need state_dict() outside of optimizer.step() with straight_through, got a call "
                "in the step: the pruned weights are not 0 there; save at the end of the batch"
            )

    @contextmanager
    def end_step(self, index: int) -> Iterator[None]:
        """Choose masks inside of this context; then the values leave by these masks."""
        try:
            if self._answer is not None and self._reads_gradients and index in self._ready:
                for tensor in self._tensors.get(index, ()):
                    _scale_gradient(tensor, 1 / self._answer.gradient_scale)
            yield
        finally:
            for tensor in self._tensors.get(index, ()):
                assert tensor.rest is not None
                if index not in self._inside:  # a step outside of training
                    tensor.mask.apply(tensor.weights)
                elif tensor.kept < tensor.total:
                    _move_out(tensor, tensor.rest)
            for noted in (self._ready, self._stepping, self._inside):
                noted.discard(index)

    @contextmanager
    def show(self, index: int) -> Iterator[None]:
        """Put the values in place inside of this context, for a criterion that observes weights."""
        if self._is_observed:
            self._enter(index)
        try:
            yield
        finally:
            if self._is_observed:
                self._mask(index)

    def _enter(self, index: int) -> None:
        if not self.is_on or index in self._inside:
            return
        self._inside.add(index)
        for tensor in self._tensors.get(index, ()):
            if tensor.rest is not None and tensor.kept < tensor.total:
                tensor.weights.add_(tensor.rest)  # pruned weights are 0, and kept ones have rest 0

    def _mask(self, index: int) -> None:
        self._inside.discard(index)
        for tensor in self._tensors.get(index, ()):
            tensor.mask.apply(tensor.weights)


def _scale_gradient(tensor: PrunedTensor, scale: float) -> None:
    """Scale the gradients of pruned weights, in pieces that stay in the cache."""
    gradient = tensor.parameter.grad
    if scale == 1 or gradient is None or tensor.kept == tensor.total:
        return
    if gradient.layout != torch.strided:
        raise ValueError(
            f"need gradient_scale=1 in StraightThrough for a sparse gradient, got "
            f"gradient_scale={scale} and such a gradient for '{tensor.name}'; build the layer with "
            "sparse=False, or set gradient_scale=1"
        )
    values = local_part(gradient)
    for rows in slice_pieces(values):
        tensor.mask[rows].scale(values[rows], scale)


def _move_out(tensor: PrunedTensor, rest: Tensor) -> None:
    """Move the values of pruned weights out of the parameter, in pieces that stay in the cache."""
    weights = tensor.weights
    for rows in slice_pieces(weights):
        tensor.mask[rows].split(weights[rows], rest[rows])


def _refuse_optimizer(optimizer: Optimizer, index: int, tensors: Sequence[PrunedTensor]) -> None:
    """Raise ValueError if an optimizer cannot step over the values of pruned weights."""
    name = type(optimizer).__name__
    if name == _WRITES_LATER:
        raise ValueError(
            f"need an optimizer that moves weights in its step only for straight_through, got "
            f"{name}, which averages them later, when pruned weights must be 0"
        )
    if any("train_mode" in group for group in optimizer.param_groups):
        raise ValueError(
            f"need an optimizer that moves weights in its step only for straight_through, got "
            f"{name}, whose eval() puts averages into the weights, also where these must be 0"
        )
    trained = [tensor for tensor in tensors if tensor.is_trained]
    owned = [tensor for tensor in trained if tensor.optimizer == index]
    if owned and any(kind.__name__.endswith(_CALLS_AGAIN) for kind in type(optimizer).__mro__):
        raise ValueError(
            f"need an optimizer that computes gradients once a step for straight_through, got "
            f"{name}, which calls its closure again at the weights behind the masks"
        )
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for tensor in trained:
        if id(tensor.parameter) in held and tensor not in owned:
            raise ValueError(
                f"need a single optimizer for each pruned weight with straight_through, got "
                f"'{tensor.name}' in two optimizers, the second of them {name}"
            )
