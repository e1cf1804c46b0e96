"""Guard of gradients: a step has the gradients that its criterion has observed."""

from collections.abc import Iterable

from torch import Tensor

from lightning_prune.recipe.recipe import Recipe
from lightning_prune.recipe.tensor import PrunedTensor

_Seen = tuple[PrunedTensor, Tensor | None, int]


class GradientGuard:
    """Notices a second observation of a step with other gradients.

    Within ``optimizer.step``, the closure of LBFGS makes gradients at other weights for the same
    step, which is no fault. A recipe that reads weights only has nothing to lose.

    Args:
        recipe: The answers.
    """

    def __init__(self, recipe: Recipe) -> None:
        straight = recipe.straight_through
        scales = straight is not None and straight.gradient_scale != 1
        self._is_on = scales or any(not each.reads_weights_only for each in recipe.criteria)
        self._seen: dict[int, list[_Seen]] = {}
        self._stepping: set[int] = set()  # between the begin and the end of optimizer.step()

    def note(self, index: int, tensors: Iterable[PrunedTensor]) -> None:
        """Hold the observed gradients of an optimizer until the end of the step."""
        if self._is_on:
            self._seen[index] = [_look_at_gradient(tensor) for tensor in tensors]

    def forget(self, index: int) -> None:
        """Let the gradients go."""
        self._seen.pop(index, None)

    def begin_step(self, index: int) -> None:
        """Note that ``optimizer.step`` begins."""
        if self._is_on:
            self._stepping.add(index)

    def end_step(self, index: int) -> None:
        """Note that ``optimizer.step`` ends, and let the gradients go."""
        if self._is_on:
            self._stepping.discard(index)
            self.forget(index)

    def refuse_others(self, index: int, step: int) -> None:
        """Raise RuntimeError if the step has other gradients than those that were observed."""
        if index not in self._stepping and any(map(_has_changed, self._seen.get(index, ()))):
            raise RuntimeError(
                "need a single before_step(optimizer) for each step(), got another call with other "
                f"gradients at step {step}; call it after the last backward() of a step, or call "
                "skip_step(optimizer) if the step is not made"
            )


def _look_at_gradient(tensor: PrunedTensor) -> _Seen:
    """Return the tensor, the gradient, and the number of writes into the gradient."""
    gradient = tensor.parameter.grad
    return tensor, gradient, 0 if gradient is None else gradient._version


def _has_changed(seen: _Seen) -> bool:
    tensor, gradient, version = seen
    _, now, version_now = _look_at_gradient(tensor)
    return now is not gradient or version_now != version
