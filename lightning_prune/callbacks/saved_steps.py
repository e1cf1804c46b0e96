"""Checkpoints that are written at the last step of an epoch, before the epoch ends."""

import math

from lightning_prune.callbacks.namespace import Trainer, is_lightning, rank_zero_warn


def warn_of_saves_at_epoch_ends(trainer: Trainer) -> None:
    r"""Warn of a `ModelCheckpoint` that saves at the last step of an epoch before the last epoch.

    A run that resumes from this checkpoint is exact. But if it is resumed again, from a later
    checkpoint, Lightning 2.6 trains it for too many steps, with or without pruning. An epoch of
    :math:`B` batches has :math:`S = \lceil B / a \rceil` steps, where :math:`a` is
    ``accumulate_grad_batches``. Steps that are multiples of :math:`n` are saved, so the two meet at
    the multiples of :math:`\mathrm{lcm}(n, S)`.

    Args:
        trainer: The Trainer, at ``on_train_start``.
    """
    batches = trainer.num_training_batches
    if not trainer.lightning_module.automatic_optimization or not 0 < batches < math.inf:
        return
    steps = math.ceil(batches / trainer.accumulate_grad_batches)
    for callback in trainer.checkpoint_callbacks:
        saves = getattr(callback, "_every_n_train_steps", 0)
        if not is_lightning(callback, "ModelCheckpoint") or saves < 1:
            continue
        meeting = math.lcm(saves, steps)
        first = (trainer.global_step // meeting + 1) * meeting
        if first < trainer.estimated_stepping_batches:
            rank_zero_warn(
                f"{type(callback).__name__}(every_n_train_steps={saves}) saves at step {first}, "
                f"the last of an epoch of {steps} steps. If a run resumes from this checkpoint, "
                "and is resumed again from a later checkpoint, Lightning trains it for too many "
                "steps; save with every_n_epochs"
            )
