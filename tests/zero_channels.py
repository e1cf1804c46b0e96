"""Modules with zero channels, and what is asked of them without these channels."""

import torch

from lightning_prune.channels.coupling import couple
from lightning_prune.models.names import named_parameters


def zeroed(module, batch, every=2):
    """Set to zero all that is stored for every second channel, as a ChannelPattern leaves it."""
    tensors = named_parameters(module)
    with torch.no_grad():
        for group in couple(module, batch).groups:
            if group.why_dense is None:
                for place in group.places:
                    if place.name in tensors:
                        gone = (place.channel_of_index >= 0) & (place.channel_of_index % every == 1)
                        tensors[place.name].movedim(place.axis, 0)[gone] = 0.0
    return module


def size(module):
    return sum(parameter.numel() for parameter in module.parameters())


def outputs(module, batch):
    with torch.no_grad():
        return module.eval()(batch)


def assert_same(module, smaller, batch):
    expected, found = outputs(module, batch), outputs(smaller, batch)
    assert float((expected - found).abs().max()) <= 1e-5 * float(expected.abs().max())
