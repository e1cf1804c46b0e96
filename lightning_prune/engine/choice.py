"""What is pruned: chosen from a model and checked against the answers."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn
from torch.optim import Optimizer

from lightning_prune.engine.groups import Group
from lightning_prune.engine.selection import Selection, select
from lightning_prune.engine.weight_groups import EntryGroup
from lightning_prune.models.names import named_parameters
from lightning_prune.recipe.allocations import Allocation
from lightning_prune.recipe.criteria import Criterion
from lightning_prune.recipe.patterns import ChannelPattern, Pattern
from lightning_prune.recipe.targets import as_yaml
from lightning_prune.recipe.tensor import PrunedTensor
from lightning_prune.tensors.shards import is_sharded, reshard

Answer = Allocation | Criterion | Pattern


def choose(
    model: nn.Module,
    optimizers: Sequence[Optimizer],
    *,
    targets: Mapping[str, float | None],
    pattern: Pattern,
    criterion: Criterion,
    others: Sequence[Answer],
    example: Any,
) -> Selection:
    """Return the tensors and groups of a model that are to be pruned.

    Args:
        model: The model.
        optimizers: What trains it.
        targets: Final sparsity, or None for dense, by glob.
        pattern: What shape.
        criterion: Which.
        others: The other answers that meet the tensors.
        example: For channels, what ``forward`` takes; None for ``example_input_array``.

    Raises:
        ValueError: If a glob matches nothing, nothing can be pruned, or something does not fit.
    """
    reshard(model)
    if isinstance(pattern, ChannelPattern):
        from lightning_prune.engine.channel_selection import (
            select_channels,  # all that tracing needs
        )

        for name, parameter in named_parameters(model).items():
            if is_sharded(parameter):
                refuse_shards(name, [pattern])
        selection = select_channels(model, optimizers, targets, pattern, example)
    else:
        selection = select(model, optimizers, targets)
        kind = EntryGroup if pattern.works_on_shards else Group
        alone = tuple(kind(members=(tensor,), pattern=pattern) for tensor in selection.tensors)
        selection = replace(selection, groups=alone)
    for tensor in selection.tensors:
        if tensor.shard is not None:
            refuse_shards(tensor.name, [*others, criterion, pattern])
    scored = [tensor for tensor in selection.tensors if not tensor.follows]
    refuse_misfits(scored, model, targets, criterion, pattern)
    if not selection.tensors and not selection.waiting:
        raise ValueError(nothing_to_prune(selection.dense))
    return selection


def refuse_shards(name: str, answers: Sequence[Answer]) -> None:
    """Raise ValueError, naming the sharded tensor, if an answer needs whole ones."""
    for answer in answers:
        if not answer.works_on_shards:
            raise ValueError(
                f"need whole parameters for {answer}, got the sharded '{name}' (FSDP2 or tensor "
                "parallelism); use DDP, or UniformAllocation, ERKAllocation or GlobalAllocation "
                "with MagnitudeCriterion, RandomCriterion or GradientCriterion and "
                "UnstructuredPattern()"
            )


def refuse_misfits(
    tensors: Sequence[PrunedTensor],
    model: nn.Module,
    targets: Mapping[str, float | None],
    criterion: Criterion,
    pattern: Pattern,
) -> None:
    """Raise ValueError, naming all tensors that do not fit and the lines that leave them dense."""

    def misfit(tensor: PrunedTensor) -> str | None:
        try:
            pattern.check_shape(tensor.shape)
            criterion.check_tensor(tensor, model)
        except ValueError as error:
            return f"{error} in '{tensor.name}' of shape {tensor.shape}"
        return None

    misfits = {tensor.name: why for tensor in tensors if (why := misfit(tensor))}
    if misfits:
        globs = "".join(f'\n  "{glob}": {as_yaml(t)}' for glob, t in targets.items())
        nulls = "".join(f'\n  "{name}": null' for name in misfits)
        raise ValueError(
            "; ".join(misfits.values()) + f"; to leave that dense, write\nsparsity:{globs}{nulls}"
        )


def nothing_to_prune(dense: Mapping[str, str]) -> str:
    """Return in words why there is no tensor."""
    reasons = ", ".join(f"'{name}' ({reason})" for name, reason in dense.items())
    return f"need at least one prunable weight, got none: {reasons or 'no parameters'}"
