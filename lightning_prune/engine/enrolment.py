"""What is pruned: chosen from a model, checked against the answers, and kept through changes."""

from collections.abc import Callable
from dataclasses import replace

from lightning_prune.engine.channel_groups import ChannelGroup
from lightning_prune.engine.selection import Selection
from lightning_prune.recipe.tensor import PrunedTensor


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
