"""What is pruned: chosen from a model, checked against the answers, and kept through changes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn
from torch.optim import Optimizer

from lightning_prune.engine.channel_groups import ChannelGroup
from lightning_prune.engine.groups import Group, PrunedTensor
from lightning_prune.engine.selection import Selection, named_parameters, select
from lightning_prune.engine.weight_groups import EntryGroup
from lightning_prune.recipe.criteria import Criterion
from lightning_prune.recipe.patterns import ChannelPattern, Pattern
from lightning_prune.recipe.targets import Answer, nothing_to_prune, refuse_misfits, refuse_shards
from lightning_prune.tensors.shards import is_sharded, reshard


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


def continued(
    before: Selection, found: Selection, take_up: Callable[[PrunedTensor], None]
) -> Selection:
    """Return what is found, with what was there before as it is.

    What is being pruned stays so, also where it has been frozen since. Channels that were pruned
    are pruned in a layer that has replaced another, too.

    Args:
        before: What is being pruned.
        found: What `choose` has found now.
        take_up: What is done with a new tensor first.
    """
    known = {tensor.name: tensor for tensor in before.tensors}
    for tensor in found.tensors:
        same = known.get(tensor.name)
        if same is not None and same.parameter is tensor.parameter:
            same.optimizer = tensor.optimizer
        else:
            take_up(tensor)
            known[tensor.name] = tensor
    places = {name: place for place, name in enumerate(found.names)}
    earlier = {
        group.name: group
        for group in before.groups
        if all(member.name in places for member in group.members)
    }
    groups = {
        group.name: replace(group, members=tuple(known[member.name] for member in group.members))
        for group in (*earlier.values(), *found.groups)
    }
    for name, group in groups.items():
        if isinstance(group, ChannelGroup) and name in earlier:
            group.keep(earlier[name].alive())
    ordered = sorted(groups.values(), key=lambda group: places[group.members[0].name])
    tensors = {member.name for group in ordered for member in group.members}
    lost = earlier.keys() - {group.name for group in found.groups}
    hidden = {name for group in lost for name in groups[group].producers}
    hidden |= tensors - {tensor.name for tensor in found.tensors}
    return replace(
        found,
        tensors=tuple(known[name] for name in found.names if name in tensors),
        dense={name: why for name, why in found.dense.items() if name not in hidden},
        groups=tuple(ordered),
    )
