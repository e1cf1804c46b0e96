"""Steps that a gradient scaler skips."""

from collections.abc import Callable

from torch.amp.grad_scaler import OptState
from torch.optim import Optimizer

from lightning_prune.callbacks.namespace import Trainer


def will_be_skipped(trainer: Trainer, optimizer: Optimizer) -> bool:
    """Whether the gradient scaler has found infinite gradients and will skip the step."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    if scaler is None or not scaler.is_enabled():
        return False
    state = scaler._per_optimizer_states[id(optimizer)]
    if state["stage"] is OptState.READY:
        if not getattr(optimizer, "_step_supports_amp_scaling", False):
            return True  # Without a loss, Lightning neither unscales nor steps.
        scaler.unscale_(optimizer)  # A fused optimizer would unscale later than this check.
    return any(bool(value.item()) for value in state["found_inf_per_device"].values())


def make_trial_check(callback: object, trainer: Trainer) -> Callable[[Optimizer], bool]:
    """Return the function that recognizes a step outside training, or a skipped step.

    Args:
        callback: The callback that prunes; finders take it out of the Trainer for their trials.
        trainer: The Trainer.
    """

    def is_trial_step(optimizer: Optimizer) -> bool:
        is_finder = callback not in trainer.callbacks  # type: ignore[union-attr]
        return is_finder or will_be_skipped(trainer, optimizer)

    return is_trial_step
