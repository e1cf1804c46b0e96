"""Step hooks: the calls that an optimizer makes at the begin and at the end of each step."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lightning_prune.recipe.recipe import Recipe

Hook = Callable[[Optimizer, tuple[Any, ...], dict[str, Any]], None]


class StepHooks:
    """Two hooks on each optimizer.

    Args:
        begin: What is called before a step.
        end: What is called after a step.
    """

    def __init__(self, begin: Hook, end: Hook) -> None:
        # Compiled optimizers would trace the hooks and recompile at each step.
        self._begin = torch.compiler.disable(begin)  # type: ignore[no-untyped-call]
        self._end = torch.compiler.disable(end)  # type: ignore[no-untyped-call]
        self._handles: list[RemovableHandle] = []

    def add(self, optimizers: Iterable[Optimizer]) -> None:
        """Hook the optimizers."""
        for optimizer in optimizers:
            self._handles.append(optimizer.register_step_pre_hook(self._begin))
            self._handles.append(optimizer.register_step_post_hook(self._end))

    def remove(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()
        self._handles = []


def refuse_unknown_step(optimizer: Optimizer, is_trial_step: Callable[[Optimizer], bool]) -> None:
    """Raise RuntimeError for a step of training without a call of ``before_step``.

    A distributed checkpoint needs the state of the optimizer. Before the first step torch makes the
    state by a step with learning rates and gradients of 0. That is no step of training.

    Args:
        optimizer: The optimizer that has stepped.
        is_trial_step: Whether the present step is outside of training.
    """
    changes_nothing = all(float(group.get("lr", 1.0)) == 0 for group in optimizer.param_groups)
    if not (changes_nothing or will_be_skipped(optimizer) or is_trial_step(optimizer)):
        raise RuntimeError(
            "need before_step(optimizer) between backward() and step(), got a step without it; "
            "in a LightningModule, step what self.optimizers() returns"
        )


def will_be_skipped(optimizer: Optimizer) -> bool:
    """Whether a fused optimizer is called, but will not step: a scaler found infinite gradients.

    In this case a scaler does not call other optimizers.
    """
    found = getattr(optimizer, "found_inf", None)
    return found is not None and bool(found)


def refuse_incomplete_gradients(
    recipe: Recipe, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> None:
    """Raise RuntimeError if the gradients are not complete when ``step`` is called.

    A closure computes them later. A fused optimizer with a scaler unscales them later, unless they
    are unscaled already.

    Args:
        recipe: The answers.
        args: The arguments of ``step``: the optimizer first.
        kwargs: The named arguments.
    """
    if callable(kwargs.get("closure", args[1] if len(args) > 1 else None)):
        raise RuntimeError(
            "need step() without a closure after attach(..., hook=True), got step(closure): the "
            "closure computes the gradients after the hook; attach with hook=False, and call "
            "before_step(optimizer) at the end of the closure"
        )
    is_scaled = getattr(args[0], "grad_scale", None) is not None
    if is_scaled and any(criterion.reads_gradients for criterion in recipe.criteria):
        raise RuntimeError(
            "need unscaled gradients for a criterion that reads them, got a fused optimizer that "
            "unscales in its step; call scaler.unscale_(optimizer) before scaler.step(optimizer)"
        )
