"""A small network and a plain loop that prunes it while it trains."""

import torch
from torch import nn

STEPS = 12
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05),
}


class Net(nn.Sequential):
    """A convolution and two matrices that every pattern divides: 1,024 prunable weights."""

    def __init__(self, seed=0):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            super().__init__(
                nn.Conv1d(4, 8, 4),
                nn.Flatten(),
                nn.Linear(40, 20, bias=False),
                nn.ReLU(),
                nn.Linear(20, 4),
            )


TOTAL = 8 * 4 * 4 + 20 * 40 + 4 * 20
EXAMPLE = torch.zeros(2, 4, 8)  # for the channels


def train(model, optimizer, pruner, steps=STEPS, first=0, check=None):
    for step in range(first, first + steps):
        x = torch.randn(8, 4, 8, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(x).square().mean().backward()
        pruner.before_step(optimizer)
        optimizer.step()
        if check:
            check()
    return model


def pruned_weights(model, pruner):
    parameters = dict(model.named_parameters())
    return torch.cat([parameters[name].detach()[~mask] for name, mask in pruner.masks.items()])
