"""The groups of channels that must go together, read for a test."""

from torch import nn

from lightning_prune.channels.coupling import couple
from tests.coupled_models import (
    example,
)


def groups_of(module, batch=None):
    coupling = couple(module, example() if batch is None else batch)
    return {group.producers[0]: group for group in coupling.groups}


def places(group):
    return {(place.name, place.axis) for place in group.places}


def channels_along(group, name):
    return next(place.channel_of_index.tolist() for place in group.places if place.name == name)


class Calling(nn.Module):
    """A convolution, then a function, then another."""

    def __init__(self, function):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
        self.function = function

    def forward(self, images):
        return self.second(self.function(self.first(images)))
