"""Steps that a gradient scaler skips."""

from collections.abc import Callable
from typing import Any

from torch.amp.grad_scaler import OptState
from torch.optim import Optimizer

from lightning_prune.callbacks.namespace import Trainer
from lightning_prune.engine.pruner import Pruner


class SkippedSteps:
    """Asks a gradient scaler whether it skips a step, but only where that matters to the engine.

    To ask is to wait until the device has computed the gradients.

    Args:
        pruner: The engine.
    """

    def __init__(self, pruner: Pruner) -> None:
        self._pruner = pruner
        self._unasked: set[Optimizer] = set()  # whose last steps may have been skipped

    def will_be_skipped(self, trainer: Trainer, optimizer: Optimizer) -> bool:
        """Whether the scaler will skip the step, and the engine must know.

        Args:
            trainer: The Trainer.
            optimizer: The optimizer that will step next.
        """
        scaler = _find_scaler(trainer)
        if scaler is None:
            return False
        self.end_steps()
        state = scaler._per_optimizer_states[id(optimizer)]
        if _has_no_loss(state, optimizer):
            return True
        if state["stage"] is OptState.READY:
            scaler.unscale_(optimizer)  # A fused optimizer would unscale after masking.
        if self._pruner.is_eventful(optimizer):
            return _has_infinity(state)
        self._unasked.add(optimizer)
        return False

    def end_steps(self) -> None:
        """Let the engine forget the steps that were begun, and may have been skipped."""
        while self._unasked:
            self._pruner.skip_step(self._unasked.pop())


def make_trial_check(callback: object, trainer: Trainer) -> Callable[[Optimizer], bool]:
    """Return the function that recognizes a step outside training, or a skipped step.

    Args:
        callback: The callback that prunes; finders take it out of the Trainer for their trials.
        trainer: The Trainer.
    """

    def is_trial_step(optimizer: Optimizer) -> bool:
        if callback not in trainer.callbacks:  # type: ignore[union-attr]
            return True
        scaler = _find_scaler(trainer)
        if scaler is None:
            return False
        state = scaler._per_optimizer_states[id(optimizer)]
        return _has_no_loss(state, optimizer) or _has_infinity(state)

    return is_trial_step


def _find_scaler(trainer: Trainer) -> Any:
    """Return the gradient scaler of a Trainer; None if no gradient is scaled."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return scaler if scaler is not None and scaler.is_enabled() else None


def _has_no_loss(state: Any, optimizer: Optimizer) -> bool:
    """Whether the step has no loss: then Lightning neither unscales nor steps."""
    unscales = getattr(optimizer, "_step_supports_amp_scaling", False)
    return state["stage"] is OptState.READY and not unscales


def _has_infinity(state: Any) -> bool:
    """Wait for the gradients, and return whether they are infinite somewhere."""
    return any(bool(value.item()) for value in state["found_inf_per_device"].values())
