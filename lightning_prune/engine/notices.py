"""Notices: what a training says that went otherwise than asked."""

import warnings

from lightning_prune.engine.due_points import DuePoints
from lightning_prune.engine.enrolment import Enrolment


def warn_of_early_end(enrolment: Enrolment, due_points: DuePoints) -> None:
    """Warn if nothing was pruned, or if training stopped before the end of the schedule."""
    selection, schedule = enrolment.selection, due_points.schedule
    if selection.may_grow and not selection.tensors:
        reasons = ", ".join(f"'{name}' ({why})" for name, why in selection.dense.items())
        warnings.warn(f"nothing was pruned: {reasons}", stacklevel=3)
    owners = {tensor.optimizer for tensor in selection.tensors}
    is_over = all(due_points.last_pruning(index) == schedule.end for index in owners)
    final = enrolment.mean_target(lambda index: 1.0)
    if final > 0 and not is_over:
        warnings.warn(
            f"training stopped before the schedule's end={schedule.end} ({schedule.unit}): "
            f"reached sparsity {enrolment.sparsity:.4f} of {final:.4f}",
            stacklevel=3,
        )
