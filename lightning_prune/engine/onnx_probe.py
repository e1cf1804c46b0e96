"""A file without some channels, which shows how constants without a source change."""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from lightning_prune.channels.coupling import ChannelPlace, couple
from lightning_prune.channels.trial import try_with_generic_weights
from lightning_prune.deploy.onnx_contents import write_unchecked
from lightning_prune.engine.groups import Group
from lightning_prune.engine.shapes import AxisLength
from lightning_prune.models.calls import Call
from lightning_prune.models.names import named_tensors

_DRAWS = 100


def write_smaller(
    model: nn.Module, groups: Sequence[Group], axes: Sequence[AxisLength], call: Call, file: Path
) -> dict[str, int]:
    """Write the file of a copy without some channels of each group.

    Args:
        model: Left as it is.
        groups: The groups of channels.
        axes: The axes that removal changes. Different axes get different lengths if possible.
        call: The arguments of ``forward``.
        file: The file.

    Returns:
        The number of channels that are left of each group, by name.
    """
    total = {group.name: group.total for group in groups}
    kept = _choose_kept(total, axes)
    coupling = couple(model, call)
    tensors = named_tensors(model, remove_duplicate=False)
    names = {key: group.name for group in groups for key in _keys(group.removable_places, tensors)}
    removal: dict[int, Tensor] = {}
    removed: dict[int, str] = {}
    for index, channels in enumerate(coupling.groups):
        for name in {names[key] for key in _keys(channels.places, tensors) if key in names}:
            removed[index] = name
            removal[index] = torch.arange(channels.size, device="cpu") >= kept[name]
    trial = try_with_generic_weights(model, call, coupling, removal)
    write_unchecked(trial.remove(), call, file)
    gone = {removed[index] for index in trial.accepted}
    return {name: kept[name] if name in gone else total[name] for name in total}


def _choose_kept(total: Mapping[str, int], axes: Sequence[AxisLength]) -> dict[str, int]:
    """Return how many channels to keep, so that axes of equal lengths get different lengths."""
    generator = random.Random(0)
    best, most = dict(total), -1
    for _ in range(_DRAWS):
        drawn = {
            name: generator.randint(1, max(channels - 1, 1)) for name, channels in total.items()
        }
        pairs = len({(axis(total), axis(drawn)) for axis in axes})
        if pairs > most:
            best, most = drawn, pairs
    return best


def _keys(
    places: Sequence[ChannelPlace], tensors: Mapping[str, Tensor]
) -> set[tuple[int, int, tuple[int, ...]]]:
    """Return keys that only the places of the same channels have."""
    return {
        (id(tensors[place.name]), place.axis, tuple(place.channel_of_index.tolist()))
        for place in places
        if place.is_output
    }
