"""Notices: what a training says that went otherwise than asked."""

import warnings
from collections.abc import Sequence

import torch

from lightning_prune.engine.candidates import FROZEN, UNOWNED, Selection
from lightning_prune.engine.due_points import DuePoints
from lightning_prune.engine.enrolment import Enrolment
from lightning_prune.models.names import list_names
from lightning_prune.recipe.phases import Phases
from lightning_prune.recipe.recipe import Recipe
from lightning_prune.recipe.targets import format_targets
from lightning_prune.recipe.tensor import PrunedTensor
from lightning_prune.tensors.parts import count_pieces
from lightning_prune.tensors.shards import sum_by_tensor, sum_shards

_LEAST_SHARE = 0.1
_LISTED_NAMES = 5
_NAMED = "*weight*"  # a glob that names all weights, the frozen weights too
_SAMPLE = 1_000_000
_TOLERANCE = 0.01


def warn_of_early_end(enrolment: Enrolment, due_points: DuePoints, phases: Phases | None) -> None:
    """Warn if nothing was pruned, or if training stopped before the schedule or phases end."""
    selection, schedule = enrolment.selection, due_points.schedule
    if selection.may_grow and not selection.tensors:
        reasons = ", ".join(f"'{name}' ({why})" for name, why in selection.dense.items())
        warnings.warn(f"nothing was pruned: {reasons}", stacklevel=3)
    owners = {tensor.optimizer for tensor in selection.tensors}
    is_over = all(due_points.last_pruning(index) == schedule.end for index in owners)
    if phases and any(due_points.last_regrowth(index) != phases.end for index in owners):
        warnings.warn(
            f"training stopped before the last sparse phase, which begins at end={phases.end} "
            f"({phases.unit}): the masks are those of the last sparse phase before, with sparsity "
            f"{enrolment.sparsity:.4f} of {enrolment.final_sparsity:.4f}",
            stacklevel=3,
        )
        return
    final, spending = enrolment.final_sparsity, enrolment.limits.measure(enrolment.kept, 1.0)
    if final > 0 and not is_over and not due_points.may_go_back:
        reached = [f"sparsity {enrolment.sparsity:.4f} of {final:.4f}", *map(str, spending)]
        warnings.warn(
            f"training stopped before the schedule's end={schedule.end} ({schedule.unit}): "
            f"reached {', '.join(reached)}",
            stacklevel=3,
        )


def warn_of_untrained(selection: Selection, recipe: Recipe) -> None:
    """Warn if all weights that could be pruned wait to be trained; print the lines to write."""
    waiting = [f"'{n}' ({why})" for n, why in selection.dense.items() if why in (FROZEN, UNOWNED)]
    if waiting and not selection.tensors:
        named = {_NAMED if glob == "*" else glob: each for glob, each in recipe.targets.items()}
        verb = "keep the zeros of" if recipe.keep_zeros else "prune"
        warnings.warn(
            f"nothing is pruned until a weight is trained: {list_names(waiting, _LISTED_NAMES)}; "
            f"to {verb} frozen weights, name them by a glob other than '*', and write\n"
            f"{format_targets(named)}",
            stacklevel=5,
        )


def warn_of_lost_masks(tensors: Sequence[PrunedTensor]) -> None:
    """Warn if tensors without a mask from before have zeros, as after a lost state.

    A tensor counts if at least a tenth of the weights is 0, and the others have both signs and are
    not multiples of the least one. So a tensor of zeros (the last gamma of a block, ``lora_B``), an
    identity, an embedding behind a ReLU, and quantized weights are no alarm. An initialization that
    is sparse by itself is.

    Args:
        tensors: The new tensors; if they are sharded, all processes must call this together.
    """
    shares = _find_zeros([each for each in tensors if each.is_scored and each.total])
    if shares:
        listed = [f"{share:.4f} of '{name}'" for name, share in shares.items()]
        warnings.warn(
            f"weights are 0 and no mask says why: {list_names(listed, _LISTED_NAMES)}; they will "
            "grow back; to keep them, load the state of the pruning that made them (ckpt_path, or "
            "load_state_dict), or set keep_zeros=True",
            stacklevel=5,
        )


def _find_zeros(tensors: Sequence[PrunedTensor]) -> dict[str, float]:
    """Return the share of kept weights that are 0, for each tensor that looks pruned."""
    if not tensors:
        return {}
    device = tensors[0].mask.device
    counts = []
    for tensor in tensors:
        weights, nonzero = tensor.weights, tensor.weights.count_nonzero()
        zeros = weights.numel() - nonzero
        if tensor.kept < tensor.total:
            zeros = ((weights == 0) & tensor.mask.kept).count_nonzero()
        above = count_pieces(weights, join=lambda values: values > 0)
        counts.append((torch.stack([zeros, above, nonzero - above]).to(device), tensor.shard))
    table = zip(tensors, sum_by_tensor(counts).tolist(), strict=True)
    return {
        tensor.name: zeros / tensor.total
        for tensor, (zeros, above, below) in table
        if above and below and zeros >= _LEAST_SHARE * tensor.total and not _is_quantized(tensor)
    }


def _is_quantized(tensor: PrunedTensor) -> bool:
    """Whether most weights are multiples of the least one, up to rounding; a sample decides."""
    values = tensor.weights.flatten()
    values = values[values != 0][:_SAMPLE].double()
    counts = torch.zeros(2, dtype=torch.int64, device=tensor.mask.device)
    if len(values):
        multiples = values / values.abs().min()
        is_off = (multiples - multiples.round()).abs() > _TOLERANCE
        counts = torch.stack([is_off.sum(), torch.ones_like(is_off).sum()])
    off, sampled = sum_shards(counts, tensor.shard).tolist()
    return bool(2 * off < sampled)
