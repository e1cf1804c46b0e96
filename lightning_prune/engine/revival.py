"""Revival: pruned weights that are no longer 0, and the traces of the code that wrote them."""

import warnings
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_prune.engine.tally import Tally
from lightning_prune.engine.zero_keeper import ZeroKeeper
from lightning_prune.recipe.tensor import PrunedTensor
from lightning_prune.tensors.counting import Masked, count_revived
from lightning_prune.tensors.shards import local_part, sum_by_tensor


def find_revived(tensors: Sequence[PrunedTensor]) -> dict[PrunedTensor, int]:
    """Return the number of pruned weights that are not 0, for each tensor that has such weights.

    This reads each weight once. With sharded parameters all processes must call this together.
    """
    counts = _count_revived(tensors)
    if not counts:
        return {}
    table = sum_by_tensor([(count, tensor.shard) for tensor, count in counts.items()]).tolist()
    return {tensor: count for tensor, count in zip(counts, table, strict=True) if count}


def ask_revived(
    tensors: Sequence[PrunedTensor],
    tally: Tally,
    react: Callable[[Mapping[PrunedTensor, int]], None],
) -> None:
    """Let a tally find whole tensors with pruned weights that are not 0, as `find_revived` does.

    Args:
        tensors: The tensors.
        tally: Counts the weights.
        react: Called with the number for each tensor that has such weights.
    """
    counts = _count_revived(tensors)

    def take(*numbers: int) -> None:
        react({tensor: n for tensor, n in zip(counts, numbers, strict=True) if n})

    if counts:
        first, *_ = counts.values()
        tally.add(torch.stack([count.to(first.device) for count in counts.values()]), None, take)


def _count_revived(tensors: Sequence[PrunedTensor]) -> dict[PrunedTensor, Tensor]:
    """Return the number of local pruned weights that are not 0, for tensors with pruned weights."""
    pruned = [tensor for tensor in tensors if tensor.kept < tensor.total]
    counts = count_revived([Masked(tensor.mask, tensor.weights) for tensor in pruned])
    return dict(zip(pruned, counts, strict=True))


def describe_revival(
    revived: Mapping[PrunedTensor, int],
    optimizers: Sequence[Optimizer],
    keepers: Sequence[ZeroKeeper],
) -> str:
    """Return in words which pruned weights are not 0, and what is known of the writer."""
    found = []
    for tensor, count in revived.items():
        trace = keepers[tensor.optimizer].find_trace(tensor)
        if not tensor.may_return:  # else its statistics are never 0
            trace = trace or _find_statistics(tensor, optimizers[tensor.optimizer])
        how = trace or "written through .data, or before an earlier step"
        found.append(f"{count} others in '{tensor.name}' at step {tensor.step} ({how})")
    return f"need pruned weights to be 0, got {', '.join(found)}"


def report_revival(revival: str, reaction: str) -> None:
    """Raise RuntimeError, or warn, as the user has asked.

    Args:
        revival: The words of `describe_revival`.
        reaction: The ``on_revival`` of the recipe.
    """
    if reaction == "error":
        raise RuntimeError(
            f"{revival}; remove the code that writes, or set on_revival='warn' to mask and go on"
        )
    warnings.warn(f"{revival}; they are masked again", stacklevel=5)


def _find_statistics(tensor: PrunedTensor, optimizer: Optimizer) -> str | None:
    """Return which statistics of an optimizer are not 0 for pruned weights; None for none."""
    pruned, found = ~tensor.mask.kept, []
    for name, value in optimizer.state.get(tensor.parameter, {}).items():
        part = local_part(value) if isinstance(value, Tensor) else None
        if type(part) is Tensor and part.shape == pruned.shape and part[pruned].any():
            found.append(f"'{name}'")
    if not found:
        return None
    return f"the {', '.join(found)} of {type(optimizer).__name__} is not 0 there either"
