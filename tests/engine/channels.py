"""Small networks with inner channels, and a plain loop that prunes these."""

import torch
from torch import nn

from lightning_prune import ChannelPattern, OneShotSchedule, Pruner
from tests.engine.training import OPTIMIZERS

STEPS = 8
AT_ONCE = OneShotSchedule(end=0)


def convolution(inputs, outputs):
    return nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()


class Net(nn.Sequential):
    """Three layers with inner channels, of 16, 24 and 40, on images of 4 x 4."""

    example_input_array = torch.zeros(2, 3, 4, 4)

    def __init__(self, seed=0):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            convolutions = [*convolution(3, 16), *convolution(16, 24)]
            hidden = [nn.Flatten(), nn.Linear(24 * 16, 40), nn.ReLU()]
            super().__init__(*convolutions, *hidden, nn.Linear(40, 10))


class Residual(nn.Module):
    """A stem, one block that adds to it, and a head."""

    example_input_array = torch.zeros(2, 3, 4, 4)

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.widen = nn.Conv2d(16, 32, 1)
        self.narrow = nn.Conv2d(32, 16, 1)
        self.head = nn.Linear(16, 10)

    def forward(self, images):
        stream = self.norm(self.stem(images)).relu()
        stream = stream + self.narrow(self.widen(stream).relu())
        return self.head(stream.mean((2, 3)))


class Depthwise(nn.Sequential):
    """An inverted bottleneck."""

    example_input_array = torch.zeros(2, 3, 4, 4)

    def __init__(self):
        super().__init__(
            nn.Conv2d(3, 16, 1),
            nn.Conv2d(16, 16, 3, padding=1, groups=16),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 8, 1),
            nn.Flatten(),
            nn.Linear(8 * 16, 10),
        )


class Concatenation(nn.Module):
    """Two branches side by side."""

    example_input_array = torch.zeros(2, 3, 4, 4)

    def __init__(self):
        super().__init__()
        self.one = nn.Conv2d(3, 16, 1)
        self.other = nn.Conv2d(3, 24, 1)
        self.last = nn.Conv2d(40, 10, 1)

    def forward(self, images):
        return self.last(torch.cat([self.one(images), self.other(images).relu()], 1))


class Attention(nn.Module):
    """Four heads of eight."""

    example_input_array = torch.zeros(2, 5, 12)

    def __init__(self):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(12, 32) for _ in range(3))
        self.output = nn.Linear(32, 12)

    def forward(self, words):
        heads = [
            layer(words).view(*words.shape[:2], -1, 8).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        ]
        mixed = nn.functional.scaled_dot_product_attention(*heads)
        return self.output(mixed.transpose(1, 2).flatten(2))


class Two(nn.Sequential):
    """Sixteen hidden units, whose weights are all 1."""

    example_input_array = torch.zeros(1, 4)

    def __init__(self):
        super().__init__(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))
        for layer in (self[0], self[2]):
            nn.init.ones_(layer.weight)


def start(model, optimizer="adamw", *, steps=STEPS, state=None, **recipe):
    recipe = {"sparsity": 0.5, "pattern": ChannelPattern(), **recipe}
    optimizers = OPTIMIZERS[optimizer](model.parameters())
    pruner = Pruner(**recipe)
    if state is not None:
        pruner.load_state_dict(state)
    pruner.attach(model, optimizers, steps=steps)
    return optimizers, pruner


def train(model, optimizer, pruner, steps=STEPS, first=0, check=lambda: None):
    shape = model.example_input_array.shape
    for step in range(first, first + steps):
        generator = torch.Generator().manual_seed(step)
        optimizer.zero_grad()
        model(torch.randn(4, *shape[1:], generator=generator)).square().mean().backward()
        pruner.before_step(optimizer)
        optimizer.step()
        check()


def pruned(model, **recipe):
    """Return the masks after one update at the first step."""
    optimizer, pruner = start(model, **{"schedule": AT_ONCE, **recipe})
    train(model, optimizer, pruner, 1)
    return pruner.masks, pruner


def outer(rows, columns):
    return rows[:, None] & columns[None]
